//! `diffuse train`.

mod arguments;
mod check;
mod class_pictures;
mod config;
mod controlnet;
mod data;
mod instruct_pix2pix;
mod model;
mod painting;
mod result;
mod session;
mod stable_diffusion;
mod taught;
mod trained;
mod trainer;
mod unconditional;

use anyhow::Result;
use candle_diffusers_training::LrScheduleName;

use crate::progress::Progress;

pub(crate) use arguments::{MixedPrecision, Property, Recipe, TrainArguments, TrainedLoraFormat, expand};

/// Trains, and writes the result.
pub(crate) fn run(arguments: &TrainArguments, progress: &Progress) -> Result<()> {
    check::check_flags(arguments)?;
    // Small things first: what is wrong with them is told before a model is loaded.
    arguments.steps.lr_scheduler.parse::<LrScheduleName>()?;
    match arguments.recipe {
        Recipe::Unconditional => unconditional::run(arguments, progress),
        Recipe::Controlnet => controlnet::run(arguments, progress),
        Recipe::InstructPix2pix => instruct_pix2pix::run(arguments, progress),
        _ => stable_diffusion::run(arguments, progress),
    }
}
