//! What a model is to predict.

use candle_core::Tensor;
use candle_diffusers_schedulers::{PredictionType, Scheduler};

use crate::error::{Error, Result};

/// What a model should predict for noisy latents: the noise, the velocity or the latents, as the scheduler's `prediction_type` says.
///
/// # Errors
/// If the scheduler has another prediction type, or shapes and timesteps do not fit.
pub fn training_target(
    scheduler: &dyn Scheduler,
    latents: &Tensor,
    noise: &Tensor,
    timesteps: &[f64],
) -> Result<Tensor> {
    match scheduler.prediction_type() {
        PredictionType::Epsilon => Ok(noise.clone()),
        PredictionType::Sample => Ok(latents.clone()),
        PredictionType::VPrediction => Ok(scheduler.get_velocity(latents, noise, timesteps)?),
        other => Err(Error::Field {
            field: "prediction_type",
            found: format!("{other:?}"),
            expected: "one of epsilon, sample, v_prediction".to_string(),
        }),
    }
}
