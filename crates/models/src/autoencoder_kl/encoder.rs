use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::config::NORM_EPS;
use super::{AutoencoderKLConfig, AutoencoderMidBlock2D};
use crate::error::Result;
use crate::layers::{Conv2d, GroupNorm, LayerList, Layers};
use crate::resampling::Downsample2D;
use crate::resnet::ResnetBlock2D;

/// Picture to twice the latents' channels: means and logarithms of variances.
#[derive(Clone, Debug)]
pub struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownEncoderBlock2D>,
    mid_block: AutoencoderMidBlock2D,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(config: &AutoencoderKLConfig, vb: VarBuilder) -> Result<Self> {
        Self::with_out_channels(config, 2 * config.latent_channels, vb)
    }

    /// An encoder to so many channels.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn with_out_channels(
        config: &AutoencoderKLConfig,
        out_channels: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        let channels = &config.block_out_channels;
        let (Some(&first), Some(&last)) = (channels.first(), channels.last()) else {
            return Err(super::model::no_blocks());
        };
        let conv_in = Conv2d::same_size(config.in_channels, first, 3, vb.pp("conv_in"))?;
        let mut down_blocks = Vec::with_capacity(channels.len());
        for (index, &out_channels) in channels.iter().enumerate() {
            let in_channels = channels[index.saturating_sub(1)];
            let add_downsample = index + 1 < channels.len();
            let block = vb.pp("down_blocks").pp(index);
            down_blocks.push(DownEncoderBlock2D::new(
                in_channels,
                out_channels,
                config,
                add_downsample,
                block,
            )?);
        }
        Ok(Self {
            conv_in,
            down_blocks,
            mid_block: AutoencoderMidBlock2D::new(last, config, vb.pp("mid_block"))?,
            conv_norm_out: GroupNorm::new(config.norm_num_groups, last, NORM_EPS, vb.pp("conv_norm_out"))?,
            conv_out: Conv2d::same_size(last, out_channels, 3, vb.pp("conv_out"))?,
        })
    }

    /// `(batch, in_channels, height, width)` to `(batch, out_channels, height / factor, width / factor)`, where each halving
    /// rounds down.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, sample: &Tensor) -> Result<Tensor> {
        let mut hidden = self.conv_in.forward(sample)?;
        for block in &self.down_blocks {
            hidden = block.forward(hidden)?;
        }
        hidden = self.mid_block.forward(hidden)?;
        // Silu whatever the config's act_fn, as in diffusers.
        self.conv_out.forward_normed(&hidden, &self.conv_norm_out, None, None)
    }
}

impl Layers for Encoder {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("conv_in", &self.conv_in);
        list.add_each("down_blocks", &self.down_blocks);
        list.add("mid_block", &self.mid_block);
        list.add("conv_norm_out", &self.conv_norm_out);
        list.add("conv_out", &self.conv_out);
    }
}

/// Residual blocks, and in all blocks of an encoder but the last a convolution that halves the picture.
#[derive(Clone, Debug)]
pub struct DownEncoderBlock2D {
    resnets: Vec<ResnetBlock2D>,
    downsampler: Option<Downsample2D>,
}

impl DownEncoderBlock2D {
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(
        in_channels: usize,
        out_channels: usize,
        config: &AutoencoderKLConfig,
        add_downsample: bool,
        vb: VarBuilder,
    ) -> Result<Self> {
        let resnet = |index: usize| {
            let in_channels = if index == 0 { in_channels } else { out_channels };
            ResnetBlock2D::new(in_channels, out_channels, config.resnet_config(), vb.pp("resnets").pp(index))
        };
        let resnets = (0..config.layers_per_block).map(resnet).collect::<Result<_>>()?;
        let downsampler = if add_downsample {
            Some(Downsample2D::new(out_channels, 0, vb.pp("downsamplers.0"))?)
        } else {
            None
        };
        Ok(Self { resnets, downsampler })
    }

    /// `(batch, in_channels, height, width)` to `(batch, out_channels, height', width')`, halved and rounded down where the block has
    /// a downsampler. Takes the tensor, so that its memory is free as soon as it can be.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        for resnet in &self.resnets {
            x = resnet.forward(x, None)?;
        }
        match &self.downsampler {
            Some(downsampler) => downsampler.forward(&x),
            None => Ok(x),
        }
    }
}

impl Layers for DownEncoderBlock2D {
    fn list_layers(&self, list: &mut LayerList) {
        list.add_each("resnets", &self.resnets);
        list.add("downsamplers.0", &self.downsampler);
    }
}
