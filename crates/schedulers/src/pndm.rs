//! Pseudo numerical methods for diffusion models (Liu et al., <https://huggingface.co/papers/2202.09778>): Runge-Kutta
//! steps to start with (PRK), then linear multistep ones (PLMS).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{ConfigRecord, SchedulerConfig, check_field};
use crate::error::{Error, Result};
use crate::linear_combination::{LinearCombination, check_like_sample, promoted};
use crate::noise_schedule::{self, BetaFields, BetaSchedule};
use crate::rng::NoiseSource;
use crate::scheduler::{PredictionType, Scheduler, StepOptions, StepOutput};
use crate::timestep_spacing::{TimestepSpacing, integer_timesteps};
use crate::variance_preserving::{self, describe_timesteps, training_index};

const CLASS: &str = "PNDMScheduler";
/// Timesteps that the Runge-Kutta steps begin with.
const PNDM_ORDER: usize = 4;
/// Model outputs that the multistep formula looks back on.
const HISTORY: usize = 4;

/// The fields of a PNDM `scheduler_config.json`, with diffusers' names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PndmConfig {
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
    /// Leave out the Runge-Kutta steps, as latent diffusion does.
    pub skip_prk_steps: bool,
    /// Let ᾱ before the first timestep be 1 instead of that of timestep 0.
    pub set_alpha_to_one: bool,
    /// What the model predicts: epsilon or v_prediction.
    pub prediction_type: PredictionType,
    /// How inference timesteps are picked.
    pub timestep_spacing: TimestepSpacing,
    /// What is added to each timestep of leading spacing.
    pub steps_offset: i64,
}

impl Default for PndmConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            skip_prk_steps: false,
            set_alpha_to_one: false,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
        }
    }
}

impl SchedulerConfig for PndmConfig {
    const CLASS: &'static str = CLASS;
}

/// The PNDM sampler; with `skip_prk_steps` it is the PLMS sampler of latent diffusion, whose first timestep but one comes
/// twice.
#[derive(Clone, Debug)]
pub struct PndmScheduler {
    config: ConfigRecord<PndmConfig>,
    alphas_cumprod: Vec<f32>,
    final_alpha_cumprod: f32,
    timesteps: Vec<f64>,
    /// How many of the timesteps are Runge-Kutta ones.
    prk_count: usize,
    /// Training timesteps in one inference step.
    step_ratio: Option<usize>,
    state: LoopState,
}

/// What a loop remembers.
#[derive(Clone, Debug, Default)]
struct LoopState {
    /// Steps done.
    counter: usize,
    /// The places in the timesteps that the next step may be at: more than one where timesteps come twice.
    positions: Option<Vec<usize>>,
    /// The last model outputs, the newest one last.
    model_outputs: Vec<Tensor>,
    /// The weighted sum of the model outputs of a Runge-Kutta step.
    model_output_sum: Option<Tensor>,
    /// The sample that the current step started from.
    sample: Option<Tensor>,
}

/// One application of formula (9): from where to where, and by which mix of model outputs.
struct Transfer<'a> {
    sample: &'a Tensor,
    timestep: i64,
    prev_timestep: i64,
    model_outputs: Vec<(f64, &'a Tensor)>,
}

impl PndmScheduler {
    /// A scheduler with this config.
    ///
    /// # Errors
    /// If a field is out of range, naming it.
    pub fn new(config: PndmConfig) -> Result<Self> {
        Self::build(ConfigRecord::new(config))
    }

    pub(crate) fn read(config: &Map<String, Value>, overrides: &Map<String, Value>) -> Result<Self> {
        Self::build(ConfigRecord::read(config, overrides)?)
    }

    fn build(config: ConfigRecord<PndmConfig>) -> Result<Self> {
        let fields = &config.typed;
        let betas = BetaFields {
            class: CLASS,
            num_train_timesteps: fields.num_train_timesteps,
            beta_start: fields.beta_start,
            beta_end: fields.beta_end,
            beta_schedule: fields.beta_schedule,
            trained_betas: fields.trained_betas.as_deref(),
            rescale_betas_zero_snr: false,
        };
        let allowed = [BetaSchedule::Linear, BetaSchedule::ScaledLinear, BetaSchedule::SquaredcosCapV2];
        let alphas_cumprod = noise_schedule::alphas_cumprod(&betas, &allowed)?;
        let predicts =
            matches!(fields.prediction_type, PredictionType::Epsilon | PredictionType::VPrediction);
        check_field(CLASS, "prediction_type", "unsupported here", predicts, "epsilon or v_prediction")?;
        let final_alpha_cumprod = if fields.set_alpha_to_one { 1.0 } else { alphas_cumprod[0] };
        Ok(Self {
            config,
            alphas_cumprod,
            final_alpha_cumprod,
            timesteps: Vec::new(),
            prk_count: 0,
            step_ratio: None,
            state: LoopState::default(),
        })
    }

