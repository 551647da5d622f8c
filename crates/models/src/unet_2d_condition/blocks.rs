//! The blocks of a [`UNet2DConditionModel`](super::UNet2DConditionModel) (diffusers' `models/unets/unet_2d_blocks.py`).

use candle_core::Tensor;
use candle_diffusers_kernels::cat;
use candle_nn::VarBuilder;

use super::config::BlockType;
use crate::error::{Error, Result};
use crate::gradient_checkpointing::checkpoint;
use crate::layers::{LayerList, Layers};
use crate::resampling::{Downsample2D, Upsample2D};
use crate::resnet::{ResnetBlock2D, ResnetConfig};
use crate::transformer_2d::{Context, Transformer2DConfig, Transformer2DModel};

/// What one block is made of.
#[derive(Clone, Copy, Debug)]
pub struct BlockConfig {
    /// With or without transformers.
    pub kind: BlockType,
    /// Number of residual blocks.
    pub layers: usize,
    /// Channels of every residual block's result.
    pub out_channels: usize,
    /// Of each residual block.
    pub resnet: ResnetConfig,
    /// Of each transformer; its `in_channels` is `out_channels`.
    pub transformer: Transformer2DConfig,
}

impl BlockConfig {
    /// Residual blocks with these input channels, and a transformer for each where the kind says so.
    fn layers(&self, in_channels: &[usize], vb: &VarBuilder) -> Result<Vec<Layer>> {
        let (resnets, attentions) = (vb.pp("resnets"), vb.pp("attentions"));
        let layer = |(i, channels): (usize, &usize)| -> Result<Layer> {
            let resnet = ResnetBlock2D::new(*channels, self.out_channels, self.resnet, resnets.pp(i))?;
            let attention = match self.kind {
                BlockType::CrossAttention => {
                    Some(Transformer2DModel::new(self.transformer, attentions.pp(i))?)
                }
                BlockType::Plain => None,
            };
            Ok(Layer { resnet, attention })
        };
        in_channels.iter().enumerate().map(layer).collect()
    }
}

/// A residual block and perhaps the transformer after it.
#[derive(Clone, Debug)]
struct Layer {
    resnet: ResnetBlock2D,
    attention: Option<Transformer2DModel>,
}

impl Layer {
    fn forward(&self, x: &Tensor, temb: &Tensor, context: Context) -> Result<Tensor> {
        checkpoint(self, x, temb, context, Self::compute)
    }

    fn compute(&self, x: &Tensor, temb: &Tensor, context: Context) -> Result<Tensor> {
        let hidden = self.resnet.forward(x.clone(), Some(temb))?;
        match &self.attention {
            Some(attention) => attention.forward(&hidden, context),
            None => Ok(hidden),
        }
    }
}

/// `CrossAttnDownBlock2D` and `DownBlock2D`.
#[derive(Clone, Debug)]
pub struct DownBlock {
    layers: Vec<Layer>,
    downsampler: Option<Downsample2D>,
}

impl DownBlock {
    /// `downsample_padding` is `None` in the last block, which does not halve.
    ///
    /// # Errors
    /// When `layers` is 0, or a tensor is missing or wrongly shaped.
    pub fn new(
        in_channels: usize,
        config: BlockConfig,
        downsample_padding: Option<usize>,
        vb: VarBuilder,
    ) -> Result<Self> {
        let mut inputs = vec![config.out_channels; config.layers];
        *inputs.first_mut().ok_or_else(no_layers)? = in_channels;
        let downsampler = match downsample_padding {
            Some(padding) => Some(Downsample2D::new(config.out_channels, padding, vb.pp("downsamplers.0"))?),
            None => None,
        };
        Ok(Self { layers: config.layers(&inputs, &vb)?, downsampler })
    }

    /// `(batch, in_channels, height, width)` to `(batch, out_channels, height', width')`. Every intermediate result that the way up will want is
    /// pushed onto `res_samples`; `temb` is `(batch, temb_channels)`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(
        &self,
        mut x: Tensor,
        temb: &Tensor,
        context: Context,
        res_samples: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for layer in &self.layers {
            x = layer.forward(&x, temb, context)?;
            res_samples.push(x.clone());
        }
        if let Some(downsampler) = &self.downsampler {
            x = downsampler.forward(&x)?;
            res_samples.push(x.clone());
        }
        Ok(x)
    }
}

impl Layers for DownBlock {
    fn list_layers(&self, list: &mut LayerList) {
        list_each(&self.layers, list);
        list.add("downsamplers.0", &self.downsampler);
    }
}

/// `UNetMidBlock2DCrossAttn`, and `UNetMidBlock2D` without attention: a residual block, then a transformer and another residual
/// block where there is cross-attention.
#[derive(Clone, Debug)]
pub struct MidBlock {
    first: ResnetBlock2D,
    rest: Option<(Transformer2DModel, ResnetBlock2D)>,
}

