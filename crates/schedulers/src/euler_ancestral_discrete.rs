//! Ancestral sampling with Euler's method: k-diffusion's `sample_euler_ancestral`.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{ConfigRecord, SchedulerConfig, check_field};
use crate::error::{Error, Result};
use crate::euler_discrete::{add_noise, euler_step, init_noise_sigma, predict_original, scale_model_input};
use crate::linear_combination::check_like_sample;
use crate::noise_schedule::{self, BetaFields, BetaSchedule};
use crate::reference_math::numpy_interp;
use crate::rng::NoiseSource;
use crate::scheduler::{PredictionType, Scheduler, StepOptions, StepOutput};
use crate::sigma_spacing::training_sigmas;
use crate::step_position::StepPosition;
use crate::timestep_spacing::{TimestepSpacing, float_timesteps};

const CLASS: &str = "EulerAncestralDiscreteScheduler";

/// The fields of an Euler ancestral `scheduler_config.json`, with diffusers' names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EulerAncestralDiscreteConfig {
    /// The timesteps that the model was trained on.
    pub num_train_timesteps: usize,
    /// The first beta.
    pub beta_start: f64,
    /// The last beta.
    pub beta_end: f64,
    /// How betas go from the first to the last: linear, scaled_linear or squaredcos_cap_v2.
    pub beta_schedule: BetaSchedule,
    /// Betas to use instead of a schedule.
    pub trained_betas: Option<Vec<f64>>,
    /// What the model predicts: epsilon or v_prediction.
    pub prediction_type: PredictionType,
    /// How inference timesteps are picked.
    pub timestep_spacing: TimestepSpacing,
    /// What is added to each timestep of leading spacing.
    pub steps_offset: i64,
    /// Rescale betas so that the last timestep is almost pure noise.
    pub rescale_betas_zero_snr: bool,
}

impl Default for EulerAncestralDiscreteConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
        }
    }
}

impl SchedulerConfig for EulerAncestralDiscreteConfig {
    const CLASS: &'static str = CLASS;
}

/// The Euler ancestral sampler, which removes more noise than a step needs and adds some back. Call
/// [`scale_model_input`](Scheduler::scale_model_input) before the model.
#[derive(Clone, Debug)]
pub struct EulerAncestralDiscreteScheduler {
    config: ConfigRecord<EulerAncestralDiscreteConfig>,
    alphas_cumprod: Vec<f32>,
    timesteps: Vec<f64>,
    sigmas: Vec<f32>,
    has_timesteps: bool,
    position: StepPosition,
}

impl EulerAncestralDiscreteScheduler {
    /// A scheduler with this config.
    ///
    /// # Errors
    /// If a field is out of range, naming it.
    pub fn new(config: EulerAncestralDiscreteConfig) -> Result<Self> {
        Self::build(ConfigRecord::new(config))
    }

    pub(crate) fn read(config: &Map<String, Value>, overrides: &Map<String, Value>) -> Result<Self> {
        Self::build(ConfigRecord::read(config, overrides)?)
    }

    fn build(config: ConfigRecord<EulerAncestralDiscreteConfig>) -> Result<Self> {
        let fields = &config.typed;
        let betas = BetaFields {
            class: CLASS,
            num_train_timesteps: fields.num_train_timesteps,
            beta_start: fields.beta_start,
            beta_end: fields.beta_end,
            beta_schedule: fields.beta_schedule,
            trained_betas: fields.trained_betas.as_deref(),
            rescale_betas_zero_snr: fields.rescale_betas_zero_snr,
        };
        let allowed = [BetaSchedule::Linear, BetaSchedule::ScaledLinear, BetaSchedule::SquaredcosCapV2];
        let mut alphas_cumprod = noise_schedule::alphas_cumprod(&betas, &allowed)?;
        noise_schedule::keep_sigmas_finite(&mut alphas_cumprod, fields.rescale_betas_zero_snr);
        let predicts =
            matches!(fields.prediction_type, PredictionType::Epsilon | PredictionType::VPrediction);
        check_field(CLASS, "prediction_type", "unsupported here", predicts, "epsilon or v_prediction")?;
        let timesteps = (0..fields.num_train_timesteps).rev().map(|timestep| timestep as f64).collect();
        let sigmas = training_sigmas(&alphas_cumprod).into_iter().rev().chain([0.0]).collect();
        let position = StepPosition::default();
        Ok(Self { config, alphas_cumprod, timesteps, sigmas, has_timesteps: false, position })
    }

