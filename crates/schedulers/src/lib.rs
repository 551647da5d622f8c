//! Diffusion schedulers (DDPM, DDIM, PNDM, DPM-Solver++, Euler) on candle tensors, equal to Hugging Face diffusers.

mod config;
mod ddim;
mod error;
mod from_config;
mod linear_combination;
mod noise_schedule;
mod reference_math;
mod rng;
mod scheduler;
mod thresholding;
mod timestep_spacing;
mod variance_preserving;

pub use config::{config_from_json, config_to_json};
pub use ddim::{DdimConfig, DdimScheduler};
pub use error::{Error, Result};
pub use from_config::{
    scheduler_class_names, scheduler_from_config, scheduler_from_other, scheduler_with_overrides,
};
pub use noise_schedule::BetaSchedule;
pub use rng::{NoiseSource, TorchGenerator};
pub use scheduler::{PredictionType, Scheduler, StepOptions, StepOutput};
pub use timestep_spacing::TimestepSpacing;
