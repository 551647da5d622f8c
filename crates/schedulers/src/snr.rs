//! The signal-to-noise ratio of training timesteps, by which losses are weighted.

use crate::error::Result;
use crate::scheduler::Scheduler;
use crate::variance_preserving::training_index;

/// ᾱ / (1 - ᾱ) at each training timestep, in float32 as diffusers' `training_utils.compute_snr` (for the weights of
/// <https://huggingface.co/papers/2303.09556>).
///
/// # Errors
/// If a timestep is no integer or not below `num_train_timesteps`.
pub fn compute_snr(scheduler: &dyn Scheduler, timesteps: &[f64]) -> Result<Vec<f32>> {
    let alphas_cumprod = scheduler.alphas_cumprod();
    let snr = |&timestep: &f64| {
        let index = training_index(scheduler.class_name(), timestep, alphas_cumprod.len())?;
        let (alpha, sigma) = (alphas_cumprod[index].sqrt(), (1.0 - alphas_cumprod[index]).sqrt());
        Ok((alpha / sigma) * (alpha / sigma))
    };
    timesteps.iter().map(snr).collect()
}
