use candle_core::Tensor;
use candle_diffusers_kernels::{add, pixels_to_tokens, tokens_to_pixels};
use candle_nn::VarBuilder;

use super::AutoencoderKLConfig;
use super::config::NORM_EPS;
use crate::error::Result;
use crate::layers::{GroupNorm, LayerList, Layers, Linear};
use crate::resnet::ResnetBlock2D;

/// The middle of an encoder or decoder: a residual block, attention, a residual block (`UNetMidBlock2D` in diffusers).
#[derive(Clone, Debug)]
pub struct AutoencoderMidBlock2D {
    first: ResnetBlock2D,
    attention: Option<AutoencoderAttention>,
    second: ResnetBlock2D,
}

impl AutoencoderMidBlock2D {
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(channels: usize, config: &AutoencoderKLConfig, vb: VarBuilder) -> Result<Self> {
        let resnet = |index: usize| {
            ResnetBlock2D::new(channels, channels, config.resnet_config(), vb.pp("resnets").pp(index))
        };
        let attention = if config.mid_block_add_attention {
            let attention = vb.pp("attentions.0");
            Some(AutoencoderAttention::new(channels, config.norm_num_groups, attention)?)
        } else {
            None
        };
        Ok(Self { first: resnet(0)?, attention, second: resnet(1)? })
    }

    /// `(batch, channels, height, width)`, same shape out. Takes the tensor, so that its memory is free as soon as it can be.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        x = self.first.forward(&x, None)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.second.forward(&x, None)
    }
}

impl Layers for AutoencoderMidBlock2D {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("resnets.0", &self.first);
        list.add("attentions.0", &self.attention);
        list.add("resnets.1", &self.second);
    }
}

/// Attention of all pixels to each other with one head as wide as the channels, normalised before and added to its input.
#[derive(Clone, Debug)]
pub struct AutoencoderAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    scale: f64,
}

impl AutoencoderAttention {
    /// State-dict keys: `group_norm`, `to_q`, `to_k`, `to_v`, `to_out.0`.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped, or `groups` does not divide the channels.
    pub fn new(channels: usize, groups: usize, vb: VarBuilder) -> Result<Self> {
        let linear = |name| Linear::new(channels, channels, vb.pp(name));
        Ok(Self {
            group_norm: GroupNorm::new(groups, channels, NORM_EPS, vb.pp("group_norm"))?,
            to_q: linear("to_q")?,
            to_k: linear("to_k")?,
            to_v: linear("to_v")?,
            to_out: linear("to_out.0")?,
            scale: (channels as f64).powf(-0.5),
        })
    }

    /// `(batch, channels, height, width)`, same shape out.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let pixels = pixels_to_tokens(&self.group_norm.forward(x)?)?;
        let query = self.to_q.forward(&pixels)?;
        let key = self.to_k.forward(&pixels)?;
        let value = self.to_v.forward(&pixels)?;
        let mixed = candle_diffusers_kernels::attention(&query, &key, &value, 1, self.scale, None)?;
        let mixed = tokens_to_pixels(&self.to_out.forward(&mixed)?, height, width)?;
        Ok(add(&mixed, x)?)
    }
}

impl Layers for AutoencoderAttention {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("group_norm", &self.group_norm);
        list.add("to_q", &self.to_q);
        list.add("to_k", &self.to_k);
        list.add("to_v", &self.to_v);
        list.add("to_out.0", &self.to_out);
    }
}
