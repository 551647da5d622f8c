//! Which of a scheduler's timesteps are gone through.

use std::ops::Range;

use candle_diffusers_schedulers::Scheduler;

/// The first of `steps` that image to image takes: the last `strength` of them, rounded down. None where no step is left.
pub fn first_step(steps: usize, strength: f64) -> Option<usize> {
    let taken = ((steps as f64 * strength) as usize).min(steps);
    (taken > 0).then_some(steps - taken)
}

/// The steps from `first` on that are taken until `denoising_end` of the denoising is done (0 to 1), for another model to go on from there.
///
/// What counts is the timestep, not the number of steps: those are taken that are not below `1 - denoising_end` of the training's.
pub fn steps_until(scheduler: &dyn Scheduler, first: usize, denoising_end: f64) -> Range<usize> {
    let end = cutoff(scheduler, denoising_end);
    let left = scheduler.timesteps().get(first..).unwrap_or(&[]);
    first..first + left.iter().filter(|timestep| **timestep >= end).count()
}

/// The first step of a model that goes on where `denoising_start` of the denoising is done (0 to 1): the counterpart of [`steps_until`].
pub fn first_step_from(scheduler: &dyn Scheduler, denoising_start: f64) -> usize {
    let start = cutoff(scheduler, denoising_start);
    let timesteps = scheduler.timesteps();
    let mut taken = timesteps.iter().filter(|timestep| **timestep < start).count();
    // Where each timestep but the first is there twice, a step is not cut in its middle.
    if scheduler.order() == 2 && taken.is_multiple_of(2) {
        taken += 1;
    }
    timesteps.len().saturating_sub(taken)
}

/// The timestep at which this much is done; rounded as Python does it.
fn cutoff(scheduler: &dyn Scheduler, done: f64) -> f64 {
    let all = scheduler.num_train_timesteps() as f64;
    (all - done * all).round_ties_even()
}
