//! The transformer between a UNet's residual blocks (diffusers' `models/transformers/transformer_2d.py` and `models/attention.py`).

use candle_core::Tensor;
use candle_diffusers_kernels::{add, pixels_to_tokens, tokens_to_pixels};
use candle_nn::VarBuilder;

use crate::attention::{Attention, AttentionConfig};
use crate::error::Result;
use crate::layers::{Conv2d, GroupNorm, LayerList, LayerNorm, Layers, Linear};
use crate::text_cache::TextCache;

/// The epsilon of a [`Transformer2DModel`]'s group norm; not a config field in the reference either.
const GROUP_NORM_EPS: f64 = 1e-6;
/// The epsilon of a [`BasicTransformerBlock`]'s layer norms; not a config field in the reference either.
const LAYER_NORM_EPS: f64 = 1e-5;

/// The sizes of a [`Transformer2DModel`].
#[derive(Clone, Copy, Debug)]
pub struct Transformer2DConfig {
    /// Channels of the picture.
    pub in_channels: usize,
    /// Number of heads of each attention.
    pub heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Width of the text embeddings.
    pub cross_attention_dim: usize,
    /// `norm_num_groups`.
    pub norm_num_groups: usize,
    /// The projections in and out are linear layers instead of 1x1 convolutions.
    pub use_linear_projection: bool,
    /// The first attention of each block looks at the text too, instead of at the picture itself.
    pub only_cross_attention: bool,
}

/// Text, as the attentions of a UNet see it.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// `(batch, text_tokens, cross_attention_dim)`.
    pub encoder_hidden_states: &'a Tensor,
    /// Added to the scores of cross-attention, `(batch, 1, 1, text_tokens)`.
    pub mask: Option<&'a Tensor>,
    /// Where keys and values of the text are kept.
    pub cache: Option<&'a TextCache>,
    /// Blocks keep their inputs only, and compute the rest again for the gradients.
    pub gradient_checkpointing: bool,
}

/// A picture's pixels as tokens: projected in, through transformer blocks, projected out, added to the picture.
#[derive(Clone, Debug)]
pub struct Transformer2DModel {
    norm: GroupNorm,
    projection: Projection,
    transformer_blocks: Vec<BasicTransformerBlock>,
}

/// How pixels become tokens and tokens pixels: `use_linear_projection`.
#[derive(Clone, Debug)]
enum Projection {
    Conv { proj_in: Conv2d, proj_out: Conv2d },
    Linear { proj_in: Linear, proj_out: Linear },
}

impl Transformer2DModel {
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(config: Transformer2DConfig, vb: VarBuilder) -> Result<Self> {
        let channels = config.in_channels;
        let inner_dim = config.heads * config.head_dim;
        let (vb_in, vb_out) = (vb.pp("proj_in"), vb.pp("proj_out"));
        let projection = if config.use_linear_projection {
            Projection::Linear {
                proj_in: Linear::new(channels, inner_dim, vb_in)?,
                proj_out: Linear::new(inner_dim, channels, vb_out)?,
            }
        } else {
            Projection::Conv {
                proj_in: Conv2d::same_size(channels, inner_dim, 1, vb_in)?,
                proj_out: Conv2d::same_size(inner_dim, channels, 1, vb_out)?,
            }
        };
        let blocks = vb.pp("transformer_blocks");
        Ok(Self {
            norm: GroupNorm::new(config.norm_num_groups, channels, GROUP_NORM_EPS, vb.pp("norm"))?,
            projection,
            transformer_blocks: (0..config.layers)
                .map(|i| BasicTransformerBlock::new(config, blocks.pp(i)))
                .collect::<Result<_>>()?,
        })
    }

    /// `(batch, in_channels, height, width)`, same shape out.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor, context: Context) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let normed = self.norm.forward(x)?;
        let mut tokens = match &self.projection {
            Projection::Conv { proj_in, .. } => pixels_to_tokens(&proj_in.forward(&normed)?)?,
            Projection::Linear { proj_in, .. } => proj_in.forward(&pixels_to_tokens(&normed)?)?,
        };
        for block in &self.transformer_blocks {
            tokens = block.forward(&tokens, context)?;
        }
        match &self.projection {
            Projection::Conv { proj_out, .. } => {
                proj_out.forward_add(&tokens_to_pixels(&tokens, height, width)?, x)
            }
            Projection::Linear { proj_out, .. } => {
                Ok(add(&tokens_to_pixels(&proj_out.forward(&tokens)?, height, width)?, x)?)
            }
        }
    }
}

