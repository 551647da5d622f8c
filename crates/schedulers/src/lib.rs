#![doc = include_str!("../README.md")]

mod beta_distribution;
mod config;
mod ddim;
mod ddpm;
mod dpm_solver_multistep;
mod error;
mod euler_ancestral_discrete;
mod euler_discrete;
mod from_config;
mod linear_combination;
mod noise_schedule;
mod pndm;
mod reference_math;
mod rng;
mod scheduler;
mod sigma_spacing;
mod snr;
mod step_position;
mod thresholding;
mod timestep_spacing;
mod variance_preserving;

pub use config::{config_from_json, config_to_json};
pub use ddim::{DdimConfig, DdimScheduler};
pub use ddpm::{DdpmConfig, DdpmScheduler, VarianceType};
pub use dpm_solver_multistep::{
    AlgorithmType, DpmSolverMultistepConfig, DpmSolverMultistepScheduler, LearnedVarianceType, SolverType,
    TimeShiftType,
};
pub use error::{Error, Result};
pub use euler_ancestral_discrete::{EulerAncestralDiscreteConfig, EulerAncestralDiscreteScheduler};
pub use euler_discrete::{EulerDiscreteConfig, EulerDiscreteScheduler, InterpolationType, TimestepType};
pub use from_config::{
    scheduler_class_names, scheduler_from_config, scheduler_from_other, scheduler_with_overrides,
};
pub use noise_schedule::BetaSchedule;
pub use pndm::{PndmConfig, PndmScheduler};
pub use rng::{NoiseSource, TorchGenerator};
pub use scheduler::{PredictionType, Scheduler, StepOptions, StepOutput};
pub use sigma_spacing::FinalSigmasType;
pub use snr::compute_snr;
pub use timestep_spacing::TimestepSpacing;
