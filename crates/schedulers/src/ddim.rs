//! Denoising diffusion implicit models (Song et al., <https://huggingface.co/papers/2010.02502>).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{ConfigRecord, SchedulerConfig, check_field};
use crate::error::{Error, Result};
use crate::linear_combination::{LinearCombination, check_like_sample, promoted};
use crate::noise_schedule::{self, BetaFields, BetaSchedule};
use crate::rng::NoiseSource;
use crate::scheduler::{PredictionType, Scheduler, StepOptions, StepOutput};
use crate::thresholding::Thresholding;
use crate::timestep_spacing::{TimestepSpacing, integer_timesteps};
use crate::variance_preserving::{self, describe_timesteps, predict_original, training_index};

const CLASS: &str = "DDIMScheduler";

/// The fields of a DDIM `scheduler_config.json`, with diffusers' names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DdimConfig {
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
    /// Clip the predicted original sample.
    pub clip_sample: bool,
    /// Let ᾱ before the first timestep be 1 instead of that of timestep 0.
    pub set_alpha_to_one: bool,
    /// What is added to each timestep of leading spacing.
    pub steps_offset: i64,
    /// What the model predicts: epsilon, sample or v_prediction.
    pub prediction_type: PredictionType,
    /// Threshold the predicted original sample dynamically.
    pub thresholding: bool,
    /// The quantile for dynamic thresholding.
    pub dynamic_thresholding_ratio: f64,
    /// The range to clip to.
    pub clip_sample_range: f64,
    /// The largest dynamic threshold.
    pub sample_max_value: f64,
    /// How inference timesteps are picked.
    pub timestep_spacing: TimestepSpacing,
    /// Rescale betas so that the last timestep is pure noise.
    pub rescale_betas_zero_snr: bool,
}

impl Default for DdimConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            clip_sample: true,
            set_alpha_to_one: true,
            steps_offset: 0,
            prediction_type: PredictionType::Epsilon,
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            clip_sample_range: 1.0,
            sample_max_value: 1.0,
            timestep_spacing: TimestepSpacing::Leading,
            rescale_betas_zero_snr: false,
        }
    }
}

impl SchedulerConfig for DdimConfig {
    const CLASS: &'static str = CLASS;
}

/// The DDIM sampler: deterministic by default, with [`StepOptions::eta`] up to DDPM's randomness.
#[derive(Clone, Debug)]
pub struct DdimScheduler {
    config: ConfigRecord<DdimConfig>,
    alphas_cumprod: Vec<f32>,
    final_alpha_cumprod: f32,
    timesteps: Vec<f64>,
    num_inference_steps: Option<usize>,
}

impl DdimScheduler {
    /// A scheduler with this config.
    ///
    /// # Errors
    /// If a field is out of range, naming it.
    pub fn new(config: DdimConfig) -> Result<Self> {
        Self::build(ConfigRecord::new(config))
    }

    pub(crate) fn read(config: &Map<String, Value>, overrides: &Map<String, Value>) -> Result<Self> {
        Self::build(ConfigRecord::read(config, overrides)?)
    }

    fn build(config: ConfigRecord<DdimConfig>) -> Result<Self> {
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
        let alphas_cumprod = noise_schedule::alphas_cumprod(&betas, &allowed)?;
        let predicts = fields.prediction_type != PredictionType::FlowPrediction;
        check_field(
            CLASS,
            "prediction_type",
            "flow_prediction",
            predicts,
            "epsilon, sample or v_prediction",
        )?;
        let range = fields.clip_sample_range;
        check_field(CLASS, "clip_sample_range", range, range > 0.0, "a number greater than 0")?;
        thresholding(fields).check(CLASS)?;
        let final_alpha_cumprod = if fields.set_alpha_to_one { 1.0 } else { alphas_cumprod[0] };
        let timesteps = (0..fields.num_train_timesteps).rev().map(|timestep| timestep as f64).collect();
        Ok(Self { config, alphas_cumprod, final_alpha_cumprod, timesteps, num_inference_steps: None })
    }

    /// ᾱ at a timestep and at the one a step ratio before it.
    fn alphas(&self, timestep: f64) -> Result<(f32, f32)> {
        let Some(num_inference_steps) = self.num_inference_steps else {
            return Err(Error::NoTimesteps { scheduler: CLASS });
        };
        if !self.timesteps.contains(&timestep) {
            let expected = describe_timesteps(&self.timesteps);
            return Err(Error::UnknownTimestep { scheduler: CLASS, timestep, expected });
        }
        let num_train_timesteps = self.config.typed.num_train_timesteps;
        let index = training_index(CLASS, timestep, num_train_timesteps)?;
        let previous = index.checked_sub(num_train_timesteps / num_inference_steps);
        let alpha_prod_t_prev = previous.map_or(self.final_alpha_cumprod, |index| self.alphas_cumprod[index]);
        Ok((self.alphas_cumprod[index], alpha_prod_t_prev))
    }
}

