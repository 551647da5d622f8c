//! DPM-Solver and DPM-Solver++ (Lu et al., <https://huggingface.co/papers/2206.00927>,
//! <https://huggingface.co/papers/2211.01095>), multistep.

mod config;
mod sigmas;
mod update;

use std::collections::VecDeque;

use candle_core::{DType, Tensor};
use serde_json::{Map, Value};

use crate::config::{ConfigRecord, check_field};
use crate::error::{Error, Result};
use crate::linear_combination::{LinearCombination, check_like_sample, promoted};
use crate::noise_schedule::{self, BetaFields, BetaSchedule};
use crate::rng::NoiseSource;
use crate::scheduler::{PredictionType, Scheduler, StepOptions, StepOutput};
use crate::sigma_spacing::{FinalSigmasType, check_sigma_limit};
use crate::step_position::StepPosition;
use crate::variance_preserving::{combine, rounded};

pub use config::{AlgorithmType, DpmSolverMultistepConfig, LearnedVarianceType, SolverType, TimeShiftType};
use sigmas::{Schedule, ScheduleSource};
use update::NoiseLevel;

const CLASS: &str = "DPMSolverMultistepScheduler";
/// From this many steps on the order is not lowered at the end.
const MANY_STEPS: usize = 15;
/// The channels that the reference keeps of a model output that predicts a variance too.
const IMAGE_CHANNELS: usize = 3;

/// The DPM-Solver multistep sampler: good pictures in about 20 steps.
#[derive(Clone, Debug)]
pub struct DpmSolverMultistepScheduler {
    config: ConfigRecord<DpmSolverMultistepConfig>,
    alphas_cumprod: Vec<f32>,
    flow_shift: f64,
    sigma_min: Option<f64>,
    sigma_max: Option<f64>,
    schedule: Schedule,
    has_timesteps: bool,
    position: StepPosition,
    /// The last converted model outputs, newest first.
    model_outputs: VecDeque<Tensor>,
}

impl DpmSolverMultistepScheduler {
    /// A scheduler with this config.
    ///
    /// # Errors
    /// If a field is out of range, naming it.
    pub fn new(config: DpmSolverMultistepConfig) -> Result<Self> {
        Self::build(ConfigRecord::new(config))
    }

    pub(crate) fn read(config: &Map<String, Value>, overrides: &Map<String, Value>) -> Result<Self> {
        Self::build(ConfigRecord::read(config, overrides)?)
    }

    fn build(config: ConfigRecord<DpmSolverMultistepConfig>) -> Result<Self> {
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
        fields.check()?;
        // A config that came from an Euler scheduler has these; the reference reads them wherever it finds them.
        let limit = |name: &str| config.hidden.get(name).and_then(Value::as_f64);
        let (sigma_min, sigma_max) = (limit("sigma_min"), limit("sigma_max"));
        check_sigma_limit(CLASS, "sigma_min", sigma_min)?;
        check_sigma_limit(CLASS, "sigma_max", sigma_max)?;
        let flow_shift = fields.flow_shift;
        let schedule = ScheduleSource {
            config: fields,
            alphas_cumprod: &alphas_cumprod,
            flow_shift,
            sigma_min,
            sigma_max,
        }
        .training();
        Ok(Self {
            config,
            alphas_cumprod,
            flow_shift,
            sigma_min,
            sigma_max,
            schedule,
            has_timesteps: false,
            position: StepPosition::default(),
            model_outputs: VecDeque::new(),
        })
    }

    /// [`set_timesteps`](Scheduler::set_timesteps) with flow sigmas shifted by e^`mu`, for models whose shift depends on
    /// the picture's size.
    ///
    /// # Errors
    /// As `set_timesteps`, if the config has no `use_dynamic_shifting`, or if e^`mu` is no positive number.
    pub fn set_timesteps_shifted(&mut self, num_inference_steps: usize, mu: f64) -> Result<()> {
        let dynamic = self.config.typed.use_dynamic_shifting;
        check_field(CLASS, "use_dynamic_shifting", dynamic, dynamic, "true to shift timesteps by mu")?;
        let flow_shift = mu.exp();
        if !flow_shift.is_finite() || flow_shift <= 0.0 {
            let expected = "a number from -700 to 700".into();
            return Err(Error::Argument { argument: "mu", found: mu.to_string(), expected });
        }
        let schedule = ScheduleSource { flow_shift, ..self.source() }.spaced(num_inference_steps)?;
        self.flow_shift = flow_shift;
        self.start_over(schedule);
        Ok(())
    }

