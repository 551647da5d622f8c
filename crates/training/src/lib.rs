#![doc = include_str!("../README.md")]

pub mod dataset;
mod ema;
mod error;
mod gradients;
mod loss;
mod loss_mask;
mod loss_weights;
mod lr_schedule;
mod noise;
mod optimizer;
mod parameters;
mod targets;
mod values;

pub use ema::{EmaConfig, EmaModel};
pub use error::{Error, Result};
pub use gradients::Gradients;
pub use loss::{LossOptions, loss};
pub use loss_mask::loss_mask;
pub use loss_weights::{LossWeighting, loss_weights};
pub use lr_schedule::{LrSchedule, LrScheduleName, LrScheduleOptions};
pub use noise::{Noise, NoiseOptions, draw_noise, draw_timesteps};
pub use optimizer::{AdamW, AdamW8bit, AdamWConfig, MIN_8BIT_SIZE, Optimizer, Sgd, SgdConfig};
pub use parameters::{Parameter, ParameterGroup, check_parameters, parameters};
pub use targets::training_target;
