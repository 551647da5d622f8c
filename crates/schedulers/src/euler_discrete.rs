//! Euler's method along sigmas (Karras et al., algorithm 2, <https://huggingface.co/papers/2206.00364>).

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{ConfigRecord, SchedulerConfig, check_field, optional_flag};
use crate::error::{Error, Result};
use crate::linear_combination::{LinearCombination, check_like_sample, promoted};
use crate::noise_schedule::{self, BetaFields, BetaSchedule};
use crate::reference_math::{exp_f32, ln_f32, numpy_interp, torch_linspace_f32};
use crate::rng::NoiseSource;
use crate::scheduler::{PredictionType, Scheduler, StepOptions, StepOutput};
use crate::sigma_spacing::{
    FinalSigmasType, SigmaSpacing, check_sigma_limit, log_sigmas, sigma_to_timestep, sigma_to_timestep_f32,
    training_sigma, training_sigmas,
};
use crate::step_position::{StepPosition, index_for_timestep};
use crate::timestep_spacing::{MAX_INFERENCE_STEPS, TimestepSpacing, float_timesteps};
use crate::variance_preserving::{combine, rounded, velocity};

const CLASS: &str = "EulerDiscreteScheduler";

/// How sigmas between those of training are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InterpolationType {
    /// Between the neighbours.
    Linear,
    /// Evenly in the logarithm from the largest to the smallest.
    LogLinear,
}

/// What the timesteps given to the model are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepType {
    /// Training timesteps.
    Discrete,
    /// For v_prediction a quarter of the sigma's logarithm, as EDM models take it.
    Continuous,
}

/// The fields of an Euler `scheduler_config.json`, with diffusers' names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EulerDiscreteConfig {
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
    /// What the model predicts: epsilon, sample or v_prediction.
    pub prediction_type: PredictionType,
    /// How sigmas between those of training are made.
    pub interpolation_type: InterpolationType,
    /// Space sigmas by Karras et al.
    #[serde(deserialize_with = "optional_flag")]
    pub use_karras_sigmas: bool,
    /// Space sigmas evenly in the logarithm.
    #[serde(deserialize_with = "optional_flag")]
    pub use_exponential_sigmas: bool,
    /// Space sigmas by a beta distribution.
    #[serde(deserialize_with = "optional_flag")]
    pub use_beta_sigmas: bool,
    /// The smallest of the sigmas spaced so.
    pub sigma_min: Option<f64>,
    /// The largest of the sigmas spaced so.
    pub sigma_max: Option<f64>,
    /// How inference timesteps are picked.
    pub timestep_spacing: TimestepSpacing,
    /// What the timesteps given to the model are.
    pub timestep_type: TimestepType,
    /// What is added to each timestep of leading spacing.
    pub steps_offset: i64,
    /// Rescale betas so that the last timestep is almost pure noise.
    pub rescale_betas_zero_snr: bool,
    /// The noise level at which sampling ends.
    pub final_sigmas_type: FinalSigmasType,
}

impl Default for EulerDiscreteConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            interpolation_type: InterpolationType::Linear,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            sigma_min: None,
            sigma_max: None,
            timestep_spacing: TimestepSpacing::Linspace,
            timestep_type: TimestepType::Discrete,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
            final_sigmas_type: FinalSigmasType::Zero,
        }
    }
}

impl SchedulerConfig for EulerDiscreteConfig {
    const CLASS: &'static str = CLASS;
}

/// The Euler sampler. Call [`scale_model_input`](Scheduler::scale_model_input) before the model.
#[derive(Clone, Debug)]
pub struct EulerDiscreteScheduler {
    config: ConfigRecord<EulerDiscreteConfig>,
    alphas_cumprod: Vec<f32>,
    timesteps: Vec<f64>,
    sigmas: Vec<f32>,
    has_timesteps: bool,
    position: StepPosition,
}

impl EulerDiscreteScheduler {
    /// A scheduler with this config.
    ///
    /// # Errors
    /// If a field is out of range, naming it.
    pub fn new(config: EulerDiscreteConfig) -> Result<Self> {
        Self::build(ConfigRecord::new(config))
    }

    pub(crate) fn read(config: &Map<String, Value>, overrides: &Map<String, Value>) -> Result<Self> {
        Self::build(ConfigRecord::read(config, overrides)?)
    }

