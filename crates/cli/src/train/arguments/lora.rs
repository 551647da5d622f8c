//! LoRAs.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::TRAINED;

/// What PEFT's `LoraConfig` says, and the file.
#[derive(Debug, Args, Serialize)]
pub(crate) struct LoraArguments {
    /// The rank of a LoRA
    #[arg(long, aliases = ["lora-rank", "network-dim"], value_name = "N", default_value_t = 4, help_heading = TRAINED)]
    pub(crate) rank: usize,
    /// What a LoRA is multiplied by, over its rank [default: the rank]
    #[arg(long, alias = "network-alpha", value_name = "X", help_heading = TRAINED)]
    pub(crate) lora_alpha: Option<f64>,
    /// The share of a LoRA's inputs that is left out in each step
    #[arg(long, alias = "lora-dropout-p", value_name = "X", default_value_t = 0.0, help_heading = TRAINED)]
    pub(crate) lora_dropout: f64,
    /// Layers of the UNet that get a LoRA, by the ends of their names
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "to_k,to_q,to_v,to_out.0", help_heading = TRAINED)]
    pub(crate) lora_layers: Vec<String>,
    /// Layers of the UNet that get a LoRA, by a regular expression for their whole names, in place of --lora-layers
    #[arg(long, value_name = "REGEX", help_heading = TRAINED)]
    pub(crate) target_modules: Option<String>,
    /// What a LoRA's first matrices begin as: normally distributed, or evenly as torch's layers (true, kaiming or default)
    #[arg(long, value_name = "HOW", default_value = "gaussian", help_heading = TRAINED)]
    pub(crate) init_lora_weights: InitLoraWeights,
    /// Train the lengths of the weights' rows too (DoRA)
    #[arg(long, help_heading = TRAINED)]
    pub(crate) use_dora: bool,
    /// Multiply a LoRA by its alpha over the root of its rank, not over the rank (rsLoRA)
    #[arg(long, help_heading = TRAINED)]
    pub(crate) use_rslora: bool,
    /// The layout of a LoRA's file: diffusers' or kohya's, which nearly every program reads
    #[arg(long, value_name = "LAYOUT", default_value = "diffusers")]
    pub(crate) lora_format: TrainedLoraFormat,
    /// Write it in kohya's layout too, as pytorch_lora_weights_kohya.safetensors
    #[arg(long)]
    pub(crate) output_kohya_format: bool,
}

impl LoraArguments {
    /// The ends of --lora-layers, with or without spaces beside their commas.
    pub(crate) fn layers(&self) -> Vec<&str> {
        self.lora_layers.iter().map(|end| end.trim()).filter(|end| !end.is_empty()).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TrainedLoraFormat {
    Diffusers,
    Kohya,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum InitLoraWeights {
    Gaussian,
    #[value(aliases = ["kaiming", "default"])]
    True,
}
