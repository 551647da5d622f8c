//! `diffuse train`.

mod arguments;
mod beginning;
mod belongs;
mod buckets;
mod check;
mod class_pictures;
mod concepts;
mod config;
mod controlnet;
mod custom_diffusion;
mod data;
mod encode_ahead;
mod folders;
mod instruct_pix2pix;
mod interrupt;
mod model;
mod noise_schedule;
mod pace;
mod painting;
mod pivotal;
mod processes;
mod report;
mod result;
mod session;
mod settings;
mod stable_diffusion;
mod taught;
mod tensorboard;
mod trained;
mod trainer;
mod unconditional;
mod validation;
mod words;

use anyhow::{Context, Result};
use candle_diffusers_training::LrScheduleName;

use crate::progress::Progress;

pub(crate) use arguments::{
    FreezeModel, InitLoraWeights, Interpolation, MixedPrecision, OptimizerName, Property, Recipe, ReportTo,
    Template, TrainArguments, TrainedLoraFormat, expand,
};
pub(crate) use belongs::has_use_for;
use processes::Started;

/// Trains, and writes the result.
pub(crate) fn run(arguments: &TrainArguments, progress: &Progress) -> Result<()> {
    let started = processes::start(progress)?;
    let result = run_recipe(arguments, progress, &started);
    started.end(result, progress)
}

fn run_recipe(arguments: &TrainArguments, progress: &Progress, started: &Started) -> Result<()> {
    check::check_flags(arguments)?;
    belongs::check_recipe(arguments)?;
    arguments.thing.tell();
    arguments.without_effect.tell(arguments);
    // Small things first: what is wrong with them is told before a model is loaded.
    arguments.steps.lr_scheduler.parse::<LrScheduleName>()?;
    arguments.lr_scheduler_lora().parse::<LrScheduleName>().context("--lr-scheduler-lora")?;
    match arguments.recipe {
        Recipe::CustomDiffusion => custom_diffusion::run(arguments, progress, started),
        Recipe::Unconditional => unconditional::run(arguments, progress, started),
        Recipe::Controlnet => controlnet::run(arguments, progress, started),
        Recipe::InstructPix2pix => instruct_pix2pix::run(arguments, progress, started),
        _ => stable_diffusion::run(arguments, progress, started),
    }
}
