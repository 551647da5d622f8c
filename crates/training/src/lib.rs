#![doc = include_str!("../README.md")]

mod ema;
mod error;
mod gradients;
mod lr_schedule;
mod optimizer;
mod parameters;
mod values;

pub use ema::{EmaConfig, EmaModel};
pub use error::{Error, Result};
pub use gradients::Gradients;
pub use lr_schedule::{LrSchedule, LrScheduleName, LrScheduleOptions};
pub use optimizer::{AdamW, AdamW8bit, AdamWConfig, MIN_8BIT_SIZE, Optimizer, Sgd, SgdConfig};
pub use parameters::{Parameter, ParameterGroup, check_parameters, parameters};
