//! Denoising diffusion probabilistic models (Ho et al., <https://huggingface.co/papers/2006.11239>).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{ConfigRecord, SchedulerConfig, check_field};
use crate::error::{Error, Result};
use crate::linear_combination::{LinearCombination, check_like_sample, promoted};
use crate::noise_schedule::{self, BetaFields, BetaSchedule};
use crate::reference_math::{exp_f32, ln_f32};
use crate::rng::NoiseSource;
use crate::scheduler::{PredictionType, Scheduler, StepOptions, StepOutput};
use crate::thresholding::Thresholding;
use crate::timestep_spacing::{TimestepSpacing, integer_timesteps};
use crate::variance_preserving::{self, describe_timesteps, predict_original, training_index};

const CLASS: &str = "DDPMScheduler";
/// The smallest variance, so that its logarithm is finite.
const MIN_VARIANCE: f32 = 1e-20;

/// Where the variance of the noise of a step comes from (section 3.2 of the paper, and section 3.1 of
/// <https://huggingface.co/papers/2102.09672> for the learned ones).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// The variance of the posterior.
    FixedSmall,
    /// The standard deviation by way of the logarithm of the posterior's variance.
    FixedSmallLog,
    /// Beta.
    FixedLarge,
    /// The logarithm of beta. The reference takes a square root of it, which is no number: a step is an error.
    FixedLargeLog,
    /// The second half of the model output's channels is the variance.
    Learned,
    /// The second half of the model output's channels says where between the small and the large one, in logarithms.
    LearnedRange,
}

/// The fields of a DDPM `scheduler_config.json`, with diffusers' names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DdpmConfig {
    /// The timesteps that the model was trained on.
    pub num_train_timesteps: usize,
    /// The first beta.
    pub beta_start: f64,
    /// The last beta.
    pub beta_end: f64,
    /// How betas go from the first to the last.
    pub beta_schedule: BetaSchedule,
    /// Betas to use instead of a schedule.
    pub trained_betas: Option<Vec<f64>>,
    /// Where the variance of a step's noise comes from.
    pub variance_type: VarianceType,
    /// Clip the predicted original sample.
    pub clip_sample: bool,
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
    /// What is added to each timestep of leading spacing.
    pub steps_offset: i64,
    /// Rescale betas so that the last timestep is pure noise.
    pub rescale_betas_zero_snr: bool,
}

impl Default for DdpmConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            variance_type: VarianceType::FixedSmall,
            clip_sample: true,
            prediction_type: PredictionType::Epsilon,
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            clip_sample_range: 1.0,
            sample_max_value: 1.0,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
        }
    }
}

impl SchedulerConfig for DdpmConfig {
    const CLASS: &'static str = CLASS;
}

/// The DDPM sampler, which adds noise at every step but the last; the usual choice for `add_noise` in training.
#[derive(Clone, Debug)]
pub struct DdpmScheduler {
    config: ConfigRecord<DdpmConfig>,
    alphas_cumprod: Vec<f32>,
    timesteps: Vec<f64>,
    has_timesteps: bool,
}

/// The ᾱ of a step and what follows from it, in float32 as the reference computes them.
struct StepAlphas {
    alpha_prod_t: f32,
    alpha_prod_t_prev: f32,
}

impl StepAlphas {
    fn beta_prod_t(&self) -> f32 {
        1.0 - self.alpha_prod_t
    }

    fn current_alpha_t(&self) -> f32 {
        self.alpha_prod_t / self.alpha_prod_t_prev
    }

    fn current_beta_t(&self) -> f32 {
        1.0 - self.current_alpha_t()
    }

    /// The variance of the posterior, formula (7).
    fn variance(&self) -> f32 {
        let beta_ratio = (1.0 - self.alpha_prod_t_prev) / self.beta_prod_t();
        (beta_ratio * self.current_beta_t()).max(MIN_VARIANCE)
    }
}

impl DdpmScheduler {
    /// A scheduler with this config.
    ///
    /// # Errors
    /// If a field is out of range, naming it.
    pub fn new(config: DdpmConfig) -> Result<Self> {
        Self::build(ConfigRecord::new(config))
    }

    pub(crate) fn read(config: &Map<String, Value>, overrides: &Map<String, Value>) -> Result<Self> {
        Self::build(ConfigRecord::read(config, overrides)?)
    }

    fn build(config: ConfigRecord<DdpmConfig>) -> Result<Self> {
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
        let allowed = [
            BetaSchedule::Linear,
            BetaSchedule::ScaledLinear,
            BetaSchedule::SquaredcosCapV2,
            BetaSchedule::Laplace,
            BetaSchedule::Sigmoid,
        ];
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
        let timesteps = (0..fields.num_train_timesteps).rev().map(|timestep| timestep as f64).collect();
        Ok(Self { config, alphas_cumprod, timesteps, has_timesteps: false })
    }

    /// ᾱ at a timestep and at the next one of the loop.
    fn alphas(&self, timestep: f64) -> Result<StepAlphas> {
        if !self.has_timesteps {
            return Err(Error::NoTimesteps { scheduler: CLASS });
        }
        let Some(index) = self.timesteps.iter().position(|&other| other == timestep) else {
            let expected = describe_timesteps(&self.timesteps);
            return Err(Error::UnknownTimestep { scheduler: CLASS, timestep, expected });
        };
        let alpha = |timestep: f64| -> Result<f32> {
            Ok(self.alphas_cumprod[training_index(CLASS, timestep, self.alphas_cumprod.len())?])
        };
        let alpha_prod_t_prev = self.timesteps.get(index + 1).map_or(Ok(1.0), |&next| alpha(next))?;
        Ok(StepAlphas { alpha_prod_t: alpha(timestep)?, alpha_prod_t_prev })
    }

