use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::config::NORM_EPS;
use super::{AutoencoderKLConfig, AutoencoderMidBlock2D};
use crate::error::Result;
use crate::layers::{Conv2d, GroupNorm, LayerList, Layers};
use crate::resampling::Upsample2D;
use crate::resnet::ResnetBlock2D;

/// Latents to picture.
#[derive(Clone, Debug)]
pub struct Decoder {
    conv_in: Conv2d,
    mid_block: AutoencoderMidBlock2D,
    up_blocks: Vec<UpDecoderBlock2D>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(config: &AutoencoderKLConfig, vb: VarBuilder) -> Result<Self> {
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (Some(&first), Some(&last)) = (channels.first(), channels.last()) else {
            return Err(super::model::no_blocks());
        };
        let mut up_blocks = Vec::with_capacity(channels.len());
        for (index, &out_channels) in channels.iter().enumerate() {
            let in_channels = channels[index.saturating_sub(1)];
            let add_upsample = index + 1 < channels.len();
            let block = vb.pp("up_blocks").pp(index);
            up_blocks.push(UpDecoderBlock2D::new(in_channels, out_channels, config, add_upsample, block)?);
        }
        Ok(Self {
            conv_in: Conv2d::same_size(config.latent_channels, first, 3, vb.pp("conv_in"))?,
            mid_block: AutoencoderMidBlock2D::new(first, config, vb.pp("mid_block"))?,
            up_blocks,
            conv_norm_out: GroupNorm::new(config.norm_num_groups, last, NORM_EPS, vb.pp("conv_norm_out"))?,
            conv_out: Conv2d::same_size(last, config.out_channels, 3, vb.pp("conv_out"))?,
        })
    }

    /// `(batch, latent_channels, height, width)` to `(batch, out_channels, height * factor, width * factor)`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let mut hidden = self.conv_in.forward(latents)?;
        hidden = self.mid_block.forward(hidden)?;
        for block in &self.up_blocks {
            hidden = block.forward(hidden)?;
        }
        // Silu whatever the config's act_fn, as in diffusers.
        self.conv_out.forward_normed(&hidden, &self.conv_norm_out, None, None)
    }
}

impl Layers for Decoder {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("conv_in", &self.conv_in);
        list.add("mid_block", &self.mid_block);
        list.add_each("up_blocks", &self.up_blocks);
        list.add("conv_norm_out", &self.conv_norm_out);
        list.add("conv_out", &self.conv_out);
    }
}

/// Residual blocks, and in all blocks of a decoder but the last one that doubles the picture.
#[derive(Clone, Debug)]
pub struct UpDecoderBlock2D {
    resnets: Vec<ResnetBlock2D>,
    upsampler: Option<Upsample2D>,
}

impl UpDecoderBlock2D {
    /// It has one residual block more than `layers_per_block`.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(
        in_channels: usize,
        out_channels: usize,
        config: &AutoencoderKLConfig,
        add_upsample: bool,
        vb: VarBuilder,
    ) -> Result<Self> {
        let resnet = |index: usize| {
            let in_channels = if index == 0 { in_channels } else { out_channels };
            ResnetBlock2D::new(in_channels, out_channels, config.resnet_config(), vb.pp("resnets").pp(index))
        };
        let resnets = (0..=config.layers_per_block).map(resnet).collect::<Result<_>>()?;
        let upsampler =
            if add_upsample { Some(Upsample2D::new(out_channels, vb.pp("upsamplers.0"))?) } else { None };
        Ok(Self { resnets, upsampler })
    }

    /// `(batch, in_channels, height, width)` to `(batch, out_channels, height', width')`, doubled where the block has an upsampler.
    /// Takes the tensor, so that its memory is free as soon as it can be.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        for resnet in &self.resnets {
            x = resnet.forward(x, None)?;
        }
        match &self.upsampler {
            Some(upsampler) => upsampler.forward(&x, None),
            None => Ok(x),
        }
    }
}

impl Layers for UpDecoderBlock2D {
    fn list_layers(&self, list: &mut LayerList) {
        list.add_each("resnets", &self.resnets);
        list.add("upsamplers.0", &self.upsampler);
    }
}
