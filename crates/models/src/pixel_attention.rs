//! Attention of all pixels of a picture to each other, as autoencoders and unconditional UNets have it (`Attention` of diffusers'
//! `models/attention_processor.py`, where it takes the place of its old `AttentionBlock`).

use candle_core::Tensor;
use candle_diffusers_kernels::{add, pixels_to_tokens, tokens_to_pixels};
use candle_nn::VarBuilder;

use crate::attention::{Attention, AttentionConfig};
use crate::error::Result;
use crate::layers::{GroupNorm, LayerList, Layers};

/// The sizes of a [`PixelAttention`].
#[derive(Clone, Copy, Debug)]
pub struct PixelAttentionConfig {
    /// Of the picture.
    pub channels: usize,
    /// Width of one head; there are as many as the channels hold.
    pub head_dim: usize,
    /// Groups of the normalisation before; `None`: it is not normalised.
    pub groups: Option<usize>,
    /// Of the normalisation.
    pub eps: f64,
    /// The sum with the input is divided by this.
    pub output_scale_factor: f64,
}

/// Pixels are normalised, look at each other, and are added to what they were. State-dict keys: `group_norm`, `to_q`, `to_k`, `to_v`,
/// `to_out.0`.
#[derive(Clone, Debug)]
pub struct PixelAttention {
    group_norm: Option<GroupNorm>,
    attention: Attention,
    output_scale_factor: f64,
}

impl PixelAttention {
    /// # Errors
    /// When a tensor is missing or wrongly shaped, or the groups do not divide the channels.
    pub fn new(config: PixelAttentionConfig, vb: VarBuilder) -> Result<Self> {
        let PixelAttentionConfig { channels, head_dim, groups, eps, output_scale_factor } = config;
        let group_norm = match groups {
            Some(groups) => Some(GroupNorm::new(groups, channels, eps, vb.pp("group_norm"))?),
            None => None,
        };
        let heads = channels / head_dim.max(1);
        let sizes = AttentionConfig { query_dim: channels, context_dim: channels, heads, head_dim };
        Ok(Self { group_norm, attention: Attention::with_bias(sizes, vb)?, output_scale_factor })
    }

    /// `(batch, channels, height, width)`, same shape out.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let pixels = match &self.group_norm {
            Some(norm) => pixels_to_tokens(&norm.forward(x)?)?,
            None => pixels_to_tokens(x)?,
        };
        let mixed = self.attention.forward(&pixels, &pixels, None, None)?;
        let sum = add(&tokens_to_pixels(&mixed, height, width)?, x)?;
        if self.output_scale_factor == 1.0 {
            return Ok(sum);
        }
        Ok((sum / self.output_scale_factor)?)
    }
}

impl Layers for PixelAttention {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("group_norm", &self.group_norm);
        self.attention.list_layers(list);
    }
}
