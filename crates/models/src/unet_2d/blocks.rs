//! The blocks of a [`UNet2DModel`](super::UNet2DModel) (diffusers' `models/unets/unet_2d_blocks.py`).

use candle_core::Tensor;
use candle_diffusers_kernels::cat;
use candle_nn::VarBuilder;

use super::MODEL;
use super::config::SampleType;
use crate::error::{Error, Result};
use crate::layers::{LayerList, Layers};
use crate::pixel_attention::{PixelAttention, PixelAttentionConfig};
use crate::resampling::{Downsample2D, Upsample2D};
use crate::resnet::{ResnetBlock2D, ResnetConfig, ResnetSampling};

/// What one block is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockConfig {
    /// Channels of every residual block's result.
    pub(super) out_channels: usize,
    pub(super) resnet: ResnetConfig,
    /// After each residual block.
    pub(super) attention: Option<PixelAttentionConfig>,
    /// How the picture is halved or doubled at the end; `None`: it is not.
    pub(super) sampling: Option<SampleType>,
}

impl BlockConfig {
    /// Residual blocks with these input channels, and an attention for each where the block has them.
    fn layers(&self, in_channels: &[usize], vb: &VarBuilder) -> Result<Vec<Layer>> {
        let layer = |(i, channels): (usize, &usize)| -> Result<Layer> {
            let resnet =
                ResnetBlock2D::new(*channels, self.out_channels, self.resnet, vb.pp("resnets").pp(i))?;
            let attention = match self.attention {
                Some(config) => Some(PixelAttention::new(config, vb.pp("attentions").pp(i))?),
                None => None,
            };
            Ok(Layer { resnet, attention })
        };
        in_channels.iter().enumerate().map(layer).collect()
    }

    fn sampling_resnet(&self, sampling: ResnetSampling, vb: VarBuilder) -> Result<Box<ResnetBlock2D>> {
        let channels = self.out_channels;
        Ok(Box::new(ResnetBlock2D::with_sampling(channels, channels, self.resnet, sampling, vb)?))
    }
}

/// A residual block and perhaps the attention after it.
#[derive(Clone, Debug)]
struct Layer {
    resnet: ResnetBlock2D,
    attention: Option<PixelAttention>,
}

impl Layer {
    fn forward(&self, x: &Tensor, temb: &Tensor) -> Result<Tensor> {
        let hidden = self.resnet.forward(x.clone(), Some(temb))?;
        match &self.attention {
            Some(attention) => attention.forward(&hidden),
            None => Ok(hidden),
        }
    }
}

/// What halves a picture.
#[derive(Clone, Debug)]
enum Downsampler {
    Conv(Downsample2D),
    Resnet(Box<ResnetBlock2D>),
}

/// What doubles a picture.
#[derive(Clone, Debug)]
enum Upsampler {
    Conv(Upsample2D),
    Resnet(Box<ResnetBlock2D>),
}

/// `DownBlock2D`, `AttnDownBlock2D` and `ResnetDownsampleBlock2D`.
#[derive(Clone, Debug)]
pub(super) struct DownBlock {
    layers: Vec<Layer>,
    downsampler: Option<Downsampler>,
}

impl DownBlock {
    pub(super) fn new(
        in_channels: usize,
        layers: usize,
        padding: usize,
        config: BlockConfig,
        vb: VarBuilder,
    ) -> Result<Self> {
        let input = |i: usize| if i == 0 { in_channels } else { config.out_channels };
        let inputs: Vec<usize> = (0..layers).map(input).collect();
        let sampler = vb.pp("downsamplers.0");
        let downsampler = match config.sampling {
            Some(SampleType::Conv) => {
                Some(Downsampler::Conv(Downsample2D::new(config.out_channels, padding, sampler)?))
            }
            Some(SampleType::Resnet) => {
                Some(Downsampler::Resnet(config.sampling_resnet(ResnetSampling::Halve, sampler)?))
            }
            None => None,
        };
        Ok(Self { layers: config.layers(&inputs, &vb)?, downsampler })
    }

    /// Every intermediate result that the way up will want is pushed onto `res_samples`.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        temb: &Tensor,
        res_samples: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for layer in &self.layers {
            x = layer.forward(&x, temb)?;
            res_samples.push(x.clone());
        }
        x = match &self.downsampler {
            Some(Downsampler::Conv(conv)) => conv.forward(&x)?,
            Some(Downsampler::Resnet(resnet)) => resnet.forward(x, Some(temb))?,
            None => return Ok(x),
        };
        res_samples.push(x.clone());
        Ok(x)
    }
}