impl MidBlock {
    /// A block that keeps its channels; `config.layers` has no meaning here.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(config: BlockConfig, vb: VarBuilder) -> Result<Self> {
        let channels = config.out_channels;
        let resnet = |i: usize| ResnetBlock2D::new(channels, channels, config.resnet, vb.pp("resnets").pp(i));
        let rest = match config.kind {
            BlockType::CrossAttention => {
                Some((Transformer2DModel::new(config.transformer, vb.pp("attentions.0"))?, resnet(1)?))
            }
            BlockType::Plain => None,
        };
        Ok(Self { first: resnet(0)?, rest })
    }

    /// `(batch, out_channels, height, width)`, same shape out; `temb` is `(batch, temb_channels)`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor, temb: &Tensor, context: Context) -> Result<Tensor> {
        checkpoint(self, x, temb, context, Self::compute)
    }

    fn compute(&self, x: &Tensor, temb: &Tensor, context: Context) -> Result<Tensor> {
        let hidden = self.first.forward(x.clone(), Some(temb))?;
        match &self.rest {
            Some((attention, resnet)) => resnet.forward(attention.forward(&hidden, context)?, Some(temb)),
            None => Ok(hidden),
        }
    }
}

impl Layers for MidBlock {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("resnets.0", &self.first);
        if let Some((attention, resnet)) = &self.rest {
            list.add("attentions.0", attention);
            list.add("resnets.1", resnet);
        }
    }
}

/// `CrossAttnUpBlock2D` and `UpBlock2D`.
#[derive(Clone, Debug)]
pub struct UpBlock {
    layers: Vec<Layer>,
    upsampler: Option<Upsample2D>,
}

/// Whether an [`UpBlock`] doubles its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upsampling {
    /// Twice the height and width.
    Double,
    /// The same size: the last block.
    Keep,
}

impl UpBlock {
    /// `prev_channels` come from the block below, `skip_channels` are those of the last skip connection.
    ///
    /// # Errors
    /// When `layers` is 0, or a tensor is missing or wrongly shaped.
    pub fn new(
        prev_channels: usize,
        skip_channels: usize,
        config: BlockConfig,
        upsampling: Upsampling,
        vb: VarBuilder,
    ) -> Result<Self> {
        let last = config.layers.checked_sub(1).ok_or_else(no_layers)?;
        let input = |i: usize| {
            let previous = if i == 0 { prev_channels } else { config.out_channels };
            previous + if i == last { skip_channels } else { config.out_channels }
        };
        let inputs: Vec<usize> = (0..config.layers).map(input).collect();
        let upsampler = match upsampling {
            Upsampling::Double => Some(Upsample2D::new(config.out_channels, vb.pp("upsamplers.0"))?),
            Upsampling::Keep => None,
        };
        Ok(Self { layers: config.layers(&inputs, &vb)?, upsampler })
    }

    /// `(batch, prev_channels, height, width)` to `(batch, out_channels, height', width')`. Skip connections are taken from the end of
    /// `res_samples`; what is doubled has then the size of the next one there, or exactly twice its own where none is left.
    ///
    /// # Errors
    /// When shapes do not fit, or there are too few skip connections.
    pub fn forward(
        &self,
        mut x: Tensor,
        temb: &Tensor,
        context: Context,
        res_samples: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for layer in &self.layers {
            let skip = res_samples.pop().ok_or_else(|| Error::Input {
                model: "UNet2DConditionModel",
                input: "up_block_types",
                problem: "want more skip connections than the way down left".into(),
            })?;
            let joined = cat(&[&x, &skip], 1)?;
            drop(skip);
            x = layer.forward(&joined, temb, context)?;
        }
        let Some(upsampler) = &self.upsampler else { return Ok(x) };
        let size = match res_samples.last() {
            Some(skip) => Some((skip.dim(2)?, skip.dim(3)?)),
            None => None,
        };
        upsampler.forward(&x, size)
    }
}

impl Layers for UpBlock {
    fn list_layers(&self, list: &mut LayerList) {
        list_each(&self.layers, list);
        list.add("upsamplers.0", &self.upsampler);
    }
}

/// The residual blocks and the transformers are numbered each for themselves.
fn list_each(layers: &[Layer], list: &mut LayerList) {
    for (i, layer) in layers.iter().enumerate() {
        list.add(&format!("resnets.{i}"), &layer.resnet);
        list.add(&format!("attentions.{i}"), &layer.attention);
    }
}

fn no_layers() -> Error {
    Error::Input { model: "UNet2DConditionModel", input: "layers_per_block", problem: "is 0".into() }
}
