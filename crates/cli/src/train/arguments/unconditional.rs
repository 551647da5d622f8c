//! Models that paint without a text.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::TRAINED;

/// What a new one is.
#[derive(Debug, Args, Serialize)]
pub(crate) struct UnconditionalArguments {
    /// Unconditional: what the new model's UNet is, a config.json of a UNet2DModel [default: that of diffusers' script]
    #[arg(long, value_name = "FILE", help_heading = TRAINED)]
    pub(crate) model_config_name_or_path: Option<PathBuf>,
    /// Unconditional: the scheduler that it is to paint with, DDPMScheduler or DDIMScheduler
    #[arg(long, value_name = "CLASS", default_value = "DDPMScheduler", help_heading = TRAINED)]
    pub(crate) scheduler: String,
    /// Unconditional: timesteps of its noise
    #[arg(long, value_name = "N", default_value_t = 1000, allow_negative_numbers = true, help_heading = TRAINED)]
    pub(crate) ddpm_num_steps: usize,
    /// Unconditional: how its noise rises
    #[arg(long, value_name = "NAME", default_value = "linear", help_heading = TRAINED)]
    pub(crate) ddpm_beta_schedule: String,
    /// Unconditional: how much of the average stays at a step, at most
    #[arg(long, value_name = "X", default_value_t = 0.9999, allow_negative_numbers = true, help_heading = TRAINED)]
    pub(crate) ema_max_decay: f64,
    /// Unconditional: over how many steps the average begins to last, (1 + step / X)^-power
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, help_heading = TRAINED)]
    pub(crate) ema_inv_gamma: f64,
    /// Unconditional: the power in it
    #[arg(long, value_name = "X", default_value_t = 0.75, allow_negative_numbers = true, help_heading = TRAINED)]
    pub(crate) ema_power: f64,
}