    fn build(config: ConfigRecord<EulerDiscreteConfig>) -> Result<Self> {
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
        let predicts = fields.prediction_type != PredictionType::FlowPrediction;
        check_field(
            CLASS,
            "prediction_type",
            "flow_prediction",
            predicts,
            "epsilon, sample or v_prediction",
        )?;
        check_sigma_limit(CLASS, "sigma_min", fields.sigma_min)?;
        check_sigma_limit(CLASS, "sigma_max", fields.sigma_max)?;
        sigma_spacing(fields)?;
        let timesteps = (0..fields.num_train_timesteps).rev().map(|timestep| timestep as f64).collect();
        let sigmas = training_sigmas(&alphas_cumprod).into_iter().rev().chain([0.0]).collect();
        let position = StepPosition::default();
        let mut scheduler =
            Self { config, alphas_cumprod, timesteps, sigmas, has_timesteps: false, position };
        scheduler.make_timesteps_continuous();
        Ok(scheduler)
    }

    fn start_over(&mut self, timesteps: Vec<f64>, sigmas: Vec<f32>) {
        self.timesteps = timesteps.into_iter().map(|timestep| f64::from(timestep as f32)).collect();
        self.sigmas = sigmas;
        self.make_timesteps_continuous();
        self.has_timesteps = true;
        self.position = StepPosition::default();
    }

    fn is_continuous(&self) -> bool {
        let config = &self.config.typed;
        config.timestep_type == TimestepType::Continuous
            && config.prediction_type == PredictionType::VPrediction
    }

    fn make_timesteps_continuous(&mut self) {
        if self.is_continuous()
            && let [sigmas @ .., _] = self.sigmas.as_slice()
        {
            self.timesteps = sigmas.iter().map(|&sigma| f64::from(0.25 * ln_f32(sigma))).collect();
        }
    }

    /// The timesteps and sigmas of a loop through these timesteps, whose number was asked to be `count`.
    fn schedule(&self, timesteps: Vec<f64>, count: usize) -> Result<(Vec<f64>, Vec<f32>)> {
        let config = &self.config.typed;
        let training = training_sigmas(&self.alphas_cumprod);
        let mut sigmas: Vec<f64> = match config.interpolation_type {
            InterpolationType::Linear => {
                timesteps.iter().map(|&timestep| numpy_interp(timestep, &training)).collect()
            }
            InterpolationType::LogLinear => {
                let logarithms = log_sigmas(&training);
                let extreme = |logarithm: Option<&f32>| logarithm.copied().map_or(0.0, f64::from);
                let (max, min) = (extreme(logarithms.last()), extreme(logarithms.first()));
                torch_linspace_f32(max, min, count + 1).into_iter().map(|x| f64::from(exp_f32(x))).collect()
            }
        };
        let mut timesteps = timesteps;
        if let Some(spacing) = sigma_spacing(config)? {
            let sigma_min = config.sigma_min.or(sigmas.last().copied()).unwrap_or(0.0);
            let sigma_max = config.sigma_max.or(sigmas.first().copied()).unwrap_or(0.0);
            sigmas = spacing.sigmas(sigma_min, sigma_max, count);
            let logarithms = log_sigmas(&training);
            timesteps = sigmas.iter().map(|&sigma| sigma_to_timestep(sigma, &logarithms)).collect();
        }
        let last = match config.final_sigmas_type {
            FinalSigmasType::SigmaMin => training_sigma(self.alphas_cumprod[0]),
            FinalSigmasType::Zero => 0.0,
        };
        Ok((timesteps, sigmas.into_iter().map(|sigma| sigma as f32).chain([last]).collect()))
    }

    /// The sigma at the position of `timestep`.
    fn position(&mut self, timestep: f64) -> Result<usize> {
        if !self.has_timesteps {
            return Err(Error::NoTimesteps { scheduler: CLASS });
        }
        self.position.current(CLASS, &self.timesteps, timestep)
    }

    /// The sample with noise added up to the returned sigma, as `s_churn` asks for it.
    fn churn(
        &self,
        sample: &Tensor,
        sigma: f32,
        model_output: &Tensor,
        noise: &mut dyn NoiseSource,
        options: &StepOptions,
    ) -> Result<(Tensor, f32)> {
        let numbers = [options.s_churn, options.s_tmin, options.s_tmax, options.s_noise];
        if numbers.iter().any(|number| number.is_nan()) || options.s_churn < 0.0 {
            let expected = "numbers, s_churn not negative".into();
            let argument = "s_churn, s_tmin, s_tmax, s_noise";
            return Err(Error::Argument { argument, found: format!("{numbers:?}"), expected });
        }
        let is_churned = options.s_tmin <= f64::from(sigma) && f64::from(sigma) <= options.s_tmax;
        let most = std::f64::consts::SQRT_2 - 1.0;
        let gamma =
            if is_churned { (options.s_churn / (self.sigmas.len() - 1) as f64).min(most) } else { 0.0 };
        let sigma_hat = sigma * (gamma + 1.0) as f32;
        if gamma <= 0.0 {
            return Ok((sample.clone(), sigma_hat));
        }
        let noise = noise.randn(sample.dims(), model_output.dtype(), model_output.device())?;
        check_like_sample("noise", &noise, sample)?;
        let strength = f64::from((sigma_hat * sigma_hat - sigma * sigma).sqrt()) * options.s_noise;
        let churned = LinearCombination::new(&[1.0, strength]).apply(&[sample, &noise], sample.dtype())?;
        Ok((churned, sigma_hat))
    }
}

