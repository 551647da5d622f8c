//! The timesteps and sigmas of a DPM-Solver loop.

use crate::error::{Error, Result};
use crate::noise_schedule::BetaSchedule;
use crate::reference_math::{numpy_interp, numpy_linspace};
use crate::sigma_spacing::{
    FinalSigmasType, SigmaSpacing, log_sigmas, sigma_to_timestep, training_sigma, training_sigmas,
};
use crate::timestep_spacing::{MAX_INFERENCE_STEPS, TimestepSpacing, check_steps, leading, trailing};

use super::CLASS;
use super::config::DpmSolverMultistepConfig;

/// Timesteps, and one more sigma than there are timesteps.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pub(super) timesteps: Vec<f64>,
    pub(super) sigmas: Vec<f32>,
}

/// What a schedule is made from.
pub(super) struct ScheduleSource<'a> {
    pub(super) config: &'a DpmSolverMultistepConfig,
    pub(super) alphas_cumprod: &'a [f32],
    /// The config's, or what `mu` made of it.
    pub(super) flow_shift: f64,
    /// Extremes from the config of another scheduler, which the reference finds in hidden fields.
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
}

impl ScheduleSource<'_> {
    /// The training schedule. Its sigmas stand in ascending order beside descending timesteps, as in the reference.
    pub(super) fn training(&self) -> Schedule {
        let timesteps = (0..self.alphas_cumprod.len()).rev().map(|timestep| timestep as f64).collect();
        Schedule { timesteps, sigmas: training_sigmas(self.alphas_cumprod) }
    }

    /// The schedule of a loop with this many steps.
    pub(super) fn spaced(&self, num_inference_steps: usize) -> Result<Schedule> {
        check_steps(CLASS, num_inference_steps, MAX_INFERENCE_STEPS)?;
        let (timesteps, sigmas) = match self.config.sigma_spacing()? {
            Some(SigmaSpacing::Karras) => self.by_extremes(SigmaSpacing::Karras, num_inference_steps),
            _ if self.config.use_lu_lambdas => self.lu(num_inference_steps),
            Some(spacing) => self.by_extremes(spacing, num_inference_steps),
            None if self.config.use_flow_sigmas => self.flow(num_inference_steps),
            None => {
                let timesteps = self.spaced_timesteps(num_inference_steps)?;
                let sigmas = self.interpolated(&timesteps);
                (timesteps, sigmas)
            }
        };
        Ok(self.finished(timesteps, sigmas))
    }

    /// The schedule of these timesteps.
    pub(super) fn custom(&self, timesteps: &[f64]) -> Result<Schedule> {
        let config = self.config;
        for (field, set) in [
            ("use_karras_sigmas", config.use_karras_sigmas),
            ("use_lu_lambdas", config.use_lu_lambdas),
            ("use_exponential_sigmas", config.use_exponential_sigmas),
            ("use_beta_sigmas", config.use_beta_sigmas),
            ("use_flow_sigmas", config.use_flow_sigmas),
        ] {
            if set {
                let message = format!("custom timesteps do not go with {field} = true");
                return Err(Error::Timesteps { scheduler: CLASS, message });
            }
        }
        let timesteps: Vec<f64> = timesteps.iter().map(|timestep| timestep.trunc()).collect();
        let last = (self.alphas_cumprod.len() - 1) as f64;
        let in_range = timesteps.iter().all(|timestep| (0.0..=last).contains(timestep));
        if timesteps.is_empty() || timesteps.len() > MAX_INFERENCE_STEPS || !in_range {
            let message =
                format!("custom timesteps {timesteps:?}; expected at least one, each from 0 to {last}");
            return Err(Error::Timesteps { scheduler: CLASS, message });
        }
        let sigmas = self.interpolated(&timesteps);
        Ok(self.finished(timesteps, sigmas))
    }

    /// Timesteps by the config's spacing, below the one where lambda is clipped.
    fn spaced_timesteps(&self, num_inference_steps: usize) -> Result<Vec<f64>> {
        let config = self.config;
        let last_timestep = self.last_timestep();
        // More would come twice, and divide by a step of length zero.
        let most = match config.timestep_spacing {
            TimestepSpacing::Trailing => config.num_train_timesteps,
            TimestepSpacing::Linspace | TimestepSpacing::Leading => last_timestep.saturating_sub(1),
        };
        check_steps(CLASS, num_inference_steps, most)?;
        let mut timesteps = match config.timestep_spacing {
            TimestepSpacing::Linspace => {
                let even = numpy_linspace(0.0, (last_timestep - 1) as f64, num_inference_steps + 1);
                even.into_iter().rev().map(f64::round_ties_even).collect()
            }
            TimestepSpacing::Leading => leading(
                last_timestep / (num_inference_steps + 1),
                num_inference_steps + 1,
                config.steps_offset,
            ),
            TimestepSpacing::Trailing => {
                return Ok(trailing(last_timestep, config.num_train_timesteps, num_inference_steps));
            }
        };
        timesteps.pop();
        Ok(timesteps)
    }

    /// How many training timesteps have a lambda that is not clipped.
    fn last_timestep(&self) -> usize {
        let clipped = |alpha: &&f32| {
            let lambda = alpha.sqrt().ln() - (1.0 - **alpha).sqrt().ln();
            f64::from(lambda) < self.config.lambda_min_clipped
        };
        self.alphas_cumprod.len() - self.alphas_cumprod.iter().rev().take_while(clipped).count()
    }

    fn interpolated(&self, timesteps: &[f64]) -> Vec<f64> {
        let sigmas = training_sigmas(self.alphas_cumprod);
        timesteps.iter().map(|&timestep| numpy_interp(timestep, &sigmas)).collect()
    }

    /// Sigmas between the extremes of training, and their timesteps.
    fn by_extremes(&self, spacing: SigmaSpacing, count: usize) -> (Vec<f64>, Vec<f64>) {
        let training = training_sigmas(self.alphas_cumprod);
        let extreme = |sigma: Option<&f32>| sigma.copied().map_or(0.0, f64::from);
        let sigma_min = self.sigma_min.unwrap_or(extreme(training.first()));
        let sigma_max = self.sigma_max.unwrap_or(extreme(training.last()));
        let sigmas = spacing.sigmas(sigma_min, sigma_max, count);
        let round = spacing == SigmaSpacing::Karras;
        (self.timesteps_of(&sigmas, &log_sigmas(&training), round), sigmas)
    }

    /// Sigmas evenly spaced in the logarithm of those of training.
    fn lu(&self, count: usize) -> (Vec<f64>, Vec<f64>) {
        let logarithms = log_sigmas(&training_sigmas(self.alphas_cumprod));
        let extreme = |logarithm: Option<&f32>| logarithm.copied().map_or(0.0, f64::from);
        let (min, max) = (extreme(logarithms.first()), extreme(logarithms.last()));
        let ramp = numpy_linspace(0.0, 1.0, count).into_iter();
        let sigmas: Vec<f64> = ramp.map(|share| (max + share * (min - max)).exp()).collect();
        (self.timesteps_of(&sigmas, &logarithms, true), sigmas)
    }

    /// Timesteps of sigmas; rounded where the reference does, which is not for the cosine schedule.
    fn timesteps_of(&self, sigmas: &[f64], log_sigmas: &[f32], round: bool) -> Vec<f64> {
        let round = round && self.config.beta_schedule != BetaSchedule::SquaredcosCapV2;
        let timesteps = sigmas.iter().map(|&sigma| sigma_to_timestep(sigma, log_sigmas));
        timesteps.map(|timestep| if round { timestep.round_ties_even() } else { timestep }).collect()
    }

    fn flow(&self, count: usize) -> (Vec<f64>, Vec<f64>) {
        let (shift, train) = (self.flow_shift, self.config.num_train_timesteps as f64);
        let shifted = |alpha: f64| shift * (1.0 - alpha) / (1.0 + (shift - 1.0) * (1.0 - alpha));
        let mut sigmas: Vec<f64> =
            numpy_linspace(1.0, 1.0 / train, count + 1).into_iter().map(shifted).rev().collect();
        sigmas.pop();
        (sigmas.iter().map(|sigma| sigma * train).collect(), sigmas)
    }

    /// Adds the sigma at which sampling ends and cuts timesteps to integers.
    fn finished(&self, timesteps: Vec<f64>, sigmas: Vec<f64>) -> Schedule {
        let last = match self.config.final_sigmas_type {
            FinalSigmasType::SigmaMin => training_sigma(self.alphas_cumprod[0]),
            FinalSigmasType::Zero => 0.0,
        };
        let sigmas = sigmas.into_iter().map(|sigma| sigma as f32).chain([last]).collect();
        Schedule { timesteps: timesteps.into_iter().map(f64::trunc).collect(), sigmas }
    }
}
