use candle_core::Tensor;

use crate::error::{Result, argument};
use crate::stable_diffusion::Schedule;

/// What to paint. The defaults are those of diffusers.
#[derive(Clone, Debug)]
pub struct Unconditional {
    /// How many pictures.
    pub batch_size: usize,
    /// How many steps, or which; where not given, as many as
    /// [`default_steps`](super::UnconditionalPipeline::default_steps) says.
    pub schedule: Option<Schedule>,
    /// DDIM's eta: 0 adds no noise on the way, 1 as much as DDPM. Other schedulers ignore it.
    pub eta: f64,
    /// DDIM: the noise is derived again from the clipped picture in each step.
    pub use_clipped_model_output: bool,
    /// For class-conditional models one label a picture, `(batch_size)`; for those with `class_embed_type` `identity` vectors.
    pub class_labels: Option<Tensor>,
    /// Pixels; the model's own size where not given.
    pub width: Option<usize>,
    /// Pixels; the model's own size where not given.
    pub height: Option<usize>,
}

impl Default for Unconditional {
    fn default() -> Self {
        Self {
            batch_size: 1,
            schedule: None,
            eta: 0.0,
            use_clipped_model_output: false,
            class_labels: None,
            width: None,
            height: None,
        }
    }
}

impl Unconditional {
    /// What can be told without a model.
    pub(super) fn check(&self) -> Result<()> {
        if self.batch_size == 0 {
            return argument("batch_size", "is 0, expected 1 or more");
        }
        if !(self.eta.is_finite() && self.eta >= 0.0) {
            return argument("eta", format!("is {}, expected 0 or more", self.eta));
        }
        match &self.class_labels {
            Some(labels) if labels.dims().first() != Some(&self.batch_size) => argument(
                "class_labels",
                format!("are {:?}, expected ({}, ...), one a picture", labels.dims(), self.batch_size),
            ),
            _ => Ok(()),
        }
    }
}
