//! What `diffuse generate` may be told for Stable Diffusion XL.

use std::ffi::OsString;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use candle_diffusers_loaders::{ModelIndex, Repository};
use candle_diffusers_pipelines::MicroConditions;
use clap::Args;

use crate::parameters::Parameters;

#[derive(Debug, Args)]
#[command(next_help_heading = "Paint with Stable Diffusion XL and its refiner")]
pub(crate) struct XlArguments {
    /// What the second text encoder is told to paint [default: the prompt]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt_2: Option<String>,
    /// What the second text encoder is told not to paint [default: the negative prompt]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) negative_prompt_2: Option<String>,
    /// Paint as if the picture had been of this size before it was brought to its own: a small one blurs [default: the picture's]
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    pub(crate) original_size: Option<Size>,
    /// Paint as if so many pixels had been cut off at the top and at the left: 0,0 centres what is painted [default: 0,0]
    #[arg(long, value_name = "TOP,LEFT")]
    pub(crate) crops_coords_top_left: Option<Corner>,
    /// Paint as if the picture had been brought to this size [default: the picture's]
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    pub(crate) target_size: Option<Size>,
    /// What --original-size is for the negative prompt; without --init-image only together with --negative-target-size
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    pub(crate) negative_original_size: Option<Size>,
    /// What --crops-coords-top-left is for the negative prompt; only together with the negative sizes
    #[arg(long, value_name = "TOP,LEFT")]
    pub(crate) negative_crops_coords_top_left: Option<Corner>,
    /// What --target-size is for the negative prompt; without --init-image only together with --negative-original-size
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    pub(crate) negative_target_size: Option<Size>,
    /// A second model that takes the last steps: a folder, a single-file checkpoint or the id of a model on the hub
    #[arg(long, value_name = "PATH_OR_ID")]
    pub(crate) refiner: Option<OsString>,
    /// How much of the denoising is done when --refiner takes over, between 0 and 1
    #[arg(long, value_name = "X", default_value_t = 0.8, requires = "refiner", allow_hyphen_values = true)]
    pub(crate) denoising_split: f64,
    /// How beautiful refiners are told that the picture is, from 1 to 10 [default: 6]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub(crate) aesthetic_score: Option<f64>,
    /// The same for the negative prompt [default: 2.5]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub(crate) negative_aesthetic_score: Option<f64>,
    /// Keep only one of model and refiner in memory: all pictures are begun, then the refiner is loaded and finishes them
    #[arg(long, requires = "refiner")]
    pub(crate) low_memory: bool,
}

impl XlArguments {
    /// What no model could do anything with.
    pub(crate) fn check_numbers(&self) -> Result<()> {
        let split = self.denoising_split;
        ensure!(
            split > 0.0 && split < 1.0,
            "--denoising-split is {split}, expected more than 0 and less than 1"
        );
        let scores = [
            ("--aesthetic-score", self.aesthetic_score),
            ("--negative-aesthetic-score", self.negative_aesthetic_score),
        ];
        for (flag, score) in scores {
            let score = score.unwrap_or_default();
            ensure!(score.is_finite(), "{flag} is {score}, expected a finite number");
        }
        Ok(())
    }

    /// What this model could do nothing with, told by its index.
    pub(crate) fn check_model(&self, repository: &Repository, has_init_image: bool) -> Result<()> {
        let index = ModelIndex::load(repository)?;
        let name = repository.name();
        let has = |component| index.components.contains_key(component);
        let texts = [("--prompt-2", &self.prompt_2), ("--negative-prompt-2", &self.negative_prompt_2)];
        if let Some((flag, _)) = texts.iter().find(|(_, text)| text.is_some())
            && !(has("text_encoder") && has("text_encoder_2"))
        {
            bail!("{flag} is for a model with two text encoders, but {name} has one; leave it out");
        }
        if let Some(flag) = self.condition_given()
            && !has("text_encoder_2")
        {
            bail!("{flag} is for Stable Diffusion XL, but {name} is a {}; leave it out", index.class_name);
        }
        let is_refiner = index.config.get("requires_aesthetics_score") == Some(&true.into());
        if is_refiner && !has_init_image {
            bail!(
                "{name} is a refiner, which paints from a picture: give one with --init-image, or a base as --model and this as --refiner"
            );
        }
        Ok(())
    }

