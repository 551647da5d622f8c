//! Which pictures are learned from.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::PICTURES;

/// Pictures, and how they are brought to size.
#[derive(Debug, Args, Serialize)]
pub(crate) struct PictureArguments {
    /// text-to-image: the folder of pictures, with captions in metadata.csv, metadata.jsonl or in text files beside the pictures
    #[arg(long, value_name = "FOLDER", help_heading = PICTURES, required_unless_present_any = ["instance_data_dir", "concepts_list", "dataset_name"])]
    pub(crate) train_data_dir: Option<PathBuf>,
    /// What guides for pictures on the hub say; refused with a reason.
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub(crate) dataset_name: Option<String>,
    /// Learn from no more than N of the pictures, which are chosen by the seed
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = PICTURES)]
    pub(crate) max_train_samples: Option<usize>,
    /// The column of the metadata that names the pictures, which may be called file_name there
    #[arg(long, value_name = "NAME", default_value = "image", help_heading = PICTURES)]
    pub(crate) image_column: String,
    /// The column of the metadata that has the captions
    #[arg(long, value_name = "NAME", default_value = "text", help_heading = PICTURES)]
    pub(crate) caption_column: String,
    /// The share of captions that are left out, 0 to 1, so that guidance has something to lead away from
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true, help_heading = PICTURES)]
    pub(crate) proportion_empty_prompts: f64,
    /// Width and height to train at, a multiple of 8 [default: the model's own]
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true, help_heading = PICTURES)]
    pub(crate) resolution: Option<u32>,
    /// Let pictures keep about their shape: sizes of about the area of --resolution
    #[arg(long, alias = "enable-bucket", help_heading = PICTURES)]
    pub(crate) use_aspect_ratio_buckets: bool,
    /// The shortest side of such a size [default: half the resolution]
    #[arg(long, value_name = "PIXELS", requires = "use_aspect_ratio_buckets", allow_negative_numbers = true, help_heading = PICTURES)]
    pub(crate) min_bucket_reso: Option<u32>,
    /// The longest side of such a size [default: twice the resolution]
    #[arg(long, value_name = "PIXELS", requires = "use_aspect_ratio_buckets", allow_negative_numbers = true, help_heading = PICTURES)]
    pub(crate) max_bucket_reso: Option<u32>,
    /// What sides of such sizes are multiples of [default: an eighth of the resolution, at most 64]
    #[arg(long, value_name = "PIXELS", requires = "use_aspect_ratio_buckets", allow_negative_numbers = true, help_heading = PICTURES)]
    pub(crate) bucket_reso_steps: Option<u32>,
    /// The sizes themselves, heights and widths, in place of --resolution: "512,512;448,640;640,448"
    #[arg(long, value_name = "SIZES", help_heading = PICTURES)]
    pub(crate) aspect_ratio_buckets: Option<String>,
    /// The column of the metadata that names each picture's mask: white counts, black less (see --mask-temperature)
    #[arg(long, value_name = "NAME", help_heading = PICTURES)]
    pub(crate) mask_column: Option<String>,
    /// Take masks from the files beside the pictures: cat.mask.png for cat.png or cat.src.jpg
    #[arg(long, conflicts_with = "mask_column", help_heading = PICTURES)]
    pub(crate) use_mask_captioned_data: bool,
    /// How strong masks are: what they are raised to; at 1 black counts a ninth of what white does, at 4 next to nothing
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, help_heading = PICTURES)]
    pub(crate) mask_temperature: f64,
    /// Cut the middle out of pictures that are not square; otherwise a random part
    #[arg(long, help_heading = PICTURES)]
    pub(crate) center_crop: bool,
    /// Cut a random part out of them, as is done without --center-crop
    #[arg(long, conflicts_with = "center_crop", help_heading = PICTURES)]
    #[serde(skip)]
    pub(crate) random_crop: bool,
    /// Show every second picture, at random, as in a mirror
    #[arg(long, alias = "hflip", help_heading = PICTURES)]
    pub(crate) random_flip: bool,
    /// How pictures are brought to size [default: as diffusers' script for the recipe does it]
    #[arg(long, value_name = "FILTER", help_heading = PICTURES)]
    pub(crate) image_interpolation_mode: Option<Interpolation>,
    /// How often each picture comes in an epoch
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, help_heading = PICTURES)]
    pub(crate) repeats: usize,
    /// Keep what the VAE and the text encoders make of pictures and captions in this folder, for other runs too
    #[arg(long, value_name = "FOLDER", help_heading = PICTURES)]
    #[serde(skip)]
    pub(crate) encoder_cache_dir: Option<PathBuf>,
    /// Go on without pictures that cannot be read
    #[arg(long, help_heading = PICTURES)]
    pub(crate) skip_broken: bool,
}

impl PictureArguments {
    pub(crate) fn has_masks(&self) -> bool {
        self.mask_column.is_some() || self.use_mask_captioned_data
    }

    pub(crate) fn has_buckets(&self) -> bool {
        self.use_aspect_ratio_buckets || self.aspect_ratio_buckets.is_some()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Interpolation {
    Bilinear,
    Bicubic,
    Lanczos,
}
