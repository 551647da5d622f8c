//! The interface that all schedulers share.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::rng::NoiseSource;

/// What the model predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PredictionType {
    /// The noise that was added.
    Epsilon,
    /// The original sample.
    Sample,
    /// The velocity of Imagen Video, section 2.4 (<https://huggingface.co/papers/2210.02303>).
    VPrediction,
    /// The flow of flow matching: noise minus sample.
    FlowPrediction,
}

/// Options of a single step; each scheduler reads its own and ignores the others, as diffusers' pipelines pass only what a
/// scheduler takes. The default is diffusers' default.
#[derive(Clone, Debug)]
pub struct StepOptions {
    /// DDIM: the weight of the added noise, 0 for deterministic DDIM, 1 for DDPM (η of <https://huggingface.co/papers/2010.02502>).
    pub eta: f64,
    /// DDIM: derive the noise prediction again from the clipped original sample.
    pub use_clipped_model_output: bool,
    /// DDIM with `eta` > 0 and DPM-Solver SDE: this noise instead of some from the noise source; shaped as the sample.
    pub variance_noise: Option<Tensor>,
    /// Euler: how much noise to add before a step (Karras et al., algorithm 2, <https://huggingface.co/papers/2206.00364>).
    pub s_churn: f64,
    /// Euler: noise is added only from this sigma on.
    pub s_tmin: f64,
    /// Euler: noise is added only up to this sigma.
    pub s_tmax: f64,
    /// Euler: factor on the added noise.
    pub s_noise: f64,
}

impl Default for StepOptions {
    fn default() -> Self {
        Self {
            eta: 0.0,
            use_clipped_model_output: false,
            variance_noise: None,
            s_churn: 0.0,
            s_tmin: 0.0,
            s_tmax: f64::INFINITY,
            s_noise: 1.0,
        }
    }
}

/// What a step makes.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// The sample one step less noisy: the next model input, before [`Scheduler::scale_model_input`].
    pub prev_sample: Tensor,
    /// The denoised sample as far as it can be predicted now, where the reference gives it.
    pub pred_original_sample: Option<Tensor>,
}

/// A noise schedule and the rule to step along it.
///
/// Before [`set_timesteps`](Scheduler::set_timesteps) a scheduler stands on its training schedule, which is what
/// [`add_noise`](Scheduler::add_noise) and [`get_velocity`](Scheduler::get_velocity) use in training. Samples, model outputs
/// and noise are shaped (batch, channels, ...).
pub trait Scheduler: Send {
    /// Chooses `num_inference_steps` timesteps by the config's spacing and forgets all state of an earlier loop.
    ///
    /// # Errors
    /// If the number is 0 or more than the scheduler can take.
    fn set_timesteps(&mut self, num_inference_steps: usize) -> Result<()>;

    /// Takes these timesteps, in descending order, instead of choosing some.
    ///
    /// # Errors
    /// If the reference scheduler takes no timesteps, or not these.
    fn set_custom_timesteps(&mut self, _timesteps: &[f64]) -> Result<()> {
        let hint = "; DDPMScheduler, DPMSolverMultistepScheduler and EulerDiscreteScheduler do";
        Err(Error::Unsupported { scheduler: self.class_name(), operation: "custom timesteps", hint })
    }

    /// Takes these sigmas, in descending order and with the last one at which sampling ends (usually 0), instead of choosing
    /// some.
    ///
    /// # Errors
    /// If the reference scheduler takes no sigmas, or not these.
    fn set_custom_sigmas(&mut self, _sigmas: &[f64]) -> Result<()> {
        let hint = "; EulerDiscreteScheduler does";
        Err(Error::Unsupported { scheduler: self.class_name(), operation: "custom sigmas", hint })
    }

    /// The index in [`timesteps`](Scheduler::timesteps) at which a loop starts that leaves out the first ones
    /// (image-to-image). Call it after `set_timesteps`, where timesteps may occur twice; schedulers that keep no position
    /// ignore it.
    fn set_begin_index(&mut self, _begin_index: usize) {}

    /// The timesteps to go through, noisiest first: exact integers, or the exact float32 values of Euler schedulers.
    fn timesteps(&self) -> &[f64];

    /// The noise level at each timestep and the final one, for schedulers that step along sigmas.
    fn sigmas(&self) -> Option<&[f32]> {
        None
    }

    /// The cumulative product of (1 - beta) at each training timestep.
    fn alphas_cumprod(&self) -> &[f32];

    /// The standard deviation that the first sample must have: multiply standard normal noise by it.
    fn init_noise_sigma(&self) -> f64;

    /// The model's input at `timestep`: the sample, scaled where the algorithm asks for it.
    ///
    /// # Errors
    /// If the timestep is not the one whose turn it is.
    fn scale_model_input(&mut self, sample: &Tensor, timestep: f64) -> Result<Tensor>;

    /// Goes one step, from `timestep` to the next one, by the model's output for the scaled sample.
    ///
    /// # Errors
    /// If `set_timesteps` was not called, the timestep is not the one whose turn it is, or shapes disagree.
    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        noise: &mut dyn NoiseSource,
        options: &StepOptions,
    ) -> Result<StepOutput>;

    /// The original samples with noise as at the given timesteps: one for each picture of the batch, or one for all.
    ///
    /// # Errors
    /// If shapes disagree or a timestep is not in the schedule.
    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor>;

    /// The velocity that a v-prediction model should predict: sqrt(ᾱ) noise - sqrt(1 - ᾱ) sample.
    ///
    /// # Errors
    /// If the reference scheduler has none, shapes disagree or a timestep is not in the schedule.
    fn get_velocity(&self, _sample: &Tensor, _noise: &Tensor, _timesteps: &[f64]) -> Result<Tensor> {
        let hint = "; DDPMScheduler, DDIMScheduler and EulerDiscreteScheduler do";
        Err(Error::Unsupported { scheduler: self.class_name(), operation: "get_velocity", hint })
    }

    /// Model evaluations for each reported step, as in diffusers: 1 for all schedulers here.
    fn order(&self) -> usize {
        1
    }

    /// The timesteps that the model was trained on.
    fn num_train_timesteps(&self) -> usize;

    /// diffusers' name of the class.
    fn class_name(&self) -> &'static str;

    /// What the model predicts.
    fn prediction_type(&self) -> PredictionType;

    /// The config as diffusers' `scheduler.config` has it, to build another scheduler from: every field, the hidden ones
    /// that came with the config, `_class_name`, and in `_use_default_values` the fields that were not given. Write it
    /// to `scheduler_config.json` with [`config_to_json`](crate::config_to_json).
    fn config(&self) -> serde_json::Value;
}
