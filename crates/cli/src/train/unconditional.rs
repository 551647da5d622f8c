//! Models that paint without a text.

use std::fs;

use anyhow::{Context, Result};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_training::recipes::{UnconditionalOptions, default_unet_2d_config};
use candle_diffusers_training::{ParameterGroup, new_unet_2d, trainable_unet_2d};
use serde_json::Value;

use super::data::Data;
use super::session::{Learned, Session};
use super::taught::Taught;
use super::{TrainArguments, new_trainer};
use crate::progress::Progress;

pub(super) fn run(arguments: &TrainArguments, progress: &Progress) -> Result<()> {
    let options = UnconditionalOptions {
        scheduler: arguments.scheduler.clone(),
        num_train_timesteps: arguments.ddpm_num_steps,
        beta_schedule: arguments.ddpm_beta_schedule.clone(),
        prediction_type: arguments.prediction_type.clone(),
    };
    let generator = TorchGenerator::new(arguments.seed);
    let (whole, config) = match &arguments.pretrained_model_name_or_path {
        Some(model) => {
            let repository = Repository::folder(model)?;
            let load = LoadOptions { variant: arguments.variant.clone(), ..Default::default() };
            (trainable_unet_2d(&repository, "unet", &load)?, repository.read_json("unet/config.json")?)
        }
        None => {
            let config = read_config(arguments)?;
            (new_unet_2d(&config, generator.clone(), &LoadOptions::default())?, config)
        }
    };
    let resolution = config["sample_size"].as_u64().unwrap_or(64) as u32;
    let data = Data::without_captions(arguments, arguments.resolution.unwrap_or(resolution))?;
    let groups = vec![ParameterGroup {
        parameters: whole.parameters,
        learning_rate: arguments.learning_rate,
        weight_decay: arguments.adam_weight_decay,
    }];
    let epochs = data.steps_per_epoch(arguments) * arguments.num_train_epochs;
    let max_steps = arguments.max_train_steps.unwrap_or(epochs);
    let trainer = new_trainer(arguments, groups, max_steps, generator)?;
    let taught = Taught::Unconditional(Box::new(whole.model), config, options);
    // A setting that is not known is told before the first step.
    drop(taught.teacher()?);
    let learned = Learned { loras: Vec::new(), token: None };
    let folder = &arguments.output_dir;
    let mut session = Session::new(arguments, progress, folder, taught, learned, trainer, data, max_steps)?;
    session.run(None)
}

fn read_config(arguments: &TrainArguments) -> Result<Value> {
    let Some(file) = &arguments.model_config_name_or_path else {
        return Ok(default_unet_2d_config(arguments.resolution.unwrap_or(64) as usize));
    };
    let name = || format!("--model-config-name-or-path {}", file.display());
    let text = fs::read(file).with_context(name)?;
    serde_json::from_slice(&text).with_context(name)
}