impl Scheduler for EulerDiscreteScheduler {
    fn set_timesteps(&mut self, num_inference_steps: usize) -> Result<()> {
        let config = &self.config.typed;
        let (spacing, train, offset) =
            (config.timestep_spacing, config.num_train_timesteps, config.steps_offset);
        let timesteps = float_timesteps(CLASS, spacing, train, num_inference_steps, offset)?;
        let (timesteps, sigmas) = self.schedule(timesteps, num_inference_steps)?;
        self.start_over(timesteps, sigmas);
        Ok(())
    }

    fn set_custom_timesteps(&mut self, timesteps: &[f64]) -> Result<()> {
        let error = |message: String| Err(Error::Timesteps { scheduler: CLASS, message });
        if self.is_continuous() {
            return error(
                "custom timesteps do not go with timestep_type = continuous and v_prediction".into(),
            );
        }
        if sigma_spacing(&self.config.typed)?.is_some() {
            return error("custom timesteps do not go with use_karras_sigmas, use_exponential_sigmas or use_beta_sigmas".into());
        }
        let last = (self.alphas_cumprod.len() - 1) as f64;
        let in_range = timesteps.iter().all(|timestep| (0.0..=last).contains(timestep));
        if timesteps.is_empty() || timesteps.len() > MAX_INFERENCE_STEPS || !in_range {
            return error(format!(
                "custom timesteps {timesteps:?}; expected at least one, each from 0 to {last}"
            ));
        }
        let timesteps: Vec<f64> = timesteps.iter().map(|&timestep| f64::from(timestep as f32)).collect();
        let count = timesteps.len();
        let (timesteps, sigmas) = self.schedule(timesteps, count)?;
        self.start_over(timesteps, sigmas);
        Ok(())
    }

    fn set_custom_sigmas(&mut self, sigmas: &[f64]) -> Result<()> {
        let positive = |steps: &[f64]| steps.iter().all(|sigma| sigma.is_finite() && *sigma > 0.0);
        let usable = match sigmas {
            [steps @ .., last] => !steps.is_empty() && positive(steps) && last.is_finite() && *last >= 0.0,
            [] => false,
        };
        if !usable || sigmas.len() > MAX_INFERENCE_STEPS {
            let expected = "expected at least two, all greater than 0 but for the last, which may be 0";
            let message = format!("custom sigmas {sigmas:?}; {expected}");
            return Err(Error::Timesteps { scheduler: CLASS, message });
        }
        let sigmas: Vec<f32> = sigmas.iter().map(|&sigma| sigma as f32).collect();
        let logarithms = log_sigmas(&training_sigmas(&self.alphas_cumprod));
        let steps = &sigmas[..sigmas.len() - 1];
        let timesteps = steps.iter().map(|&sigma| sigma_to_timestep_f32(sigma, &logarithms)).collect();
        self.start_over(timesteps, sigmas);
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
        options: &StepOptions,
    ) -> Result<StepOutput> {
        let index = self.position(timestep)?;
        check_like_sample("model_output", model_output, sample)?;
        let sample = sample.to_dtype(DType::F32)?;
        let sigma = self.sigmas[index];
        let (sample, sigma_hat) = self.churn(&sample, sigma, model_output, noise, options)?;
        let prediction_type = self.config.typed.prediction_type;
        let pred_original_sample =
            predict_original(prediction_type, &sample, model_output, sigma, sigma_hat)?;
        let step = f64::from(self.sigmas[index + 1] - sigma_hat);
        let prev_sample =
            euler_step(&sample, &pred_original_sample, sigma_hat, step, None, model_output.dtype())?;
        self.position.advance_from(index);
        Ok(StepOutput { prev_sample, pred_original_sample: Some(pred_original_sample) })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        let indices = self.position.noise_indices(CLASS, &self.timesteps, timesteps)?;
        add_noise(original_samples, noise, &self.sigmas, &indices, timesteps)
    }

