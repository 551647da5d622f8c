//! The keys and values that cross-attention makes of a text, kept from step to step.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{Tensor, TensorId};

use crate::error::Result;
use crate::layers::Layer;

/// What each cross-attention of a UNet has made of a text: its keys and values. They do not change from one step of a denoising run to the
/// next, so that a run which gives the UNet the same cache with each step ([`UNetConditions::text_cache`](crate::UNetConditions)) computes
/// them once.
///
/// They are of the very tensor that they were made of; for another one they are computed anew. A weight or an adapter that changes in
/// between is not noticed: begin with a new cache then.
#[derive(Debug, Default)]
pub struct TextCache {
    /// By the address of the layer that makes the keys.
    entries: Mutex<HashMap<usize, Entry>>,
}

#[derive(Clone, Debug)]
struct Entry {
    text: TensorId,
    /// Held, so that its address remains its own.
    _layer: Layer,
    key: Tensor,
    value: Tensor,
}

impl TextCache {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The keys and values that the attention with this `to_k` has of the text; `project` makes them.
    pub(crate) fn key_and_value(
        &self,
        to_k: &Layer,
        text: &Tensor,
        project: impl FnOnce() -> Result<(Tensor, Tensor)>,
    ) -> Result<(Tensor, Tensor)> {
        let address = to_k.address();
        // Not held while they are computed: UNets that share a cache on several threads do not wait for each other.
        let known = self.lock().get(&address).filter(|entry| entry.text == text.id()).cloned();
        if let Some(Entry { key, value, .. }) = known {
            return Ok((key, value));
        }
        let (key, value) = project()?;
        let entry = Entry { text: text.id(), _layer: to_k.clone(), key: key.clone(), value: value.clone() };
        self.lock().insert(address, entry);
        Ok((key, value))
    }

    // Nothing can fail while it is held, so that a poisoned one guards a whole table.
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
