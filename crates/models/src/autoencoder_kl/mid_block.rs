use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::AutoencoderKLConfig;
use super::config::NORM_EPS;
use crate::error::Result;
use crate::layers::{LayerList, Layers};
use crate::pixel_attention::{PixelAttention, PixelAttentionConfig};
use crate::resnet::ResnetBlock2D;

/// The middle of an encoder or decoder: a residual block, attention, a residual block (`UNetMidBlock2D` in diffusers).
#[derive(Clone, Debug)]
pub struct AutoencoderMidBlock2D {
    first: ResnetBlock2D,
    attention: Option<PixelAttention>,
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
            Some(PixelAttention::new(attention_config(channels, config), vb.pp("attentions.0"))?)
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
        x = self.first.forward(x, None)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.second.forward(x, None)
    }
}

impl Layers for AutoencoderMidBlock2D {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("resnets.0", &self.first);
        list.add("attentions.0", &self.attention);
        list.add("resnets.1", &self.second);
    }
}

/// One head as wide as the channels.
fn attention_config(channels: usize, config: &AutoencoderKLConfig) -> PixelAttentionConfig {
    PixelAttentionConfig {
        channels,
        head_dim: channels,
        groups: Some(config.norm_num_groups),
        eps: NORM_EPS,
        output_scale_factor: 1.0,
    }
}