    /// The model output without the channels that predict the variance, and those.
    fn split(&self, model_output: &Tensor, sample: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let variance_type = self.config.typed.variance_type;
        let learned = matches!(variance_type, VarianceType::Learned | VarianceType::LearnedRange);
        let channels = sample.dims().get(1).copied().unwrap_or(0);
        if !learned || model_output.dims().get(1) != Some(&(2 * channels)) {
            return Ok((model_output.clone(), None));
        }
        let predicted_variance = model_output.narrow(1, channels, channels)?;
        Ok((model_output.narrow(1, 0, channels)?, Some(predicted_variance)))
    }

    /// The noise of a step, already as strong as it must be: a factor, or a tensor of them, on standard normal noise.
    fn scaled_noise(
        &self,
        alphas: &StepAlphas,
        predicted_variance: Option<&Tensor>,
        variance_noise: Tensor,
    ) -> Result<(f64, Tensor)> {
        let variance_type = self.config.typed.variance_type;
        let fixed = |factor: f32| Ok((f64::from(factor), variance_noise.clone()));
        match variance_type {
            VarianceType::FixedSmall => fixed(alphas.variance().sqrt()),
            VarianceType::FixedSmallLog => fixed(exp_f32(0.5 * ln_f32(alphas.variance()))),
            VarianceType::FixedLarge => fixed(alphas.current_beta_t().sqrt()),
            VarianceType::FixedLargeLog => Err(Error::Unsupported {
                scheduler: CLASS,
                operation: "a step with variance_type fixed_large_log",
                hint: ", of which the reference makes NaN; set fixed_large",
            }),
            VarianceType::Learned | VarianceType::LearnedRange => {
                let Some(predicted) = predicted_variance else {
                    let hint = ", of which the model output has no channels: it needs twice the sample's";
                    let operation = "a learned variance";
                    return Err(Error::Unsupported { scheduler: CLASS, operation, hint });
                };
                let deviation = if variance_type == VarianceType::Learned {
                    predicted.sqrt()?
                } else {
                    // exp(½ (f log β + (1 - f) log β̃)) with f = (predicted + 1) / 2, gathered by powers of `predicted`.
                    let min_log = f64::from(ln_f32(alphas.variance()));
                    let max_log = f64::from(ln_f32(alphas.current_beta_t()));
                    let (slope, offset) = ((max_log - min_log) / 4.0, (max_log + min_log) / 4.0);
                    predicted.affine(slope, offset)?.exp()?
                };
                Ok((1.0, (deviation * variance_noise)?))
            }
        }
    }
}

impl Scheduler for DdpmScheduler {
    fn set_timesteps(&mut self, num_inference_steps: usize) -> Result<()> {
        let config = &self.config.typed;
        let (spacing, offset) = (config.timestep_spacing, config.steps_offset);
        self.timesteps =
            integer_timesteps(CLASS, spacing, config.num_train_timesteps, num_inference_steps, offset)?;
        self.has_timesteps = true;
        Ok(())
    }

    fn set_custom_timesteps(&mut self, timesteps: &[f64]) -> Result<()> {
        let count = self.config.typed.num_train_timesteps;
        let descending = timesteps.windows(2).all(|pair| pair[0] > pair[1]);
        if timesteps.is_empty() || !descending {
            let message =
                format!("custom timesteps {timesteps:?}; expected at least one, in descending order");
            return Err(Error::Timesteps { scheduler: CLASS, message });
        }
        for &timestep in timesteps {
            training_index(CLASS, timestep, count)?;
        }
        self.timesteps = timesteps.to_vec();
        self.has_timesteps = true;
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

    /// Formulas (7) and (15) of the paper.
    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        noise: &mut dyn NoiseSource,
        _options: &StepOptions,
    ) -> Result<StepOutput> {
        let alphas = self.alphas(timestep)?;
        let (model_output, predicted_variance) = self.split(model_output, sample)?;
        check_like_sample("model_output", &model_output, sample)?;
        let config = &self.config.typed;
        let dtype = promoted(model_output.dtype(), sample.dtype());
        let limit = (config.clip_sample && !config.thresholding).then_some(config.clip_sample_range);
        let (prediction_type, alpha_prod_t) = (config.prediction_type, alphas.alpha_prod_t);
        let mut pred_original_sample =
            predict_original(prediction_type, sample, &model_output, alpha_prod_t, limit)?;
        if config.thresholding {
            pred_original_sample = thresholding(config).apply(&pred_original_sample)?;
        }

        let beta_prod_t = alphas.beta_prod_t();
        let original_weight = (alphas.alpha_prod_t_prev.sqrt() * alphas.current_beta_t()) / beta_prod_t;
        let sample_weight = alphas.current_alpha_t().sqrt() * (1.0 - alphas.alpha_prod_t_prev) / beta_prod_t;
        let mut weights = vec![f64::from(original_weight), f64::from(sample_weight)];
        let mut terms = vec![pred_original_sample.clone(), sample.clone()];
        if timestep > 0.0 {
            let variance_noise = noise.randn(sample.dims(), model_output.dtype(), model_output.device())?;
            check_like_sample("noise", &variance_noise, sample)?;
            let (factor, scaled) = self.scaled_noise(&alphas, predicted_variance.as_ref(), variance_noise)?;
            weights.push(factor);
            terms.push(scaled);
        }
        let terms: Vec<&Tensor> = terms.iter().collect();
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

fn thresholding(config: &DdpmConfig) -> Thresholding {
    Thresholding {
        dynamic_thresholding_ratio: config.dynamic_thresholding_ratio,
        sample_max_value: config.sample_max_value,
    }
}
