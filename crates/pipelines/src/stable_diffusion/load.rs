use std::path::Path;

use candle_diffusers_loaders::lora::LoraAdapters;
use candle_diffusers_loaders::{
    ClipTokenizer, LoadOptions, ModelIndex, ReadOptions, Repository, check_variant, load_text_encoder,
    load_unet, load_vae,
};
use candle_diffusers_models::{AutoencoderKL, UNet2DConditionConfig, UNet2DConditionModel};
use candle_diffusers_schedulers::{
    Error as SchedulerError, Scheduler, scheduler_from_other, scheduler_with_overrides,
};
use serde_json::{Map, Value, json};

use super::StableDiffusionPipeline;
use crate::error::{Error, Result};
use crate::safety_checker::SafetyChecker;
use crate::scheduler_config::load_scheduler_config;

impl StableDiffusionPipeline {
    /// Loads a checkpoint that is one file (`.safetensors`, `.ckpt`): the same pipeline, to the last bit, as of the folder that
    /// it converts to. Short for [`load`](Self::load) of a [`Repository::single_file`], which other ways of loading take as well and which
    /// says what was assumed ([`Repository::single_file_model`]).
    ///
    /// # Errors
    /// When the file is damaged or not the whole of such a model, and those of [`load`](Self::load).
    pub fn from_single_file(
        path: impl AsRef<Path>,
        read_options: &ReadOptions,
        options: &LoadOptions,
    ) -> Result<Self> {
        Self::load(&Repository::single_file(path, read_options)?, options)
    }

    /// Loads a folder in diffusers' layout, or what looks like one. Where it has a safety checker, pictures are checked, unless the
    /// repository is [without](Repository::without) it.
    ///
    /// # Errors
    /// When a file is missing or damaged, a config has a field that is not supported, or the folder is of another kind of model.
    pub fn load(repository: &Repository, options: &LoadOptions) -> Result<Self> {
        Self::load_parts(repository, options, |class_name| load_scheduler(repository, class_name))
    }

    /// Like [`load`](Self::load) and then [`set_scheduler`](Self::set_scheduler), also where the folder's own scheduler is one that
    /// this library does not have.
    ///
    /// # Errors
    /// Those of both.
    pub fn load_with_scheduler(
        repository: &Repository,
        options: &LoadOptions,
        class_name: &str,
        overrides: &Map<String, Value>,
    ) -> Result<Self> {
        Self::load_parts(repository, options, |folders_class| {
            load_other_scheduler(repository, folders_class, class_name, overrides)
        })
    }

    /// `scheduler` is given the class that model_index.json names, and makes a scheduler and its config.
    fn load_parts(
        repository: &Repository,
        options: &LoadOptions,
        scheduler: impl FnOnce(&str) -> Result<(Box<dyn Scheduler>, Value)>,
    ) -> Result<Self> {
        let index = ModelIndex::load(repository)?;
        check_kind(repository, &index)?;
        if let Some(variant) = &options.variant {
            check_variant(repository, &index, variant)?;
        }
        let (scheduler, scheduler_config) = scheduler(&index.component("scheduler")?.class_name)?;
        let tokenizer = ClipTokenizer::load(repository, "tokenizer")?;
        let unet = load_unet(repository, "unet", options)?;
        let sample_size = trained_size(&repository.read_json("unet/config.json")?, unet.config());
        let text_encoder = load_text_encoder(repository, "text_encoder", options)?;
        let vae = load_vae(repository, "vae", options)?;
        check_channels(repository, &unet, &vae)?;
        let safety_checker = SafetyChecker::load(repository, &index, options)?;
        let (device, dtype) = (options.device.clone(), options.dtype);
        Ok(Self {
            tokenizer,
            text_encoder,
            unet,
            vae,
            safety_checker,
            loras: LoraAdapters::new(),
            scheduler,
            scheduler_config,
            sample_size,
            device,
            dtype,
        })
    }
}

/// Only models that this pipeline reads as they are meant.
fn check_kind(repository: &Repository, index: &ModelIndex) -> Result<()> {
    let known = ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"];
    if !known.contains(&index.class_name.as_str()) {
        let (file, what) = match repository.single_file_model() {
            Some(model) => (repository.name(), format!("is a checkpoint of {}, for a", model.title())),
            None => (index.file(), "is the index of a".to_string()),
        };
        let problem = format!(
            "{what} {}, which does not paint from a text alone yet; expected a StableDiffusionPipeline",
            index.class_name
        );
        return Err(Error::Folder { file: file.into(), problem });
    }
    for component in ["unet", "vae", "text_encoder", "tokenizer"] {
        index.component(component)?;
    }
    Ok(())
}