impl Scheduler for DdimScheduler {
    fn set_timesteps(&mut self, num_inference_steps: usize) -> Result<()> {
        let config = &self.config.typed;
        let (spacing, offset) = (config.timestep_spacing, config.steps_offset);
        self.timesteps =
            integer_timesteps(CLASS, spacing, config.num_train_timesteps, num_inference_steps, offset)?;
        self.num_inference_steps = Some(num_inference_steps);
        Ok(())
    }

    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn alphas_cumprod(&self) -> &[f32] {
        &self.alphas_cumprod
    }

    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    fn scale_model_input(&mut self, sample: &Tensor, _timestep: f64) -> Result<Tensor> {
        Ok(sample.clone())
    }

    /// Formulas (12) and (16) of the paper.
    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        noise: &mut dyn NoiseSource,
        options: &StepOptions,
    ) -> Result<StepOutput> {
        let (alpha_prod_t, alpha_prod_t_prev) = self.alphas(timestep)?;
        check_like_sample("model_output", model_output, sample)?;
        let config = &self.config.typed;
        let dtype = promoted(model_output.dtype(), sample.dtype());
        let limit = (config.clip_sample && !config.thresholding).then_some(config.clip_sample_range);
        let prediction_type = config.prediction_type;
        let mut pred_original_sample =
            predict_original(prediction_type, sample, model_output, alpha_prod_t, limit)?;
        if config.thresholding {
            pred_original_sample = thresholding(config).apply(&pred_original_sample)?;
        }
        let clipped = options.use_clipped_model_output.then_some(&pred_original_sample);
        let pred_epsilon = self.predict_noise(sample, model_output, alpha_prod_t, clipped)?;

        let std_dev_t = std_dev(alpha_prod_t, alpha_prod_t_prev, options.eta)?;
        let remaining = 1.0 - alpha_prod_t_prev - std_dev_t * std_dev_t;
        if remaining < 0.0 {
            let expected = "small enough that no more noise is added than the step removes (0 to 1)".into();
            return Err(Error::Argument { argument: "eta", found: options.eta.to_string(), expected });
        }
        let original_weight = f64::from(alpha_prod_t_prev.sqrt());
        let direction_weight = f64::from(remaining.sqrt());
        let mut weights = vec![original_weight, direction_weight];
        let mut terms = vec![&pred_original_sample, &pred_epsilon];
        let variance_noise = match (&options.variance_noise, options.eta > 0.0) {
            (_, false) => None,
            (Some(given), true) => Some(given.clone()),
            (None, true) => Some(noise.randn(sample.dims(), model_output.dtype(), model_output.device())?),
        };
        if let Some(variance_noise) = &variance_noise {
            check_like_sample("variance_noise", variance_noise, sample)?;
            weights.push(f64::from(std_dev_t));
            terms.push(variance_noise);
        }
        let prev_sample = LinearCombination::new(&weights).apply(&terms, dtype)?;
        Ok(StepOutput { prev_sample, pred_original_sample: Some(pred_original_sample) })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        variance_preserving::add_noise(CLASS, &self.alphas_cumprod, original_samples, noise, timesteps)
    }

    fn get_velocity(&self, sample: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        variance_preserving::get_velocity(CLASS, &self.alphas_cumprod, sample, noise, timesteps)
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

impl DdimScheduler {
    /// The predicted noise: the model's own, or what leads from `clipped`, the predicted original sample, to this sample.
    fn predict_noise(
        &self,
        sample: &Tensor,
        model_output: &Tensor,
        alpha_prod_t: f32,
        clipped: Option<&Tensor>,
    ) -> Result<Tensor> {
        let dtype = promoted(model_output.dtype(), sample.dtype());
        let alpha_root = f64::from(alpha_prod_t.sqrt());
        let beta_root = f64::from((1.0 - alpha_prod_t).sqrt());
        let from_original = |original: &Tensor| {
            let weights = LinearCombination::new(&[1.0, -alpha_root]).divided_by(beta_root);
            weights.apply(&[sample, original], dtype)
        };
        match (clipped, self.config.typed.prediction_type) {
            (Some(clipped), _) => from_original(clipped),
            (None, PredictionType::Sample) => from_original(model_output),
            (None, PredictionType::VPrediction) => {
                LinearCombination::new(&[alpha_root, beta_root]).apply(&[model_output, sample], dtype)
            }
            (None, _) => Ok(model_output.clone()),
        }
    }
}

/// σ_t(η) of formula (16), in float32 as the reference computes it.
fn std_dev(alpha_prod_t: f32, alpha_prod_t_prev: f32, eta: f64) -> Result<f32> {
    if !eta.is_finite() || eta < 0.0 {
        let expected = "a number from 0 to 1".into();
        return Err(Error::Argument { argument: "eta", found: eta.to_string(), expected });
    }
    let beta_ratio = (1.0 - alpha_prod_t_prev) / (1.0 - alpha_prod_t);
    let variance = beta_ratio * (1.0 - alpha_prod_t / alpha_prod_t_prev);
    Ok(eta as f32 * variance.sqrt())
}

fn thresholding(config: &DdimConfig) -> Thresholding {
    Thresholding {
        dynamic_thresholding_ratio: config.dynamic_thresholding_ratio,
        sample_max_value: config.sample_max_value,
    }
}
