//! Attention that is computed otherwise than the model would: diffusers' attention processors.

use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock};

use candle_core::Tensor;

use crate::attention::Attention;
use crate::error::Result;
use crate::text_cache::TextCache;

/// What takes the place of the computation of one attention layer, put there from outside ([`AttentionLayer::set_processor`]): the
/// model does not know of it.
///
/// A processor has the layer's own steps at hand, so that it writes down only what is different:
///
/// ```
/// use candle_core::Tensor;
/// use candle_diffusers_models::attention::Attention;
/// use candle_diffusers_models::{AttentionInput, AttentionProcessor, Result};
///
/// /// Computes what the model would.
/// #[derive(Debug)]
/// struct Plain;
///
/// impl AttentionProcessor for Plain {
///     fn forward(&self, attention: &Attention, input: AttentionInput<'_>) -> Result<Tensor> {
///         let query = attention.query(input.hidden_states)?;
///         let (key, value) = attention.key_and_value(&input)?;
///         let probabilities = attention.probabilities(&query, &key, input.mask)?;
///         attention.output(&attention.mix(&probabilities, &value)?)
///     }
/// }
/// ```
pub trait AttentionProcessor: Debug + Send + Sync {
    /// What the layer makes of its input, `(batch, tokens, query_dim)`; what it is added to is not in it.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    fn forward(&self, attention: &Attention, input: AttentionInput<'_>) -> Result<Tensor>;
}

/// What an attention layer is given.
#[derive(Clone, Copy, Debug)]
pub struct AttentionInput<'a> {
    /// What asks, `(batch, tokens, query_dim)`.
    pub hidden_states: &'a Tensor,
    /// What is looked at, `(batch, context_tokens, context_dim)`: a text, or in self-attention `hidden_states` itself.
    pub context: &'a Tensor,
    /// Added to the scores; broadcasts to `(batch, heads, tokens, context_tokens)`.
    pub mask: Option<&'a Tensor>,
    /// Where keys and values of a text are kept, which [`Attention::key_and_value`] knows.
    pub cache: Option<&'a TextCache>,
}

impl AttentionInput<'_> {
    /// Whether something else is looked at than what asks.
    pub fn is_cross_attention(&self) -> bool {
        self.context.id() != self.hidden_states.id()
    }
}

/// An attention layer of a model, to be given a processor through a shared reference; all of a model's are listed by
/// [`Layers::attentions`](crate::layers::Layers::attentions).
///
/// This is a handle: its clones, and the [`Attention`] that it came from, have one processor. (The clone of a model has layers of its own,
/// with the processors that the model's have.) A change takes effect with the layer's next forward.
#[derive(Debug, Default)]
pub struct AttentionLayer {
    processor: Arc<RwLock<Option<Arc<dyn AttentionProcessor>>>>,
}

impl AttentionLayer {
    /// Computes by this processor from now on, or with `None` as the model does, and gives back the processor from before.
    pub fn set_processor(
        &self,
        processor: Option<Arc<dyn AttentionProcessor>>,
    ) -> Option<Arc<dyn AttentionProcessor>> {
        let mut slot = self.processor.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *slot, processor)
    }

    /// The processor; `None` where the layer computes as the model does.
    pub fn processor(&self) -> Option<Arc<dyn AttentionProcessor>> {
        self.processor.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another layer that begins with the same processor.
    pub(crate) fn detached_copy(&self) -> Self {
        Self { processor: Arc::new(RwLock::new(self.processor())) }
    }
}

impl Clone for AttentionLayer {
    /// Another handle of the same layer.
    fn clone(&self) -> Self {
        Self { processor: self.processor.clone() }
    }
}
