//! Multi-head attention with its projections (`Attention` of diffusers' `models/attention_processor.py`).

use candle_core::{D, DType, Tensor};
use candle_nn::VarBuilder;

use crate::attention_processor::{AttentionInput, AttentionLayer, AttentionProcessor};
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
#[derive(Debug)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
    scale: f64,
    layer: AttentionLayer,
}

impl Clone for Attention {
    /// Shares the tensors; what is changed in one is not changed in the other.
    fn clone(&self) -> Self {
        Self {
            to_q: self.to_q.clone(),
            to_k: self.to_k.clone(),
            to_v: self.to_v.clone(),
            to_out: self.to_out.clone(),
            heads: self.heads,
            scale: self.scale,
            layer: self.layer.detached_copy(),
        }
    }
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
            layer: AttentionLayer::default(),
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
        self.forward_input(AttentionInput { hidden_states, context, mask, cache: None }, residual)
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
        let input = AttentionInput { hidden_states, context: text, mask, cache: Some(cache) };
        self.forward_input(input, residual)
    }

    fn forward_input(&self, input: AttentionInput<'_>, residual: Option<&Tensor>) -> Result<Tensor> {
        if let Some(processor) = self.layer.processor() {
            return self.forward_processed(processor.as_ref(), input, residual);
        }
        let query = self.query(input.hidden_states)?;
        let (key, value) = self.key_and_value(&input)?;
        let mixed = self.attend(&query, &key, &value, input.mask)?;
        match residual {
            Some(residual) => self.to_out.forward_add(&mixed, residual),
            None => self.to_out.forward(&mixed),
        }
    }

    fn forward_processed(
        &self,
        processor: &dyn AttentionProcessor,
        input: AttentionInput<'_>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let output = processor.forward(self, input)?;
        match residual {
            Some(residual) => Ok(candle_diffusers_kernels::add(&output, residual)?),
            None => Ok(output),
        }
    }

    /// How many heads there are.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// What scores are multiplied by.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// `(batch, tokens, query_dim)` to queries `(batch, tokens, heads * head_dim)`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn query(&self, hidden_states: &Tensor) -> Result<Tensor> {
        self.to_q.forward(hidden_states)
    }

    /// Keys and values of what is looked at, each `(batch, context_tokens, heads * head_dim)`; those of a text from the cache where there is one.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn key_and_value(&self, input: &AttentionInput<'_>) -> Result<(Tensor, Tensor)> {
        let context = input.context;
        let project = || Ok((self.to_k.forward(context)?, self.to_v.forward(context)?));
        match input.cache {
            Some(cache) => cache.key_and_value(self.to_k.layer(), context, project),
            None => project(),
        }
    }

    /// Attention itself, in one pass and without stored scores: `(batch, tokens, heads * head_dim)`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn attend(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        Ok(candle_diffusers_kernels::attention(query, key, value, self.heads, self.scale, mask)?)
    }

    /// How much each token looks at each of the context, in float32: `(batch, heads, tokens, context_tokens)`, where the last dimension sums to 1.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn probabilities(&self, query: &Tensor, key: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (query, key) = (self.split_heads(query)?, self.split_heads(key)?);
        let mut scores = (query.matmul(&key.transpose(2, 3)?.contiguous()?)? * self.scale)?;
        if let Some(mask) = mask {
            scores = scores.broadcast_add(&mask.to_dtype(DType::F32)?)?;
        }
        Ok(candle_nn::ops::softmax(&scores, D::Minus1)?)
    }

    /// Values by their [`probabilities`](Self::probabilities): `(batch, tokens, heads * head_dim)` in the dtype of `value`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn mix(&self, probabilities: &Tensor, value: &Tensor) -> Result<Tensor> {
        let mixed = probabilities.matmul(&self.split_heads(value)?)?;
        Ok(mixed.transpose(1, 2)?.flatten_from(2)?.to_dtype(value.dtype())?)
    }

    /// What has been mixed, projected back: `(batch, tokens, query_dim)`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn output(&self, mixed: &Tensor) -> Result<Tensor> {
        self.to_out.forward(mixed)
    }

    /// `(batch, tokens, heads * head_dim)` to `(batch, heads, tokens, head_dim)`, in float32.
    fn split_heads(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        let heads = x.to_dtype(DType::F32)?.reshape((batch, tokens, self.heads, width / self.heads))?;
        Ok(heads.transpose(1, 2)?.contiguous()?)
    }
}

impl Layers for Attention {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("to_q", &self.to_q);
        list.add("to_k", &self.to_k);
        list.add("to_v", &self.to_v);
        list.add("to_out.0", &self.to_out);
        list.add_attention(&self.layer);
    }
}
