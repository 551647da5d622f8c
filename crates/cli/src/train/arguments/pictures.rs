//! Which pictures are learned from.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::PICTURES;

/// Pictures, and how they are brought to size.
#[derive(Debug, Args, Serialize)]
pub(crate) struct PictureArguments {
    /// text-to-image: the folder of pictures, with captions in metadata.csv, metadata.jsonl or in text files beside the pictures
    #[arg(long, value_name = "FOLDER", help_heading = PICTURES, required_unless_present = "instance_data_dir")]
    pub(crate) train_data_dir: Option<PathBuf>,
    /// The column of the metadata that names the pictures, which may be called file_name there
    #[arg(long, value_name = "NAME", default_value = "image", help_heading = PICTURES)]
    pub(crate) image_column: String,
    /// The column of the metadata that has the captions
    #[arg(long, value_name = "NAME", default_value = "text", help_heading = PICTURES)]
    pub(crate) caption_column: String,
    /// The share of captions that are left out, 0 to 1, so that guidance has something to lead away from
    #[arg(long, value_name = "X", default_value_t = 0.0, help_heading = PICTURES)]
    pub(crate) proportion_empty_prompts: f64,
    /// Width and height to train at, a multiple of 8 [default: the model's own]
    #[arg(long, value_name = "PIXELS", help_heading = PICTURES)]
    pub(crate) resolution: Option<u32>,
    /// Cut the middle out of pictures that are not square; otherwise a random part
    #[arg(long, help_heading = PICTURES)]
    pub(crate) center_crop: bool,
    /// Show every second picture, at random, as in a mirror
    #[arg(long, help_heading = PICTURES)]
    pub(crate) random_flip: bool,
    /// How often each picture comes in an epoch
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = PICTURES)]
    pub(crate) repeats: usize,
    /// Go on without pictures that cannot be read
    #[arg(long, help_heading = PICTURES)]
    pub(crate) skip_broken: bool,
}