    /// Fails unless the timestep follows on the last one, and notes where the next may be.
    fn go_to(&mut self, timestep: f64) -> Result<usize> {
        let Some(step_ratio) = self.step_ratio else {
            return Err(Error::NoTimesteps { scheduler: CLASS });
        };
        let is_here = |position: &usize| self.timesteps.get(*position) == Some(&timestep);
        let all: Vec<usize> = (0..self.timesteps.len()).collect();
        let places: Vec<usize> =
            self.state.positions.as_ref().unwrap_or(&all).iter().copied().filter(is_here).collect();
        if places.is_empty() {
            let expected = describe_timesteps(&self.timesteps);
            return Err(match &self.state.positions {
                Some(positions) => {
                    let next: Vec<&f64> =
                        positions.iter().filter_map(|&next| self.timesteps.get(next)).collect();
                    let expected = match next.first() {
                        Some(next) => {
                            format!("it is the turn of timestep {next}; call set_timesteps to start afresh")
                        }
                        None => "all timesteps are done; call set_timesteps to start afresh".into(),
                    };
                    Error::OutOfOrder { scheduler: CLASS, timestep, expected }
                }
                None => Error::UnknownTimestep { scheduler: CLASS, timestep, expected },
            });
        }
        self.state.positions = Some(places.into_iter().map(|place| place + 1).collect());
        Ok(step_ratio)
    }

    /// One of the four evaluations of a Runge-Kutta step, formula (13).
    fn step_prk(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        ratio: usize,
    ) -> Result<Tensor> {
        let counter = self.state.counter;
        let half_step = if counter % 2 == 1 { 0 } else { ratio / 2 };
        let start = self.timesteps[counter / 4 * 4] as i64;
        let share = if matches!(counter % 4, 0 | 3) { 1.0 / 6.0 } else { 1.0 / 3.0 };
        if counter.is_multiple_of(4) {
            self.state.model_outputs.push(model_output.clone());
            self.state.sample = Some(sample.clone());
        }
        let dtype = model_output.dtype();
        let sum = match self.state.model_output_sum.take() {
            Some(sum) => LinearCombination::new(&[1.0, share]).apply(&[&sum, model_output], dtype)?,
            None => LinearCombination::new(&[share]).apply(&[model_output], dtype)?,
        };
        let started_from = self.state.sample.as_ref().unwrap_or(sample);
        check_like_sample("model_output", model_output, started_from)?;
        let transfer = Transfer {
            sample: started_from,
            timestep: start,
            prev_timestep: timestep as i64 - half_step as i64,
            model_outputs: vec![(1.0, if counter % 4 == 3 { &sum } else { model_output })],
        };
        let prev_sample = self.transfer(transfer)?;
        if counter % 4 != 3 {
            self.state.model_output_sum = Some(sum);
        }
        Ok(prev_sample)
    }

    /// A linear multistep step, formula (12).
    fn step_plms(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        ratio: usize,
    ) -> Result<Tensor> {
        if !self.config.typed.skip_prk_steps && self.state.model_outputs.len() < HISTORY - 1 {
            let expected = "the Runge-Kutta steps come first; start at the first timestep".into();
            return Err(Error::OutOfOrder { scheduler: CLASS, timestep, expected });
        }
        let (mut timestep, mut prev_timestep) = (timestep as i64, timestep as i64 - ratio as i64);
        let counter = self.state.counter;
        let mut sample = sample.clone();
        if counter == 1 {
            // The second step goes once more over the first one's way, with the mean of both model outputs.
            (timestep, prev_timestep) = (timestep + ratio as i64, timestep);
        } else {
            let surplus = self.state.model_outputs.len().saturating_sub(HISTORY - 1);
            self.state.model_outputs.drain(..surplus);
            self.state.model_outputs.push(model_output.clone());
        }
        if counter == 0 {
            self.state.sample = Some(sample.clone());
        }
        let weights: &[f64] = match (self.state.model_outputs.len(), counter) {
            (1, 1) => {
                sample = self.state.sample.take().unwrap_or(sample);
                check_like_sample("model_output", model_output, &sample)?;
                &[1.0 / 2.0]
            }
            (1, _) => &[1.0],
            (2, _) => &[3.0 / 2.0, -1.0 / 2.0],
            (3, _) => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
            _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        };
        let newest_first = self.state.model_outputs.iter().rev();
        let mut model_outputs: Vec<(f64, &Tensor)> = weights.iter().copied().zip(newest_first).collect();
        if counter == 1 {
            model_outputs.push((1.0 / 2.0, model_output));
        }
        self.transfer(Transfer { sample: &sample, timestep, prev_timestep, model_outputs })
    }

