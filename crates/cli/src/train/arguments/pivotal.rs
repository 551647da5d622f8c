//! Pivotal tuning: what cloneofsimo's `lora_diffusion/cli_lora_pti.py` does beyond diffusers' scripts, by its names.

use clap::Args;
use clap::builder::BoolishValueParser;
use serde::Serialize;

use super::steps::schedule_name;
use super::{PICTURES, STEPS};

/// The word's steps and the LoRA's.
#[derive(Debug, Args, Serialize)]
pub(crate) struct PivotalArguments {
    /// Pivotal tuning: after each step of the word pull the lengths of its vectors to 0.4, about which those of Stable Diffusion's words are
    #[arg(long, help_heading = STEPS)]
    pub(crate) clip_ti_decay: bool,
    /// Pivotal tuning: how strongly the word is pulled to zero; lora_pti has 0 [default: --adam-weight-decay]
    #[arg(long, value_name = "X", help_heading = STEPS)]
    pub(crate) weight_decay_ti: Option<f64>,
    /// Pivotal tuning: how strongly the LoRA is, and the word beside it; lora_pti has 0.001 [default: --adam-weight-decay]
    #[arg(long, value_name = "X", help_heading = STEPS)]
    pub(crate) weight_decay_lora: Option<f64>,
    /// Pivotal tuning: the share of timesteps, from the least noise, that the LoRA learns at; lora_pti has 0.8
    // The alias is how lora_pti spells it.
    #[arg(long, alias = "t-mutliplier", value_name = "X", default_value_t = 1.0, help_heading = STEPS)]
    pub(crate) t_multiplier: f64,
    /// Pivotal tuning: how learning rates of the LoRA change; lora_pti has linear [default: --lr-scheduler]
    #[arg(long, value_name = "NAME", value_parser = schedule_name, help_heading = STEPS)]
    pub(crate) lr_scheduler_lora: Option<String>,
    /// Pivotal tuning: steps in which they rise [default: --lr-warmup-steps]
    #[arg(long, value_name = "N", help_heading = STEPS)]
    pub(crate) lr_warmup_steps_lora: Option<usize>,
    /// Pivotal tuning: let the word learn on beside the LoRA
    #[arg(long, help_heading = STEPS)]
    pub(crate) continue_inversion: bool,
    /// Pivotal tuning: how large a step of the word is then, whatever --scale-lr says [default: that of the textual inversion]
    #[arg(long, value_name = "X", requires = "continue_inversion", help_heading = STEPS)]
    pub(crate) continue_inversion_lr: Option<f64>,
    /// Pivotal tuning: cut each picture, choose its caption and draw its latents once for all steps, so that pictures are encoded once
    #[arg(long, help_heading = PICTURES)]
    pub(crate) cached_latents: bool,
    /// Pivotal tuning: make pictures a little brighter or darker, with a little more or less contrast, at random
    #[arg(long, help_heading = PICTURES)]
    pub(crate) color_jitter: bool,
    /// What guides for lora_pti say; it is always done, and false is refused with a reason.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    #[serde(skip)]
    pub(crate) perform_inversion: Option<bool>,
}
