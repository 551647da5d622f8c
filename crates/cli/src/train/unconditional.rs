//! Models that paint without a text.

use std::fs;

use anyhow::{Context, Result, ensure};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_training::recipes::{UnconditionalOptions, default_unet_2d_config};
use candle_diffusers_training::{new_unet_2d, trainable_unet_2d};
use serde_json::Value;

use super::TrainArguments;
use super::data::Data;
use super::processes::Started;
use super::session::{Learned, Parts, Session, Stage};
use super::taught::Taught;
use super::trained::group;
use super::trainer::new_trainer;
use crate::progress::Progress;

pub(super) fn run(arguments: &TrainArguments, progress: &Progress, started: &Started) -> Result<()> {
    let options = UnconditionalOptions {
        scheduler: arguments.unconditional.scheduler.clone(),
        num_train_timesteps: arguments.unconditional.ddpm_num_steps,
        beta_schedule: arguments.unconditional.ddpm_beta_schedule.clone(),
        prediction_type: arguments.noise.prediction_type.clone().unwrap_or_else(|| "epsilon".to_string()),
        compute_dtype: arguments.steps.mixed_precision.compute_dtype(),
    };
    let generator = TorchGenerator::new(arguments.steps.seed);
    let load =
        LoadOptions { device: started.device()?, variant: arguments.variant.clone(), ..Default::default() };
    let (whole, config) = match &arguments.pretrained_model_name_or_path {
        Some(model) => {
            let repository = Repository::folder(model)?;
            let config: Value = repository.read_json("unet/config.json")?;
            let class = config["_class_name"].as_str().unwrap_or("UNet2DModel");
            ensure!(
                class == "UNet2DModel",
                "{} has a {class}; unconditional teaches models that paint without a text, with a UNet2DModel",
                repository.name()
            );
            (trainable_unet_2d(&repository, "unet", &load)?, config)
        }
        None => {
            let config = read_config(arguments)?;
            (new_unet_2d(&config, generator.clone(), &load)?, config)
        }
    };
    let resolution = config["sample_size"].as_u64().unwrap_or(64) as u32;
    let resolution = arguments.pictures.resolution.unwrap_or(resolution);
    let data = Data::without_captions(arguments, resolution, started)?;
    let groups = vec![group(arguments, started, whole.parameters, arguments.learning_rate())];
    let max_steps = data.max_steps(arguments);
    let trainer = new_trainer(arguments, groups, max_steps, generator)?;
    let taught = Taught::Unconditional(Box::new(whole.model), config, options);
    // A setting that is not known is told before the first step.
    drop(taught.teacher(0)?);
    let (folder, learned) = (arguments.output_dir.clone(), Learned::default());
    let parts = Parts { folder, taught, learned, trainer, data, max_steps, stage: Stage::Only };
    Session::new(arguments, progress, started, parts)?.run(None)
}

fn read_config(arguments: &TrainArguments) -> Result<Value> {
    let Some(file) = &arguments.unconditional.model_config_name_or_path else {
        return Ok(default_unet_2d_config(arguments.pictures.resolution.unwrap_or(64) as usize));
    };
    let name = || format!("--model-config-name-or-path {}", file.display());
    let text = fs::read(file).with_context(name)?;
    serde_json::from_slice(&text).with_context(name)
}
