//! When a run is written, shown and gone on with: nothing here changes what is learned, so that a run may go on with other values.

use std::path::PathBuf;

use candle_diffusers_pipelines::Schedule;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::STOPPING;

/// Checkpoints and validation.
#[derive(Debug, Args, Serialize)]
pub(crate) struct WatchArguments {
    /// Write a checkpoint every N steps
    #[arg(long, value_name = "N", default_value_t = 500, allow_negative_numbers = true, help_heading = STOPPING)]
    pub(crate) checkpointing_steps: u64,
    /// Keep the newest N checkpoints
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = STOPPING)]
    pub(crate) checkpoints_total_limit: Option<usize>,
    /// Go on from a checkpoint: latest, or a name such as checkpoint-500
    #[arg(long, value_name = "NAME", help_heading = STOPPING)]
    #[serde(skip)]
    pub(crate) resume_from_checkpoint: Option<String>,
    /// Paint these every --validation-steps steps or --validation-epochs epochs, to see how the model changes
    #[arg(long, alias = "validation-prompts", value_name = "TEXT", num_args = 1.., help_heading = STOPPING)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) validation_prompt: Vec<String>,
    /// ControlNet, InstructPix2Pix: the pictures that steer the validation prompts, or are edited by them: one for each, or one for all
    #[arg(long, aliases = ["validation-images", "val-image-url", "val-image-url-or-path"], value_name = "FILE", num_args = 1.., help_heading = STOPPING)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) validation_image: Vec<PathBuf>,
    /// Paint them every N steps [default: 100 where nothing is said]; unconditional: paint what the model makes of noise, where this or --validation-epochs is said
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = STOPPING)]
    pub(crate) validation_steps: Option<u64>,
    /// Paint them every N epochs
    #[arg(long, alias = "save-images-epochs", value_name = "N", allow_negative_numbers = true, help_heading = STOPPING)]
    pub(crate) validation_epochs: Option<u64>,
    /// How many pictures of each prompt; all of one time become one
    #[arg(long, alias = "eval-batch-size", value_name = "N", default_value_t = 4, allow_negative_numbers = true, help_heading = STOPPING)]
    pub(crate) num_validation_images: usize,
    /// Denoising steps of pictures that are painted for validation and of the class [default: 30; unconditional: 1000, or 50 of DDIM]
    #[arg(long, alias = "ddpm-num-inference-steps", value_name = "N", allow_negative_numbers = true, help_heading = STOPPING)]
    pub(crate) num_inference_steps: Option<usize>,
    /// Write loss, learning rate, norm of the gradients, seconds a step and validation pictures for this program too
    #[arg(long, alias = "logger", value_name = "PROGRAM", default_value = "none", help_heading = STOPPING)]
    pub(crate) report_to: ReportTo,
    /// The folder of those files, in --output-dir
    #[arg(long, value_name = "FOLDER", default_value = "logs", help_heading = STOPPING)]
    pub(crate) logging_dir: PathBuf,
}

impl WatchArguments {
    /// How pictures of a text are painted.
    pub(crate) fn schedule(&self) -> Schedule {
        Schedule::Steps(self.num_inference_steps.unwrap_or(30))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ReportTo {
    None,
    Tensorboard,
    /// What guides say for services on the network; refused with a reason.
    #[value(name = "wandb", aliases = ["comet_ml", "all"], hide = true)]
    Service,
}
