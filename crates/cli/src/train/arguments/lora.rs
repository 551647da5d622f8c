//! LoRAs.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::TRAINED;

/// What PEFT's `LoraConfig` says, and the file.
#[derive(Debug, Args, Serialize)]
pub(crate) struct LoraArguments {
    /// The rank of a LoRA
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = TRAINED)]
    pub(crate) rank: usize,
    /// What a LoRA is multiplied by, over its rank [default: the rank]
    #[arg(long, value_name = "X", help_heading = TRAINED)]
    pub(crate) lora_alpha: Option<f64>,
    /// The share of a LoRA's inputs that is left out in each step
    #[arg(long, value_name = "X", default_value_t = 0.0, help_heading = TRAINED)]
    pub(crate) lora_dropout: f64,
    /// Layers of the UNet that get a LoRA, by the ends of their names
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "to_k,to_q,to_v,to_out.0", help_heading = TRAINED)]
    pub(crate) lora_layers: Vec<String>,
    /// The layout of a LoRA's file: diffusers' or kohya's, which nearly every program reads
    #[arg(long, value_name = "LAYOUT", default_value = "diffusers")]
    pub(crate) lora_format: TrainedLoraFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TrainedLoraFormat {
    Diffusers,
    Kohya,
}
