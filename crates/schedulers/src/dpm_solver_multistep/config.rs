//! The config of DPM-Solver.

use serde::{Deserialize, Serialize};

use crate::config::{SchedulerConfig, check_field, number_or_infinity, optional_flag};
use crate::error::Result;
use crate::noise_schedule::BetaSchedule;
use crate::scheduler::PredictionType;
use crate::sigma_spacing::{FinalSigmasType, SigmaSpacing};
use crate::thresholding::Thresholding;
use crate::timestep_spacing::TimestepSpacing;

use super::CLASS;

/// Which integral is solved, and whether noise is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AlgorithmType {
    /// That of the noise prediction (<https://huggingface.co/papers/2206.00927>).
    #[serde(rename = "dpmsolver")]
    DpmSolver,
    /// That of the data prediction (<https://huggingface.co/papers/2211.01095>). `deis` means this, as in the reference.
    #[serde(rename = "dpmsolver++", alias = "deis")]
    DpmSolverPlusPlus,
    /// The noise prediction with noise added.
    #[serde(rename = "sde-dpmsolver")]
    SdeDpmSolver,
    /// The data prediction with noise added.
    #[serde(rename = "sde-dpmsolver++")]
    SdeDpmSolverPlusPlus,
}

impl AlgorithmType {
    /// Whether the solver works on predicted original samples rather than on predicted noise.
    pub(super) fn predicts_data(self) -> bool {
        matches!(self, Self::DpmSolverPlusPlus | Self::SdeDpmSolverPlusPlus)
    }

    /// Whether noise is added.
    pub(super) fn is_stochastic(self) -> bool {
        matches!(self, Self::SdeDpmSolver | Self::SdeDpmSolverPlusPlus)
    }
}

/// How the second-order formula is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// Midpoint. `logrho`, `bh1` and `bh2`, which other schedulers have, mean this, as in the reference.
    #[serde(alias = "logrho", alias = "bh1", alias = "bh2")]
    Midpoint,
    /// Heun.
    Heun,
}

/// Models whose output has channels for the variance too, which the solver leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LearnedVarianceType {
    /// The variance itself.
    Learned,
    /// A place between two variances.
    LearnedRange,
}

/// How `mu` shifts flow timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeShiftType {
    /// By e^mu.
    Exponential,
}

/// The fields of a DPM-Solver multistep `scheduler_config.json`, with diffusers' names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DpmSolverMultistepConfig {
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
    /// The order of the solver, 1 to 3; 2 is recommended with guidance, 3 without.
    pub solver_order: usize,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    /// Threshold the predicted original sample dynamically.
    pub thresholding: bool,
    /// The quantile for dynamic thresholding.
    pub dynamic_thresholding_ratio: f64,
    /// The largest dynamic threshold.
    pub sample_max_value: f64,
    /// Which integral is solved.
    pub algorithm_type: AlgorithmType,
    /// How the second-order formula is closed.
    pub solver_type: SolverType,
    /// Lower the order in the last two of fewer than 15 steps.
    pub lower_order_final: bool,
    /// Take the last step with order 1.
    pub euler_at_final: bool,
    /// Space sigmas by Karras et al.
    #[serde(deserialize_with = "optional_flag")]
    pub use_karras_sigmas: bool,
    /// Space sigmas evenly in the logarithm.
    #[serde(deserialize_with = "optional_flag")]
    pub use_exponential_sigmas: bool,
    /// Space sigmas by a beta distribution.
    #[serde(deserialize_with = "optional_flag")]
    pub use_beta_sigmas: bool,
    /// Space the logarithms of sigmas evenly (Lu et al.).
    #[serde(deserialize_with = "optional_flag")]
    pub use_lu_lambdas: bool,
    /// Space sigmas for flow matching.
    #[serde(deserialize_with = "optional_flag")]
    pub use_flow_sigmas: bool,
    /// The shift of flow sigmas.
    #[serde(deserialize_with = "one_if_null")]
    pub flow_shift: f64,
    /// The noise level at which sampling ends.
    pub final_sigmas_type: FinalSigmasType,
    /// The smallest half logarithm of the signal-to-noise ratio; `-Infinity` for none.
    #[serde(with = "number_or_infinity")]
    pub lambda_min_clipped: f64,
    /// Set for models whose output has channels for the variance too.
    pub variance_type: Option<LearnedVarianceType>,
    /// How inference timesteps are picked.
    pub timestep_spacing: TimestepSpacing,
    /// What is added to each timestep of leading spacing.
    pub steps_offset: i64,
    /// Rescale betas so that the last timestep is pure noise.
    pub rescale_betas_zero_snr: bool,
    /// Let [`set_timesteps_shifted`](super::DpmSolverMultistepScheduler::set_timesteps_shifted) choose `flow_shift`.
    pub use_dynamic_shifting: bool,
    /// How it does that.
    pub time_shift_type: TimeShiftType,
}

impl Default for DpmSolverMultistepConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            solver_order: 2,
            prediction_type: PredictionType::Epsilon,
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
            algorithm_type: AlgorithmType::DpmSolverPlusPlus,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            use_lu_lambdas: false,
            use_flow_sigmas: false,
            flow_shift: 1.0,
            final_sigmas_type: FinalSigmasType::Zero,
            lambda_min_clipped: f64::NEG_INFINITY,
            variance_type: None,
            timestep_spacing: TimestepSpacing::Linspace,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
            use_dynamic_shifting: false,
            time_shift_type: TimeShiftType::Exponential,
        }
    }
}

impl SchedulerConfig for DpmSolverMultistepConfig {
    const CLASS: &'static str = CLASS;
}

impl DpmSolverMultistepConfig {
    /// Fails on fields that are out of range or do not go together.
    pub(super) fn check(&self) -> Result<()> {
        check_field(
            CLASS,
            "solver_order",
            self.solver_order,
            (1..=3).contains(&self.solver_order),
            "1, 2 or 3",
        )?;
        let third_order_sde = self.solver_order == 3 && self.algorithm_type == AlgorithmType::SdeDpmSolver;
        check_field(
            CLASS,
            "solver_order",
            3,
            !third_order_sde,
            "1 or 2 where algorithm_type is sde-dpmsolver",
        )?;
        let data = self.algorithm_type.predicts_data();
        let flow = self.prediction_type == PredictionType::FlowPrediction;
        let expected = "epsilon, sample or v_prediction where algorithm_type is dpmsolver or sde-dpmsolver";
        check_field(CLASS, "prediction_type", "flow_prediction", data || !flow, expected)?;
        let ends_clean = self.final_sigmas_type == FinalSigmasType::Zero;
        let expected = "sigma_min where algorithm_type is dpmsolver or sde-dpmsolver";
        check_field(CLASS, "final_sigmas_type", "zero", data || !ends_clean, expected)?;
        let shift = self.flow_shift;
        check_field(CLASS, "flow_shift", shift, shift.is_finite() && shift > 0.0, "a number greater than 0")?;
        self.sigma_spacing()?;
        self.thresholding().check(CLASS)
    }

    pub(super) fn sigma_spacing(&self) -> Result<Option<SigmaSpacing>> {
        let (karras, exponential) = (self.use_karras_sigmas, self.use_exponential_sigmas);
        SigmaSpacing::from_flags(CLASS, karras, exponential, self.use_beta_sigmas)
    }

    pub(super) fn thresholding(&self) -> Thresholding {
        Thresholding {
            dynamic_thresholding_ratio: self.dynamic_thresholding_ratio,
            sample_max_value: self.sample_max_value,
        }
    }
}

/// The reference lets the shift be null, where it does not matter.
fn one_if_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(1.0))
}
