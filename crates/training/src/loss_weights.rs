//! How much the loss of each picture counts, by how noisy it is.

use candle_core::{Device, Tensor};
use candle_diffusers_schedulers::{PredictionType, Scheduler, compute_snr};

use crate::error::{Error, Result};

/// How losses at different timesteps are weighed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LossWeighting {
    /// All the same.
    #[default]
    Uniform,
    /// By the signal-to-noise ratio, but no more than `gamma`, which is usually 5 (`snr_gamma`, <https://arxiv.org/abs/2303.09556>).
    MinSnr {
        /// The most.
        gamma: f64,
    },
    /// By the signal-to-noise ratio alone: what diffusers' unconditional script does for models that predict the sample.
    Snr,
}

/// The weight of each picture of a batch in float32, shaped (batch); none where all count the same.
///
/// For Min-SNR the weight is min(snr, gamma) over the ratio that the prediction type has of itself: snr for epsilon, snr + 1 for velocity and 1 for
/// the sample. Where there is no signal at all (a schedule with a terminal signal of zero), that of epsilon is 1, its limit, and not 0 / 0 as in
/// the reference.
///
/// # Errors
/// If `gamma` is not positive or a timestep is not in the schedule.
pub fn loss_weights(
    scheduler: &dyn Scheduler,
    timesteps: &[f64],
    weighting: LossWeighting,
) -> Result<Option<Tensor>> {
    let snr = match weighting {
        LossWeighting::Uniform => return Ok(None),
        LossWeighting::MinSnr { gamma } if !(gamma.is_finite() && gamma > 0.0) => {
            let expected = "more than 0".to_string();
            return Err(Error::Field { field: "snr_gamma", found: gamma.to_string(), expected });
        }
        _ => compute_snr(scheduler, timesteps)?,
    };
    let weight = |snr: f32| match (weighting, scheduler.prediction_type()) {
        (LossWeighting::MinSnr { gamma }, PredictionType::Epsilon) if snr > 0.0 => {
            snr.min(gamma as f32) / snr
        }
        (LossWeighting::MinSnr { .. }, PredictionType::Epsilon) => 1.0,
        (LossWeighting::MinSnr { gamma }, PredictionType::VPrediction) => snr.min(gamma as f32) / (snr + 1.0),
        (LossWeighting::MinSnr { gamma }, _) => snr.min(gamma as f32),
        _ => snr,
    };
    let weights: Vec<f32> = snr.into_iter().map(weight).collect();
    Ok(Some(Tensor::new(weights, &Device::Cpu)?))
}
