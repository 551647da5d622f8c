//! DreamBooth and Custom Diffusion: the things that is learned, and its class.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::PICTURES;
use crate::terminal;

/// The thing, and the class that is kept.
#[derive(Debug, Args, Serialize)]
pub(crate) struct ThingArguments {
    /// DreamBooth: the folder of pictures of the one thing
    #[arg(long, value_name = "FOLDER", help_heading = PICTURES)]
    pub(crate) instance_data_dir: Option<PathBuf>,
    /// DreamBooth: what they show, with a word that has no meaning yet: "a photo of sks dog"
    #[arg(long, value_name = "TEXT", help_heading = PICTURES)]
    pub(crate) instance_prompt: Option<String>,
    /// Custom Diffusion: several things, as a JSON list of objects with instance_data_dir, instance_prompt, class_data_dir and
    /// class_prompt, in place of those flags
    #[arg(long, value_name = "FILE", conflicts_with_all = ["instance_data_dir", "instance_prompt", "class_data_dir", "class_prompt"], help_heading = PICTURES)]
    pub(crate) concepts_list: Option<PathBuf>,
    /// DreamBooth: keep what the model knows of the thing's class, by pictures of it
    #[arg(long, help_heading = PICTURES)]
    pub(crate) with_prior_preservation: bool,
    /// The folder of pictures of the class; the model paints what is missing
    #[arg(long, value_name = "FOLDER", help_heading = PICTURES)]
    pub(crate) class_data_dir: Option<PathBuf>,
    /// What the pictures of the class show: "a photo of dog"
    #[arg(long, value_name = "TEXT", help_heading = PICTURES)]
    pub(crate) class_prompt: Option<String>,
    /// How many pictures of the class there should be
    #[arg(long, value_name = "N", default_value_t = 100, allow_negative_numbers = true, help_heading = PICTURES)]
    pub(crate) num_class_images: usize,
    /// How much the pictures of the class count
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, help_heading = PICTURES)]
    pub(crate) prior_loss_weight: f64,
    /// Custom Diffusion: show each picture of a thing as large as the others; otherwise it is smaller at times, somewhere on a grey canvas, or larger, and its caption says so
    #[arg(long, help_heading = PICTURES)]
    pub(crate) noaug: bool,
    /// What guides for real pictures of the class say; refused with a reason.
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub(crate) real_prior: bool,
}

impl ThingArguments {
    /// Says of what is given for a class that it changes nothing where none is kept.
    pub(crate) fn tell(&self) {
        if self.with_prior_preservation {
            return;
        }
        let flags = [
            ("--class-data-dir", self.class_data_dir.is_some()),
            ("--class-prompt", self.class_prompt.is_some()),
        ];
        for (flag, _) in flags.iter().filter(|(_, is_given)| *is_given) {
            terminal::note(&format!(
                "{flag} changes nothing without --with-prior-preservation, which keeps what the model knows of the class"
            ));
        }
    }
}
