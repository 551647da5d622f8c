//! How parameters follow their gradients.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::STEPS;

/// The optimizer.
#[derive(Debug, Args, Serialize)]
pub(crate) struct OptimizerArguments {
    /// The rule by which parameters follow their gradients
    #[arg(long, value_name = "NAME", ignore_case = true, default_value = "adamw", help_heading = STEPS)]
    pub(crate) optimizer: OptimizerName,
    /// SGD: how much of the last step goes on
    #[arg(long, value_name = "X", default_value_t = 0.0, help_heading = STEPS)]
    pub(crate) momentum: f64,
    /// AdamW with states of 8 bits, which take a quarter of the memory
    #[arg(long, help_heading = STEPS)]
    pub(crate) use_8bit_adam: bool,
    /// AdamW's first beta
    #[arg(long, value_name = "X", default_value_t = 0.9, help_heading = STEPS)]
    pub(crate) adam_beta1: f64,
    /// AdamW's second beta
    #[arg(long, value_name = "X", default_value_t = 0.999, help_heading = STEPS)]
    pub(crate) adam_beta2: f64,
    /// How strongly weights are pulled to zero
    #[arg(long, value_name = "X", default_value_t = 1e-2, help_heading = STEPS)]
    pub(crate) adam_weight_decay: f64,
    /// How strongly those of the text encoder are [default: --adam-weight-decay]
    #[arg(long, value_name = "X", requires = "train_text_encoder", help_heading = STEPS)]
    pub(crate) adam_weight_decay_text_encoder: Option<f64>,
    /// AdamW's epsilon
    #[arg(long, value_name = "X", default_value_t = 1e-8, help_heading = STEPS)]
    pub(crate) adam_epsilon: f64,
    /// What the norm of the gradients is clipped to; 0 clips nothing, and those of a new word never are clipped
    #[arg(long, value_name = "X", default_value_t = 1.0, help_heading = STEPS)]
    pub(crate) max_grad_norm: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub(crate) enum OptimizerName {
    AdamW,
    /// What guides for other trainers say for --use-8bit-adam.
    #[value(hide = true)]
    AdamW8bit,
    Sgd,
}