    fn position(&mut self, timestep: f64) -> Result<usize> {
        if !self.has_timesteps {
            return Err(Error::NoTimesteps { scheduler: CLASS });
        }
        self.position.current(CLASS, &self.timesteps, timestep)
    }
}

impl Scheduler for EulerAncestralDiscreteScheduler {
    fn set_timesteps(&mut self, num_inference_steps: usize) -> Result<()> {
        let config = &self.config.typed;
        let (spacing, train, offset) =
            (config.timestep_spacing, config.num_train_timesteps, config.steps_offset);
        let timesteps = float_timesteps(CLASS, spacing, train, num_inference_steps, offset)?;
        let training = training_sigmas(&self.alphas_cumprod);
        let interpolated = timesteps.iter().map(|&timestep| numpy_interp(timestep, &training) as f32);
        self.sigmas = interpolated.chain([0.0]).collect();
        self.timesteps = timesteps;
        self.has_timesteps = true;
        self.position = StepPosition::default();
        Ok(())
    }

    fn set_begin_index(&mut self, begin_index: usize) {
        self.position.set_begin_index(begin_index);
    }

    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn sigmas(&self) -> Option<&[f32]> {
        Some(&self.sigmas)
    }

    fn alphas_cumprod(&self) -> &[f32] {
        &self.alphas_cumprod
    }

    fn init_noise_sigma(&self) -> f64 {
        init_noise_sigma(&self.sigmas, self.config.typed.timestep_spacing)
    }

    fn scale_model_input(&mut self, sample: &Tensor, timestep: f64) -> Result<Tensor> {
        let index = self.position(timestep)?;
        scale_model_input(sample, self.sigmas[index])
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        noise: &mut dyn NoiseSource,
        _options: &StepOptions,
    ) -> Result<StepOutput> {
        let index = self.position(timestep)?;
        check_like_sample("model_output", model_output, sample)?;
        let sample = sample.to_dtype(DType::F32)?;
        let (sigma_from, sigma_to) = (self.sigmas[index], self.sigmas[index + 1]);
        let prediction_type = self.config.typed.prediction_type;
        let pred_original_sample =
            predict_original(prediction_type, &sample, model_output, sigma_from, sigma_from)?;
        let (from_square, to_square) = (sigma_from * sigma_from, sigma_to * sigma_to);
        let sigma_up = (to_square * (from_square - to_square) / from_square).sqrt();
        let sigma_down = (to_square - sigma_up * sigma_up).sqrt();
        let step = f64::from(sigma_down - sigma_from);
        // Noise is drawn in the last step too, where none is added: the generator goes on as in the reference.
        let noise = noise.randn(sample.dims(), model_output.dtype(), model_output.device())?;
        check_like_sample("noise", &noise, &sample)?;
        let added = Some((f64::from(sigma_up), &noise));
        let dtype = model_output.dtype();
        let prev_sample = euler_step(&sample, &pred_original_sample, sigma_from, step, added, dtype)?;
        self.position.advance_from(index);
        Ok(StepOutput { prev_sample, pred_original_sample: Some(pred_original_sample) })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        let indices = self.position.noise_indices(CLASS, &self.timesteps, timesteps)?;
        add_noise(original_samples, noise, &self.sigmas, &indices, timesteps)
    }

    fn num_train_timesteps(&self) -> usize {
        self.config.typed.num_train_timesteps
    }

    fn class_name(&self) -> &'static str {
        CLASS
    }

    fn prediction_type(&self) -> PredictionType {
        self.config.typed.prediction_type
    }

    fn config(&self) -> Value {
        self.config.to_value()
    }
}