    /// Adds what was given to a picture's parameters.
    pub(crate) fn describe(&self, parameters: &mut Parameters) {
        let given = [
            ("Prompt 2", &self.prompt_2),
            ("Negative prompt 2", &self.negative_prompt_2),
            ("Original size", &self.original_size.map(|size| size.to_string())),
            ("Crops top left", &self.crops_coords_top_left.map(|corner| corner.to_string())),
            ("Target size", &self.target_size.map(|size| size.to_string())),
            ("Negative original size", &self.negative_original_size.map(|size| size.to_string())),
            (
                "Negative crops top left",
                &self.negative_crops_coords_top_left.map(|corner| corner.to_string()),
            ),
            ("Negative target size", &self.negative_target_size.map(|size| size.to_string())),
            ("Aesthetic score", &self.aesthetic_score.map(|score| score.to_string())),
            ("Negative aesthetic score", &self.negative_aesthetic_score.map(|score| score.to_string())),
        ];
        for (key, value) in given {
            if let Some(value) = value {
                parameters.set(key, value);
            }
        }
    }

    /// The first flag of those that tell the model of the picture.
    pub(crate) fn condition_given(&self) -> Option<&'static str> {
        let flags = [
            ("--original-size", self.original_size.is_some()),
            ("--crops-coords-top-left", self.crops_coords_top_left.is_some()),
            ("--target-size", self.target_size.is_some()),
            ("--negative-original-size", self.negative_original_size.is_some()),
            ("--negative-crops-coords-top-left", self.negative_crops_coords_top_left.is_some()),
            ("--negative-target-size", self.negative_target_size.is_some()),
            ("--aesthetic-score", self.aesthetic_score.is_some()),
            ("--negative-aesthetic-score", self.negative_aesthetic_score.is_some()),
        ];
        flags.iter().find(|(_, is_given)| *is_given).map(|(flag, _)| *flag)
    }

    pub(crate) fn micro_conditions(&self) -> MicroConditions {
        let size = |size: Option<Size>| size.map(|Size { width, height }| (height, width));
        let corner = |corner: Option<Corner>| corner.map_or((0, 0), |Corner { top, left }| (top, left));
        let default = MicroConditions::default();
        MicroConditions {
            original_size: size(self.original_size),
            crops_coords_top_left: corner(self.crops_coords_top_left),
            target_size: size(self.target_size),
            negative_original_size: size(self.negative_original_size),
            negative_crops_coords_top_left: corner(self.negative_crops_coords_top_left),
            negative_target_size: size(self.negative_target_size),
            aesthetic_score: self.aesthetic_score.unwrap_or(default.aesthetic_score),
            negative_aesthetic_score: self
                .negative_aesthetic_score
                .unwrap_or(default.negative_aesthetic_score),
        }
    }
}

/// Pixels, as in `1024x768`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    width: usize,
    height: usize,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sides = text.split_once('x').map(|(width, height)| (width.parse(), height.parse()));
        match sides {
            Some((Ok(width), Ok(height))) => Ok(Self { width, height }),
            _ => Err("expected WIDTHxHEIGHT in pixels, as in 1024x768".into()),
        }
    }
}

/// Pixels from the top and from the left, as in `0,64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Corner {
    top: usize,
    left: usize,
}

impl FromStr for Corner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sides = text.split_once(',').map(|(top, left)| (top.trim().parse(), left.trim().parse()));
        match sides {
            Some((Ok(top), Ok(left))) => Ok(Self { top, left }),
            _ => Err("expected TOP,LEFT in pixels, as in 0,64".into()),
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl std::fmt::Display for Corner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},{}", self.top, self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_width_and_height_and_corners_top_and_left() {
        assert_eq!("1024x768".parse(), Ok(Size { width: 1024, height: 768 }));
        assert_eq!("0,64".parse(), Ok(Corner { top: 0, left: 64 }));
        for wrong in ["", "1024", "1024x", "x768", "1024,768", "-1x2", "1024x768x2", "axb"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
        for wrong in ["", "0", "0,", "0x64", "-1,2", "1,2,3"] {
            assert!(wrong.parse::<Corner>().is_err(), "{wrong}");
        }
    }
}