/// The folder's scheduler and its config: of the class that model_index.json names, whatever class the config is of, and with two
/// settings put right that diffusers puts right when it builds this pipeline: folders from 2022 lack them, and were meant so.
///
/// The config still counts a setting that the folder lacks among those with default values: another scheduler made
/// from it has its own default, as in diffusers.
fn load_scheduler(repository: &Repository, class_name: &str) -> Result<(Box<dyn Scheduler>, Value)> {
    let mut given = load_scheduler_config(repository)?;
    // A field of the file, of whatever scheduler, needs no override, which must be a field of this one.
    if given.get("clip_sample") == Some(&json!(true)) {
        given["clip_sample"] = json!(false);
    }
    let scheduler = scheduler_from_other(class_name, &given)?;
    let mut config = scheduler.config();
    let mut overrides = Map::new();
    if config.get("steps_offset").is_some_and(|offset| offset != &json!(1)) {
        overrides.insert("steps_offset".into(), json!(1));
    }
    if config.get("clip_sample") == Some(&json!(true)) {
        overrides.insert("clip_sample".into(), json!(false));
    }
    if overrides.is_empty() {
        return Ok((scheduler, config));
    }
    let scheduler = scheduler_with_overrides(class_name, &given, &overrides)?;
    if let Value::Object(fields) = &mut config {
        fields.extend(overrides);
    }
    Ok((scheduler, config))
}

/// A scheduler of the class `class_name` with the settings of the folder's, which is a `folders_class`.
fn load_other_scheduler(
    repository: &Repository,
    folders_class: &str,
    class_name: &str,
    overrides: &Map<String, Value>,
) -> Result<(Box<dyn Scheduler>, Value)> {
    let config = match load_scheduler(repository, folders_class) {
        Ok((_, config)) => config,
        // All that another class needs of it is in the file.
        Err(Error::Scheduler(SchedulerError::UnknownClass { .. })) => {
            let mut given = load_scheduler_config(repository)?;
            for (field, meant) in [("steps_offset", json!(1)), ("clip_sample", json!(false))] {
                if given.get(field).is_some() {
                    given[field] = meant;
                }
            }
            given
        }
        Err(error) => return Err(error),
    };
    let scheduler = scheduler_with_overrides(class_name, &config, overrides)?;
    let config = scheduler.config();
    Ok((scheduler, config))
}

/// The latent size that the model was trained for. UNets saved before diffusers 0.9 may say 32 and mean 64, as diffusers
/// has it.
fn trained_size(json: &Value, config: &UNet2DConditionConfig) -> Option<(usize, usize)> {
    let version = json.get("_diffusers_version").and_then(Value::as_str).unwrap_or_default();
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
    let is_old =
        matches!((numbers.next().flatten(), numbers.next().flatten()), (Some(0), Some(minor)) if minor < 9);
    match (json.get("sample_size").and_then(Value::as_u64), is_old) {
        (Some(size), true) if size < 64 => Some((64, 64)),
        _ => config.sample_size,
    }
}

/// UNet and VAE must agree on what latents are.
fn check_channels(repository: &Repository, unet: &UNet2DConditionModel, vae: &AutoencoderKL) -> Result<()> {
    let (found, expected) = (unet.config().in_channels, vae.config().latent_channels);
    let problem = match found {
        _ if found == expected && unet.config().out_channels == expected => return Ok(()),
        _ if found == 2 * expected + 1 => {
            format!("in_channels is {found}: this is an inpainting model, which needs a picture and a mask")
        }
        _ if found == 2 * expected => {
            format!("in_channels is {found}: this is an InstructPix2Pix model, which needs a picture")
        }
        _ => format!(
            "in_channels is {found} and out_channels {}, but the VAE's latents have {expected}; they do not belong together",
            unet.config().out_channels
        ),
    };
    Err(Error::Folder { file: repository.display("unet/config.json"), problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with nothing but a scheduler's config.
    fn folder_with(config: Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("scheduler")).unwrap();
        std::fs::write(folder.path().join("scheduler/scheduler_config.json"), config.to_string()).unwrap();
        folder
    }

    #[test]
    fn a_setting_that_the_scheduler_does_not_know_is_put_right_too() {
        let folder = folder_with(json!({"clip_sample": true, "steps_offset": 0}));
        let repository = Repository::folder(folder.path()).unwrap();
        for class_name in ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"] {
            let (_, config) = load_scheduler(&repository, class_name).unwrap();
            assert_eq!((&config["clip_sample"], &config["steps_offset"]), (&json!(false), &json!(1)));
        }
    }

    #[test]
    fn an_unknown_scheduler_can_be_replaced() {
        let beta_end = json!(0.012);
        let folder = folder_with(json!({"beta_end": beta_end, "steps_offset": 0, "solver_type": "logrho"}));
        let repository = Repository::folder(folder.path()).unwrap();
        let replace = |class_name| {
            let overrides = Map::from_iter([("beta_start".to_string(), json!(0.001))]);
            load_other_scheduler(&repository, "DEISMultistepScheduler", class_name, &overrides)
        };
        let (scheduler, config) = replace("EulerDiscreteScheduler").unwrap();
        assert_eq!(scheduler.class_name(), "EulerDiscreteScheduler");
        let found = ["beta_start", "beta_end", "steps_offset"].map(|field| &config[field]);
        assert_eq!(found, [&json!(0.001), &beta_end, &json!(1)]);
        assert!(load_scheduler(&repository, "DEISMultistepScheduler").is_err());
        assert!(replace("DEISMultistepScheduler").is_err());
    }
}