impl Layers for DownBlock {
    fn list_layers(&self, list: &mut LayerList) {
        list_each(&self.layers, list);
        match &self.downsampler {
            Some(Downsampler::Conv(conv)) => list.add("downsamplers.0", conv),
            Some(Downsampler::Resnet(resnet)) => list.add("downsamplers.0", resnet.as_ref()),
            None => {}
        }
    }
}

/// `UNetMidBlock2D`: a residual block, attention, a residual block.
#[derive(Clone, Debug)]
pub(super) struct MidBlock {
    first: Layer,
    second: ResnetBlock2D,
}

impl MidBlock {
    pub(super) fn new(config: BlockConfig, vb: VarBuilder) -> Result<Self> {
        let channels = config.out_channels;
        let mut layers = config.layers(&[channels], &vb)?;
        let first = layers.pop().ok_or_else(|| too_few("mid_block"))?;
        let second = ResnetBlock2D::new(channels, channels, config.resnet, vb.pp("resnets.1"))?;
        Ok(Self { first, second })
    }

    pub(super) fn forward(&self, x: &Tensor, temb: &Tensor) -> Result<Tensor> {
        self.second.forward(self.first.forward(x, temb)?, Some(temb))
    }
}

impl Layers for MidBlock {
    fn list_layers(&self, list: &mut LayerList) {
        list_each(std::slice::from_ref(&self.first), list);
        list.add("resnets.1", &self.second);
    }
}

/// `UpBlock2D`, `AttnUpBlock2D` and `ResnetUpsampleBlock2D`.
#[derive(Clone, Debug)]
pub(super) struct UpBlock {
    layers: Vec<Layer>,
    upsampler: Option<Upsampler>,
}

impl UpBlock {
    /// `prev_channels` come from the block below, `skip_channels` are those of the last skip connection.
    pub(super) fn new(
        prev_channels: usize,
        skip_channels: usize,
        layers: usize,
        config: BlockConfig,
        vb: VarBuilder,
    ) -> Result<Self> {
        let input = |i: usize| {
            let previous = if i == 0 { prev_channels } else { config.out_channels };
            previous + if i + 1 == layers { skip_channels } else { config.out_channels }
        };
        let inputs: Vec<usize> = (0..layers).map(input).collect();
        let sampler = vb.pp("upsamplers.0");
        let upsampler = match config.sampling {
            Some(SampleType::Conv) => Some(Upsampler::Conv(Upsample2D::new(config.out_channels, sampler)?)),
            Some(SampleType::Resnet) => {
                Some(Upsampler::Resnet(config.sampling_resnet(ResnetSampling::Double, sampler)?))
            }
            None => None,
        };
        Ok(Self { layers: config.layers(&inputs, &vb)?, upsampler })
    }

    /// Skip connections are taken from the end of `res_samples`.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        temb: &Tensor,
        res_samples: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for layer in &self.layers {
            let skip = res_samples.pop().ok_or_else(|| too_few("up_block_types"))?;
            x = layer.forward(&cat(&[&x, &skip], 1)?, temb)?;
        }
        match &self.upsampler {
            Some(Upsampler::Conv(conv)) => conv.forward(&x, None),
            Some(Upsampler::Resnet(resnet)) => resnet.forward(x, Some(temb)),
            None => Ok(x),
        }
    }
}

impl Layers for UpBlock {
    fn list_layers(&self, list: &mut LayerList) {
        list_each(&self.layers, list);
        match &self.upsampler {
            Some(Upsampler::Conv(conv)) => list.add("upsamplers.0", conv),
            Some(Upsampler::Resnet(resnet)) => list.add("upsamplers.0", resnet.as_ref()),
            None => {}
        }
    }
}

/// The residual blocks and the attentions are numbered each for themselves.
fn list_each(layers: &[Layer], list: &mut LayerList) {
    for (i, layer) in layers.iter().enumerate() {
        list.add(&format!("resnets.{i}"), &layer.resnet);
        list.add(&format!("attentions.{i}"), &layer.attention);
    }
}

fn too_few(input: &'static str) -> Error {
    let problem = "want more layers than the way down left".into();
    Error::Input { model: MODEL, input, problem }
}