impl Layers for Transformer2DModel {
    fn list_layers(&self, list: &mut LayerList) {
        match &self.projection {
            Projection::Conv { proj_in, proj_out } => {
                list.add("proj_in", proj_in);
                list.add("proj_out", proj_out);
            }
            Projection::Linear { proj_in, proj_out } => {
                list.add("proj_in", proj_in);
                list.add("proj_out", proj_out);
            }
        }
        list.add_each("transformer_blocks", &self.transformer_blocks);
    }
}

/// Self-attention, cross-attention and a feed-forward, each added to its normalised input.
#[derive(Clone, Debug)]
pub struct BasicTransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
    only_cross_attention: bool,
}

impl BasicTransformerBlock {
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(config: Transformer2DConfig, vb: VarBuilder) -> Result<Self> {
        let Transformer2DConfig { heads, head_dim, cross_attention_dim, only_cross_attention, .. } = config;
        let dim = heads * head_dim;
        let attention = |context_dim, name: &str| {
            Attention::new(AttentionConfig { query_dim: dim, context_dim, heads, head_dim }, vb.pp(name))
        };
        let first_context = if only_cross_attention { cross_attention_dim } else { dim };
        Ok(Self {
            norm1: LayerNorm::new(dim, LAYER_NORM_EPS, vb.pp("norm1"))?,
            attn1: attention(first_context, "attn1")?,
            norm2: LayerNorm::new(dim, LAYER_NORM_EPS, vb.pp("norm2"))?,
            attn2: attention(cross_attention_dim, "attn2")?,
            norm3: LayerNorm::new(dim, LAYER_NORM_EPS, vb.pp("norm3"))?,
            ff: FeedForward::new(dim, vb.pp("ff"))?,
            only_cross_attention,
        })
    }

    /// `(batch, tokens, dim)`, same shape out.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, tokens: &Tensor, context: Context) -> Result<Tensor> {
        let text = context.encoder_hidden_states;
        let normed = self.norm1.forward(tokens)?;
        let looking_at_text =
            |attention: &Attention, normed: &Tensor, mask, residual: &Tensor| match context.cache {
                Some(cache) => attention.forward_cached(normed, text, mask, Some(residual), cache),
                None => attention.forward(normed, text, mask, Some(residual)),
            };
        let tokens = &if self.only_cross_attention {
            looking_at_text(&self.attn1, &normed, None, tokens)?
        } else {
            self.attn1.forward(&normed, &normed, None, Some(tokens))?
        };
        let tokens = &looking_at_text(&self.attn2, &self.norm2.forward(tokens)?, context.mask, tokens)?;
        self.ff.forward_add(&self.norm3.forward(tokens)?, tokens)
    }
}

impl Layers for BasicTransformerBlock {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("attn1", &self.attn1);
        list.add("attn2", &self.attn2);
        list.add("ff", &self.ff);
    }
}

/// To eight times the width, gated GELU, and back from four. State-dict keys `net.0.proj` and `net.2`.
#[derive(Clone, Debug)]
pub struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(dim: usize, vb: VarBuilder) -> Result<Self> {
        let proj = Linear::new(dim, dim * 8, vb.pp("net.0.proj"))?;
        Ok(Self { proj, out: Linear::new(dim * 4, dim, vb.pp("net.2"))? })
    }

    /// `(batch, tokens, dim)`, same shape out.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.out.forward(&self.proj.forward_geglu(x)?)
    }

    /// [`forward`](Self::forward) plus `residual`, which has the same shape.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.out.forward_add(&self.proj.forward_geglu(x)?, residual)
    }
}

impl Layers for FeedForward {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("net.0.proj", &self.proj);
        list.add("net.2", &self.out);
    }
}
