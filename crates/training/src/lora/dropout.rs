//! Numbers of a layer's input that are left out.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Tensor};
use candle_diffusers_models::gradient_checkpointing::is_recomputing;
use candle_diffusers_schedulers::TorchGenerator;

use crate::processes::{BatchShare, RandomSource, ShareOfRandom};

/// What all layers of a LoRA draw from.
#[derive(Debug)]
pub(super) struct Dropout {
    share: f64,
    /// None between steps.
    random: Mutex<Option<Random>>,
}

/// The next numbers, and which part of them this process sees.
type Random = (TorchGenerator, BatchShare);

impl Dropout {
    pub(super) fn new(share: f64) -> Self {
        Self { share, random: Mutex::new(beginning()) }
    }

    /// Begins a step, whose numbers follow from the seed alone; `batches` is which part of them this process sees.
    pub(super) fn begin_step(&self, seed: u64, batches: BatchShare) {
        self.set(Some((TorchGenerator::new(seed), batches)));
    }

    /// Leaves nothing out until the next step begins.
    pub(super) fn end_step(&self) {
        self.set(None);
    }

    fn set(&self, random: Option<Random>) {
        *self.random.lock().unwrap_or_else(PoisonError::into_inner) = random;
    }
}

fn beginning() -> Option<Random> {
    Some((TorchGenerator::new(0), BatchShare::default()))
}

/// Which numbers one layer leaves out, drawn afresh in each step.
#[derive(Debug)]
pub(super) struct LayerDropout {
    shared: Arc<Dropout>,
    /// What the last were drawn from: where the layer is computed again for its gradients, the same are left out again.
    last: Mutex<Option<Random>>,
}

impl LayerDropout {
    pub(super) fn new(shared: Arc<Dropout>) -> Self {
        Self { shared, last: Mutex::new(beginning()) }
    }

    /// Zeros where a number is left out, and what makes up for them elsewhere, in the shape and dtype of `input`; none between steps, where nothing is left out.
    pub(super) fn draw(&self, input: &Tensor) -> candle_diffusers_models::Result<Option<Tensor>> {
        let mut random = self.shared.random.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_recomputing() {
            *last = random.clone();
        }
        let mut again = last.clone();
        let next = if is_recomputing() { &mut again } else { &mut *random };
        let Some((generator, share)) = next else { return Ok(None) };
        let drawn = ShareOfRandom { generator, share: *share }
            .rand(input.dims(), DType::F32, input.device())
            .map_err(candle_core::Error::wrap)?;
        let share = self.shared.share;
        let kept = (drawn.ge(share)?.to_dtype(DType::F32)? / (1.0 - share))?;
        Ok(Some(kept.to_dtype(input.dtype())?))
    }
}