    fn source(&self) -> ScheduleSource<'_> {
        ScheduleSource {
            config: &self.config.typed,
            alphas_cumprod: &self.alphas_cumprod,
            flow_shift: self.flow_shift,
            sigma_min: self.sigma_min,
            sigma_max: self.sigma_max,
        }
    }

    fn start_over(&mut self, schedule: Schedule) {
        self.schedule = schedule;
        self.has_timesteps = true;
        self.position = StepPosition::default();
        self.model_outputs.clear();
    }

    fn level(&self, index: usize) -> NoiseLevel {
        NoiseLevel::new(self.schedule.sigmas[index], self.config.typed.use_flow_sigmas)
    }

    /// The model output as the algorithm needs it: the predicted original sample or the predicted noise.
    fn convert(&self, model_output: &Tensor, sample: &Tensor, index: usize) -> Result<Tensor> {
        let config = &self.config.typed;
        let learned = config.variance_type.is_some() && config.prediction_type == PredictionType::Epsilon;
        let model_output = match model_output.dims() {
            [_, channels, ..] if learned => model_output.narrow(1, 0, IMAGE_CHANNELS.min(*channels))?,
            _ => model_output.clone(),
        };
        check_like_sample("model_output", &model_output, sample)?;
        let level = self.level(index);
        let (alpha, sigma) = (f64::from(level.alpha), f64::from(level.sigma));
        let dtype = promoted(model_output.dtype(), sample.dtype());
        let mix = |weights: [f64; 2], divisor: f64| {
            LinearCombination::new(&weights).divided_by(divisor).apply(&[sample, &model_output], dtype)
        };
        let data = config.algorithm_type.predicts_data();
        let converted = match (data, config.prediction_type) {
            (true, PredictionType::Epsilon) => mix([1.0, -sigma], alpha)?,
            (true, PredictionType::VPrediction) => mix([alpha, -sigma], 1.0)?,
            (true, PredictionType::FlowPrediction) => {
                mix([1.0, -f64::from(self.schedule.sigmas[index])], 1.0)?
            }
            (false, PredictionType::Sample) => mix([1.0, -alpha], sigma)?,
            (false, PredictionType::VPrediction) => mix([sigma, alpha], 1.0)?,
            _ => model_output.clone(),
        };
        match (config.thresholding, data) {
            (false, _) => Ok(converted),
            (true, true) => config.thresholding().apply(&converted),
            (true, false) => {
                let original = LinearCombination::new(&[1.0, -sigma]).divided_by(alpha);
                let original = config.thresholding().apply(&original.apply(&[sample, &converted], dtype)?)?;
                LinearCombination::new(&[1.0, -alpha]).divided_by(sigma).apply(&[sample, &original], dtype)
            }
        }
    }

    /// The order of the step at `index`: low while there is no history, and at the end where the config says so.
    fn order_at(&self, index: usize) -> usize {
        let config = &self.config.typed;
        let left = self.schedule.timesteps.len() - index;
        let lowered = config.lower_order_final && self.schedule.timesteps.len() < MANY_STEPS;
        let ends_clean = config.final_sigmas_type == FinalSigmasType::Zero;
        let most = match left {
            1 if config.euler_at_final || lowered || ends_clean => 1,
            2 if lowered => 2,
            _ => config.solver_order,
        };
        // Only earlier steps of this very loop count, not earlier sigmas.
        most.min(config.solver_order).min(self.model_outputs.len())
    }
}

impl Scheduler for DpmSolverMultistepScheduler {
    fn set_timesteps(&mut self, num_inference_steps: usize) -> Result<()> {
        let schedule = self.source().spaced(num_inference_steps)?;
        self.start_over(schedule);
        Ok(())
    }

