//! How long, how large and how exact steps are.

use std::convert::Infallible;

use candle_core::DType;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::STEPS;

/// Steps.
#[derive(Debug, Args, Serialize)]
pub(crate) struct StepArguments {
    /// Pictures of a batch; of several processes, each has as many
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = STEPS)]
    pub(crate) train_batch_size: usize,
    /// Batches of a step, which has fewer where an epoch ends
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = STEPS)]
    pub(crate) gradient_accumulation_steps: usize,
    /// How often all pictures come, where --max-train-steps does not say when to end
    #[arg(long, alias = "num-epochs", value_name = "N", default_value_t = 100, help_heading = STEPS)]
    pub(crate) num_train_epochs: u64,
    /// Steps in all
    #[arg(long, alias = "max-train-steps-tuning", value_name = "N", help_heading = STEPS)]
    pub(crate) max_train_steps: Option<u64>,
    /// How large a step is [default: that of diffusers' script for Stable Diffusion 1 and 2: 1e-4; dreambooth and controlnet 5e-6, dreambooth-lora 5e-4, custom-diffusion 1e-5]
    #[arg(long, value_name = "X", help_heading = STEPS)]
    pub(crate) learning_rate: Option<f64>,
    /// How large a step of the UNet or of its LoRA is, where it is another one [default: --learning-rate]
    #[arg(long, alias = "unet-lr", value_name = "X", help_heading = STEPS)]
    pub(crate) learning_rate_unet: Option<f64>,
    /// How large a step of the text encoder is [default: --learning-rate]
    #[arg(long, alias = "learning-rate-text", value_name = "X", requires = "train_text_encoder", help_heading = STEPS)]
    pub(crate) text_encoder_lr: Option<f64>,
    /// Pivotal tuning: steps of the textual inversion that comes first
    #[arg(long, value_name = "N", default_value_t = 500, help_heading = STEPS)]
    pub(crate) max_train_steps_ti: u64,
    /// Pivotal tuning: how large a step of the textual inversion is
    #[arg(long, alias = "ti-lr", value_name = "X", default_value_t = 5e-4, help_heading = STEPS)]
    pub(crate) learning_rate_ti: f64,
    /// Multiply learning rates by the pictures of a step; --text-encoder-lr in pivotal-tuning only
    #[arg(long, help_heading = STEPS)]
    pub(crate) scale_lr: bool,
    /// How learning rates change: constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial or
    /// piecewise_constant
    #[arg(long, value_name = "NAME", default_value = "constant", value_parser = schedule_name, help_heading = STEPS)]
    pub(crate) lr_scheduler: String,
    /// Steps in which learning rates rise
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = STEPS)]
    pub(crate) lr_warmup_steps: usize,
    /// How often cosine_with_restarts falls
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = STEPS)]
    pub(crate) lr_num_cycles: usize,
    /// The exponent of polynomial
    #[arg(long, value_name = "X", default_value_t = 1.0, help_heading = STEPS)]
    pub(crate) lr_power: f64,
    /// piecewise_constant: factors with the steps at which they end, and the last factor: 1:10,0.1:20,0.005
    #[arg(long, value_name = "RULES", help_heading = STEPS)]
    pub(crate) lr_step_rules: Option<String>,
    /// What order, crops, noise and timesteps follow from
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64), help_heading = STEPS)]
    pub(crate) seed: u64,
    /// bf16 computes in bfloat16; what is trained stays float32
    #[arg(long, value_name = "TYPE", default_value = "no", help_heading = STEPS)]
    pub(crate) mixed_precision: MixedPrecision,
    /// Keep only the inputs of the UNet's blocks and the text encoders' layers for the gradients and one copy of weights, and compute the rest again: less memory, more time
    #[arg(long, help_heading = STEPS)]
    pub(crate) gradient_checkpointing: bool,
}

/// A schedule's name, also a shorter one that guides print.
pub(super) fn schedule_name(name: &str) -> Result<String, Infallible> {
    Ok(if name == "piecewise" { "piecewise_constant" } else { name }.to_string())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MixedPrecision {
    No,
    Bf16,
    /// What guides for GPUs say; refused with a reason.
    #[value(hide = true)]
    Fp16,
}

impl MixedPrecision {
    pub(crate) fn compute_dtype(self) -> DType {
        match self {
            Self::No => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::Fp16 => DType::F16,
        }
    }
}
