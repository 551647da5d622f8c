//! How inference timesteps are picked from the training ones (table 2 of <https://huggingface.co/papers/2305.08891>).

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::reference_math::numpy_linspace;

/// More inference steps than this are refused as a mistake.
pub(crate) const MAX_INFERENCE_STEPS: usize = 10_000;

/// How inference timesteps are picked from the training ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Evenly from the first to the last training timestep, both included.
    Linspace,
    /// Multiples of the step ratio from 0 on, plus `steps_offset`.
    Leading,
    /// From the last training timestep down by the step ratio.
    Trailing,
}

/// Integer timesteps, noisiest first, as DDPM, DDIM and PNDM space them.
pub(crate) fn integer_timesteps(
    class: &'static str,
    spacing: TimestepSpacing,
    num_train_timesteps: usize,
    num_inference_steps: usize,
    steps_offset: i64,
) -> Result<Vec<f64>> {
    check_steps(class, num_inference_steps, num_train_timesteps)?;
    let timesteps: Vec<f64> = match spacing {
        TimestepSpacing::Linspace => {
            let even = numpy_linspace(0.0, (num_train_timesteps - 1) as f64, num_inference_steps);
            even.into_iter().rev().map(f64::round_ties_even).collect()
        }
        TimestepSpacing::Leading => {
            leading(num_train_timesteps / num_inference_steps, num_inference_steps, steps_offset)
        }
        TimestepSpacing::Trailing => trailing(num_train_timesteps, num_train_timesteps, num_inference_steps),
    };
    let last = (num_train_timesteps - 1) as f64;
    if let Some(outside) = timesteps.iter().find(|timestep| !(0.0..=last).contains(*timestep)) {
        let message = format!(
            "{num_inference_steps} steps with steps_offset {steps_offset} need timestep {outside}, but the model was \
             trained on 0 to {last}; use fewer steps or another steps_offset"
        );
        return Err(Error::Timesteps { scheduler: class, message });
    }
    Ok(timesteps)
}

/// Fails unless there are 1 to `most` steps.
pub(crate) fn check_steps(class: &'static str, num_inference_steps: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&num_inference_steps) {
        return Ok(());
    }
    let message = format!("num_inference_steps is {num_inference_steps}; expected 1 to {most}");
    Err(Error::Timesteps { scheduler: class, message })
}

/// `count` multiples of `step_ratio` plus an offset, descending.
pub(crate) fn leading(step_ratio: usize, count: usize, steps_offset: i64) -> Vec<f64> {
    (0..count).rev().map(|index| (index * step_ratio) as f64 + steps_offset as f64).collect()
}

/// `np.arange(start, 0, -num_train_timesteps / num_inference_steps).round() - 1`.
pub(crate) fn trailing(start: usize, num_train_timesteps: usize, num_inference_steps: usize) -> Vec<f64> {
    let start = start as f64;
    let step = -(num_train_timesteps as f64 / num_inference_steps as f64);
    let count = (-start / step).ceil() as usize;
    // numpy takes the difference of the first two values for the step.
    let delta = (start + step) - start;
    (0..count).map(|index| (start + index as f64 * delta).round_ties_even() - 1.0).collect()
}

/// Timesteps, noisiest first, as float32 values that need not be integers: how the Euler schedulers space them.
pub(crate) fn float_timesteps(
    class: &'static str,
    spacing: TimestepSpacing,
    num_train_timesteps: usize,
    num_inference_steps: usize,
    steps_offset: i64,
) -> Result<Vec<f64>> {
    // Leading and trailing spacing need a step ratio of at least one.
    let most = match spacing {
        TimestepSpacing::Linspace => MAX_INFERENCE_STEPS,
        TimestepSpacing::Leading | TimestepSpacing::Trailing => num_train_timesteps,
    };
    check_steps(class, num_inference_steps, most)?;
    let timesteps = match spacing {
        TimestepSpacing::Linspace => {
            let mut even = numpy_linspace(0.0, (num_train_timesteps - 1) as f64, num_inference_steps);
            even.reverse();
            even
        }
        TimestepSpacing::Leading => {
            leading(num_train_timesteps / num_inference_steps, num_inference_steps, steps_offset)
        }
        TimestepSpacing::Trailing => trailing(num_train_timesteps, num_train_timesteps, num_inference_steps),
    };
    Ok(timesteps.into_iter().map(|timestep| f64::from(timestep as f32)).collect())
}