    /// The reference looks ᾱ up by the timestep's place in the schedule, not by the timestep, and so does this: train with
    /// [`DdpmScheduler`](crate::DdpmScheduler).
    fn get_velocity(&self, sample: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        let alpha = |&timestep: &f64| -> Result<f32> {
            let index = index_for_timestep(CLASS, &self.timesteps, timestep)?;
            self.alphas_cumprod.get(index).copied().ok_or_else(|| Error::UnknownTimestep {
                scheduler: CLASS,
                timestep,
                expected: "its place in the schedule is past the training timesteps".into(),
            })
        };
        let alphas = timesteps.iter().map(alpha).collect::<Result<Vec<f32>>>()?;
        velocity(&alphas, sample, noise, timesteps)
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

fn sigma_spacing(config: &EulerDiscreteConfig) -> Result<Option<SigmaSpacing>> {
    let (karras, exponential) = (config.use_karras_sigmas, config.use_exponential_sigmas);
    SigmaSpacing::from_flags(CLASS, karras, exponential, config.use_beta_sigmas)
}

/// The largest sigma, or with leading spacing the root of one more than its square.
pub(crate) fn init_noise_sigma(sigmas: &[f32], spacing: TimestepSpacing) -> f64 {
    let max = sigmas.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    match spacing {
        TimestepSpacing::Linspace | TimestepSpacing::Trailing => f64::from(max),
        TimestepSpacing::Leading => f64::from((max * max + 1.0).sqrt()),
    }
}

/// The sample divided by sqrt(sigma² + 1), so that the model sees unit variance.
pub(crate) fn scale_model_input(sample: &Tensor, sigma: f32) -> Result<Tensor> {
    check_like_sample("sample", sample, sample)?;
    let scale = f64::from((sigma * sigma + 1.0).sqrt());
    LinearCombination::new(&[1.0]).divided_by(scale).apply(&[sample], sample.dtype())
}

/// The predicted original sample; `sample` is float32 and so is the result, unless the model output is float64 or is the
/// prediction itself.
pub(crate) fn predict_original(
    prediction_type: PredictionType,
    sample: &Tensor,
    model_output: &Tensor,
    sigma: f32,
    sigma_hat: f32,
) -> Result<Tensor> {
    let weights = match prediction_type {
        PredictionType::Sample => return Ok(model_output.clone()),
        PredictionType::VPrediction => {
            // c_skip and c_out of Karras et al., table 1, for unit data variance
            let skip = 1.0 / (sigma * sigma + 1.0);
            [f64::from(skip), f64::from(-sigma / (sigma * sigma + 1.0).sqrt())]
        }
        _ => [1.0, -f64::from(sigma_hat)],
    };
    LinearCombination::new(&weights)
        .apply(&[sample, model_output], promoted(sample.dtype(), model_output.dtype()))
}

/// sample + step · derivative with derivative = (sample - original) / sigma, and noise if there is some.
///
/// Not gathered into one sum: sigmas in the thousands cancel here, and other roundings than the reference's would show.
pub(crate) fn euler_step(
    sample: &Tensor,
    pred_original_sample: &Tensor,
    sigma: f32,
    step: f64,
    noise: Option<(f64, &Tensor)>,
    dtype: DType,
) -> Result<Tensor> {
    let difference = LinearCombination::new(&[1.0, -1.0]).divided_by(f64::from(sigma));
    let compute = promoted(sample.dtype(), pred_original_sample.dtype());
    let derivative = difference.apply(&[sample, pred_original_sample], compute)?;
    let mut weights = vec![1.0, step];
    let mut tensors = vec![sample, &derivative];
    if let Some((strength, noise)) = noise {
        weights.push(strength);
        tensors.push(noise);
    }
    LinearCombination::new(&weights).apply(&tensors, dtype)
}

/// original_samples + sigma noise, with sigmas rounded to the samples' dtype.
pub(crate) fn add_noise(
    original_samples: &Tensor,
    noise: &Tensor,
    sigmas: &[f32],
    indices: &[usize],
    timesteps: &[f64],
) -> Result<Tensor> {
    let last = sigmas.len() - 1;
    let chosen = indices.iter().map(|&index| f64::from(sigmas[index.min(last)])).collect();
    let noise_weights = rounded(chosen, original_samples.dtype())?;
    let sample_weights = vec![1.0; noise_weights.len()];
    combine(original_samples, sample_weights, noise, noise_weights, timesteps)
}