    /// Formula (9), for epsilon in one weighted sum of the sample and the model outputs.
    fn transfer(&self, transfer: Transfer) -> Result<Tensor> {
        let count = self.alphas_cumprod.len();
        let alpha_prod_t = self.alphas_cumprod[training_index(CLASS, transfer.timestep as f64, count)?];
        let alpha_prod_t_prev = match transfer.prev_timestep {
            before if before < 0 => self.final_alpha_cumprod,
            timestep => self.alphas_cumprod[training_index(CLASS, timestep as f64, count)?],
        };
        let (beta_prod_t, beta_prod_t_prev) = (1.0 - alpha_prod_t, 1.0 - alpha_prod_t_prev);
        let sample_weight = f64::from((alpha_prod_t_prev / alpha_prod_t).sqrt());
        let difference = f64::from(alpha_prod_t_prev - alpha_prod_t);
        let denominator =
            alpha_prod_t * beta_prod_t_prev.sqrt() + (alpha_prod_t * beta_prod_t * alpha_prod_t_prev).sqrt();
        let denominator = f64::from(denominator);

        let (shares, model_outputs): (Vec<f64>, Vec<&Tensor>) = transfer.model_outputs.into_iter().unzip();
        let mut dtype = transfer.sample.dtype();
        for model_output in &model_outputs {
            check_like_sample("model_output", model_output, transfer.sample)?;
            dtype = promoted(dtype, model_output.dtype());
        }
        if self.config.typed.prediction_type == PredictionType::VPrediction {
            // Not gathered into one sum: where ᾱ is tiny both terms are large and cancel, and other roundings than the
            // reference's would show.
            let velocity = LinearCombination::new(&shares).apply(&model_outputs, dtype)?;
            let to_epsilon = [f64::from(alpha_prod_t.sqrt()), f64::from(beta_prod_t.sqrt())];
            let epsilon = LinearCombination::new(&to_epsilon).apply(&[&velocity, transfer.sample], dtype)?;
            let direction = LinearCombination::new(&[difference]).divided_by(denominator);
            let direction = direction.apply(&[&epsilon], dtype)?;
            return LinearCombination::new(&[sample_weight, -1.0])
                .apply(&[transfer.sample, &direction], dtype);
        }
        let weights = shares.iter().map(|share| -share * difference / denominator);
        let weights: Vec<f64> = std::iter::once(sample_weight).chain(weights).collect();
        let tensors: Vec<&Tensor> = std::iter::once(transfer.sample).chain(model_outputs).collect();
        LinearCombination::new(&weights).apply(&tensors, dtype)
    }
}

impl Scheduler for PndmScheduler {
    fn set_timesteps(&mut self, num_inference_steps: usize) -> Result<()> {
        let config = &self.config.typed;
        let (count, spacing) = (config.num_train_timesteps, config.timestep_spacing);
        let spaced = integer_timesteps(CLASS, spacing, count, num_inference_steps, config.steps_offset)?;
        let step_ratio = count / num_inference_steps;
        if config.skip_prk_steps {
            self.timesteps = plms_timesteps(&spaced);
            self.prk_count = 0;
        } else {
            if spaced.len() < PNDM_ORDER {
                let message = format!(
                    "num_inference_steps is {num_inference_steps}; Runge-Kutta steps need at least {PNDM_ORDER}, or set \
                     skip_prk_steps"
                );
                return Err(Error::Timesteps { scheduler: CLASS, message });
            }
            let mut timesteps = prk_timesteps(&spaced, (step_ratio / 2) as f64);
            self.prk_count = timesteps.len();
            timesteps.extend(&spaced[PNDM_ORDER - 1..]);
            self.timesteps = timesteps;
        }
        self.step_ratio = Some(step_ratio);
        self.state = LoopState::default();
        Ok(())
    }

    fn set_begin_index(&mut self, begin_index: usize) {
        self.state.positions = Some(vec![begin_index]);
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

    fn step(
        &mut self,
        model_output: &Tensor,
        timestep: f64,
        sample: &Tensor,
        _noise: &mut dyn NoiseSource,
        _options: &StepOptions,
    ) -> Result<StepOutput> {
        check_like_sample("model_output", model_output, sample)?;
        let step_ratio = self.go_to(timestep)?;
        let prev_sample = if self.state.counter < self.prk_count {
            self.step_prk(model_output, timestep, sample, step_ratio)?
        } else {
            self.step_plms(model_output, timestep, sample, step_ratio)?
        };
        self.state.counter += 1;
        Ok(StepOutput { prev_sample, pred_original_sample: None })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
        variance_preserving::add_noise(CLASS, &self.alphas_cumprod, original_samples, noise, timesteps)
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

/// The timesteps with the second one twice.
fn plms_timesteps(spaced: &[f64]) -> Vec<f64> {
    let mut timesteps = spaced.to_vec();
    if let Some(&second) = spaced.get(1) {
        timesteps.insert(1, second);
    }
    timesteps
}

/// Each Runge-Kutta step from a to b evaluates at a, twice between them, and at b; the half step is counted from b.
fn prk_timesteps(spaced: &[f64], half_step: f64) -> Vec<f64> {
    let pairs = spaced[..PNDM_ORDER].windows(2);
    pairs.flat_map(|pair| [pair[0], pair[1] + half_step, pair[1] + half_step, pair[1]]).collect()
}
