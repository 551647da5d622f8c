//! Multi-head attention with its projections (`Attention` of diffusers' `models/attention_processor.py`).

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::error::Result;
use crate::layers::{LayerList, Layers, Linear};
use crate::text_cache::TextCache;

/// The sizes of an [`Attention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionConfig {
    /// Width of the tokens that ask, and of the result.
    pub query_dim: usize,
    /// Width of the tokens that are looked at; equal to `query_dim` in self-attention.
    pub context_dim: usize,
    /// Number of heads.
    pub heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

/// Projections to queries, keys and values, attention, and a projection back. State-dict keys `to_q`, `to_k`, `to_v` and
/// `to_out.0`.
#[derive(Clone, Debug)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
    scale: f64,
}

impl Attention {
    /// An attention whose `to_q`, `to_k` and `to_v` have no bias, as in transformer blocks.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(config: AttentionConfig, vb: VarBuilder) -> Result<Self> {
        Self::build(config, vb, Linear::without_bias)
    }

    /// An attention whose projections all have a bias, as in autoencoders.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn with_bias(config: AttentionConfig, vb: VarBuilder) -> Result<Self> {
        Self::build(config, vb, Linear::new)
    }

    fn build(
        config: AttentionConfig,
        vb: VarBuilder,
        projection: impl Fn(usize, usize, VarBuilder) -> Result<Linear>,
    ) -> Result<Self> {
        let AttentionConfig { query_dim, context_dim, heads, head_dim } = config;
        let inner = heads * head_dim;
        Ok(Self {
            to_q: projection(query_dim, inner, vb.pp("to_q"))?,
            to_k: projection(context_dim, inner, vb.pp("to_k"))?,
            to_v: projection(context_dim, inner, vb.pp("to_v"))?,
            to_out: Linear::new(inner, query_dim, vb.pp("to_out.0"))?,
            heads,
            scale: (head_dim as f64).powf(-0.5),
        })
    }

    /// `hidden_states` `(batch, tokens, query_dim)` attends to `context` `(batch, context_tokens, context_dim)`; the result is
    /// `(batch, tokens, query_dim)`, plus the `residual` where one is given. `mask` is added to the scores and broadcasts to `(batch, heads, tokens, context_tokens)`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(
        &self,
        hidden_states: &Tensor,
        context: &Tensor,
        mask: Option<&Tensor>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (key, value) = self.key_and_value(context)?;
        self.attend(hidden_states, &key, &value, mask, residual)
    }

    /// [`forward`](Self::forward) with a text as `context`, whose keys and values are in the cache from then on.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward_cached(
        &self,
        hidden_states: &Tensor,
        text: &Tensor,
        mask: Option<&Tensor>,
        residual: Option<&Tensor>,
        cache: &TextCache,
    ) -> Result<Tensor> {
        let (key, value) = cache.key_and_value(self.to_k.layer(), text, || self.key_and_value(text))?;
        self.attend(hidden_states, &key, &value, mask, residual)
    }

    fn key_and_value(&self, context: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((self.to_k.forward(context)?, self.to_v.forward(context)?))
    }

    fn attend(
        &self,
        hidden_states: &Tensor,
        key: &Tensor,
        value: &Tensor,
        mask: Option<&Tensor>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let query = self.to_q.forward(hidden_states)?;
        let mixed = candle_diffusers_kernels::attention(&query, key, value, self.heads, self.scale, mask)?;
        match residual {
            Some(residual) => self.to_out.forward_add(&mixed, residual),
            None => self.to_out.forward(&mixed),
        }
    }
}

impl Layers for Attention {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("to_q", &self.to_q);
        list.add("to_k", &self.to_k);
        list.add("to_v", &self.to_v);
        list.add("to_out.0", &self.to_out);
    }
}
