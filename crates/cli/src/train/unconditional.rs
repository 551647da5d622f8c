//! Models that paint without a text.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_models::UNet2DConfig;
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_training::recipes::{UnconditionalOptions, default_unet_2d_config};
use candle_diffusers_training::{new_unet_2d, trainable_unet_2d};
use serde_json::Value;

use super::data::Data;
use super::processes::Started;
use super::session::{Learned, Parts, Session, Stage};
use super::taught::Taught;
use super::trained::group;
use super::trainer::new_trainer;
use super::{TrainArguments, beginning, model};
use crate::progress::Progress;

pub(super) fn run(arguments: &TrainArguments, progress: &Progress, started: &Started) -> Result<()> {
    let options = UnconditionalOptions {
        scheduler: arguments.unconditional.scheduler.clone(),
        num_train_timesteps: arguments.unconditional.ddpm_num_steps,
        beta_schedule: arguments.unconditional.ddpm_beta_schedule.clone(),
        prediction_type: arguments.noise.prediction_type.clone().unwrap_or_else(|| "epsilon".to_string()),
        compute_dtype: arguments.steps.mixed_precision.compute_dtype(),
    };
    let repository = open(arguments, progress, started)?;
    let (file, config) = match &repository {
        Some(repository) => own_config(repository)?,
        None => read_config(arguments)?,
    };
    let unet = check_config(&file, &config)?;
    let resolution = config["sample_size"].as_u64().unwrap_or(64) as u32;
    let resolution = arguments.pictures.resolution.unwrap_or(resolution);
    let data = Data::without_captions(arguments, resolution, started)?;
    check_sizes(&data, &unet)?;
    beginning::check(arguments, started, &data)?;
    let generator = TorchGenerator::new(arguments.steps.seed);
    let load =
        LoadOptions { device: started.device()?, variant: arguments.variant.clone(), ..Default::default() };
    let whole = match &repository {
        Some(repository) => trainable_unet_2d(repository, unet_folder(repository), &load)?,
        None => new_unet_2d(&config, generator.clone(), &load)?,
    };
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

/// The model to begin with, where that is no new one.
fn open(arguments: &TrainArguments, progress: &Progress, started: &Started) -> Result<Option<Repository>> {
    let Some(name) = &arguments.pretrained_model_name_or_path else { return Ok(None) };
    Ok(Some(started.first_before_others(|| model::repository(name, arguments, progress))?))
}

/// Where its UNet is: the oldest models have it at their top.
fn unet_folder(repository: &Repository) -> &'static str {
    let is_at_top = repository.exists("config.json") && !repository.exists("unet/config.json");
    if is_at_top { "" } else { "unet" }
}

/// What its UNet is, and in which file that is said.
fn own_config(repository: &Repository) -> Result<(String, Value)> {
    let folder = unet_folder(repository);
    let path = if folder.is_empty() { "config.json".to_string() } else { format!("{folder}/config.json") };
    let config: Value = repository.read_json(&path)?;
    let class = config["_class_name"].as_str().unwrap_or("UNet2DModel");
    ensure!(
        class == "UNet2DModel",
        "{} has a {class}; unconditional teaches models that paint without a text, with a UNet2DModel",
        repository.name()
    );
    Ok((repository.display(&path), config))
}

/// What that of a new one is.
fn read_config(arguments: &TrainArguments) -> Result<(String, Value)> {
    let Some(file) = &arguments.unconditional.model_config_name_or_path else {
        let resolution = arguments.pictures.resolution.unwrap_or(64);
        return Ok(("the new UNet".to_string(), default_unet_2d_config(resolution as usize)));
    };
    let name = format!("--model-config-name-or-path {}", file.display());
    let text = fs::read(file).with_context(|| name.clone())?;
    let config: Value = serde_json::from_slice(&text).with_context(|| name.clone())?;
    Ok((name, config))
}

/// Refuses a UNet that is for something else than coloured pictures alone.
fn check_config(file: &str, config: &Value) -> Result<UNet2DConfig> {
    let unet = UNet2DConfig::from_json(config).with_context(|| file.to_string())?;
    ensure!(
        (unet.in_channels, unet.out_channels) == (3, 3),
        "{file}: in_channels is {} and out_channels {}, expected 3: pictures are learned as red, green and blue; give a model of such pictures",
        unet.in_channels,
        unet.out_channels
    );
    ensure!(
        unet.class_embed_type.is_none(),
        "{file}: num_class_embeds or class_embed_type says that the model is told a class, and pictures have none here; give a model without classes"
    );
    Ok(unet)
}

/// Refuses pictures whose sides cannot be halved as often as the UNet halves them.
fn check_sizes(data: &Data, unet: &UNet2DConfig) -> Result<()> {
    let multiple = unet.side_multiple();
    let has_rest = |side: &u32| !(*side as usize).is_multiple_of(multiple);
    if let Some([width, height]) = data.sizes().into_iter().find(|size| size.iter().any(has_rest)) {
        bail!(
            "--resolution: pictures are cut to {width}x{height}, expected multiples of {multiple}, as each of the UNet's {} blocks but the last halves them",
            unet.block_out_channels.len()
        );
    }
    Ok(())
}