    fn set_custom_timesteps(&mut self, timesteps: &[f64]) -> Result<()> {
        let schedule = self.source().custom(timesteps)?;
        self.start_over(schedule);
        Ok(())
    }

    fn set_begin_index(&mut self, begin_index: usize) {
        self.position.set_begin_index(begin_index);
    }

    fn timesteps(&self) -> &[f64] {
        &self.schedule.timesteps
    }

    fn sigmas(&self) -> Option<&[f32]> {
        Some(&self.schedule.sigmas)
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

    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        noise: &mut dyn NoiseSource,
        options: &StepOptions,
    ) -> Result<StepOutput> {
        if !self.has_timesteps {
            return Err(Error::NoTimesteps { scheduler: CLASS });
        }
        let index = self.position.current(CLASS, &self.schedule.timesteps, timestep)?;
        let config = &self.config.typed;
        let (algorithm, solver, solver_order) =
            (config.algorithm_type, config.solver_type, config.solver_order);
        let converted = self.convert(model_output, sample, index)?;
        let dtype = converted.dtype();
        let variance_noise = match (&options.variance_noise, algorithm.is_stochastic()) {
            (_, false) => None,
            (Some(given), true) => Some(given.clone()),
            (None, true) => Some(noise.randn(converted.dims(), DType::F32, converted.device())?),
        };
        if let Some(variance_noise) = &variance_noise {
            check_like_sample("variance_noise", variance_noise, sample)?;
        }
        if let Some(previous) = self.model_outputs.front() {
            check_like_sample("sample", sample, previous)?;
        }
        self.model_outputs.push_front(converted);
        self.model_outputs.truncate(solver_order);

        let order = self.order_at(index).min(index + 1);
        let levels: Vec<NoiseLevel> = (0..=order).map(|back| self.level(index + 1 - back)).collect();
        let Some(update) = update::update(algorithm, solver, &levels) else {
            return Err(Error::NoTimesteps { scheduler: CLASS });
        };
        // The reference takes the sample in float32 here.
        let sample = sample.to_dtype(DType::F32)?;
        let mut weights = vec![update.sample];
        let mut tensors = vec![&sample];
        weights.extend(&update.model_outputs);
        tensors.extend(self.model_outputs.iter().take(update.model_outputs.len()));
        if let Some(variance_noise) = &variance_noise {
            weights.push(update.noise);
            tensors.push(variance_noise);
        }
        let prev_sample = LinearCombination::new(&weights).apply(&tensors, dtype)?;
        self.position.advance_from(index);
        Ok(StepOutput { prev_sample, pred_original_sample: None })
    }

    /// alpha original_samples + sigma noise at the sigmas of the schedule. Before `set_timesteps` that is the training
    /// schedule, whose sigmas the reference keeps in ascending order beside descending timesteps: train with
    /// [`DdpmScheduler`](crate::DdpmScheduler).
    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        let indices = self.position.noise_indices(CLASS, &self.schedule.timesteps, timesteps)?;
        let dtype = original_samples.dtype();
        let round = |values: Vec<f64>| rounded(values, dtype);
        let last = self.schedule.sigmas.len() - 1;
        let sigmas =
            round(indices.iter().map(|&index| f64::from(self.schedule.sigmas[index.min(last)])).collect())?;
        let (alphas, sigmas) = if self.config.typed.use_flow_sigmas {
            (round(sigmas.iter().map(|sigma| 1.0 - sigma).collect())?, sigmas)
        } else {
            let squares = round(sigmas.iter().map(|sigma| sigma * sigma).collect())?;
            let sums = round(squares.iter().map(|square| square + 1.0).collect())?;
            let roots = round(sums.iter().map(|sum| sum.sqrt()).collect())?;
            let alphas = round(roots.iter().map(|root| 1.0 / root).collect())?;
            let sigmas = round(sigmas.iter().zip(&alphas).map(|(sigma, alpha)| sigma * alpha).collect())?;
            (alphas, sigmas)
        };
        combine(original_samples, alphas, noise, sigmas, timesteps)
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
