//! controlnet and instruct-pix2pix: pictures that come with another one.

use std::ffi::OsString;

use clap::Args;
use serde::Serialize;

use super::{PICTURES, TRAINED, text};

/// What the other pictures are, and the ControlNet to begin with.
#[derive(Debug, Args, Serialize)]
pub(crate) struct PairArguments {
    /// ControlNet: the column that names what steers each picture: its edges, a pose, depths
    #[arg(long, value_name = "NAME", default_value = "conditioning_image", help_heading = PICTURES)]
    pub(crate) conditioning_image_column: String,
    /// InstructPix2Pix: the column that names the pictures to edit
    #[arg(long, value_name = "NAME", default_value = "input_image", help_heading = PICTURES)]
    pub(crate) original_image_column: String,
    /// InstructPix2Pix: the column that names the pictures as they shall become
    #[arg(long, value_name = "NAME", default_value = "edited_image", help_heading = PICTURES)]
    pub(crate) edited_image_column: String,
    /// InstructPix2Pix: the column that says what to change
    #[arg(long, value_name = "NAME", default_value = "edit_prompt", help_heading = PICTURES)]
    pub(crate) edit_prompt_column: String,
    /// InstructPix2Pix: leave out the picture, the instruction, or both, each this share of the time; 0.05 is usual
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = PICTURES)]
    pub(crate) conditioning_dropout_prob: Option<f64>,
    /// ControlNet: begin with this one, a folder, a file or the id of one on the hub [default: the model's UNet]
    #[arg(long, value_name = "PATH_OR_ID", help_heading = TRAINED)]
    #[serde(serialize_with = "text")]
    pub(crate) controlnet_model_name_or_path: Option<OsString>,
}
