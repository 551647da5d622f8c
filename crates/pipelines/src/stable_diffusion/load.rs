use std::path::Path;

use candle_core::DType;
use candle_diffusers_loaders::lora::LoraAdapters;
use candle_diffusers_loaders::{
    LoadOptions, ModelIndex, ReadOptions, Repository, check_variant, load_unet, load_vae,
};
use candle_diffusers_models::{AutoencoderKLConfig, Error as ModelError, UNet2DConditionConfig};
use serde_json::{Map, Value};

use super::load_scheduler::load_either_scheduler;
use super::load_text_encoders::{check_text, load_clip, load_xl, read_flag};
use super::{SharedParts, StableDiffusionPipeline, Task};
use crate::error::{Error, Result};
use crate::safety_checker::SafetyChecker;

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
        Self::load_with(repository, options, Replacements::default())
    }

    /// Like [`load`](Self::load), with something else instead of the folder's own parts, which then need not be such as this library has.
    ///
    /// # Errors
    /// Those of [`load`](Self::load), and those of [`set_scheduler`](Self::set_scheduler).
    pub fn load_with(
        repository: &Repository,
        options: &LoadOptions,
        replacements: Replacements,
    ) -> Result<Self> {
        let index = ModelIndex::load(repository)?;
        let family = family(repository, &index)?;
        if let Some(variant) = &options.variant {
            check_variant(repository, &index, variant)?;
        }
        let (scheduler, scheduler_config) =
            load_either_scheduler(repository, &index, replacements.scheduler)?;
        let unet_json = repository.read_json("unet/config.json")?;
        let unet_config =
            in_file(repository, "unet/config.json", UNet2DConditionConfig::from_json(&unet_json))?;
        let vae_config = read_vae_config(repository)?;
        Task::of(repository, &unet_config, &vae_config)?;
        let is_cosxl_edit = read_flag(&index, "is_cosxl_edit", false)?;
        let requires_aesthetics_score = read_flag(&index, "requires_aesthetics_score", false)?;
        let text_dtype = replacements.text_encoder_dtype.unwrap_or(options.dtype);
        let text_options = LoadOptions { dtype: text_dtype, ..options.clone() };
        let (text_encoders, sample_size, vae_dtype) = match family {
            Family::Clip => {
                let sample_size = trained_size(&unet_json, &unet_config);
                (load_clip(repository, &text_options)?, sample_size, options.dtype)
            }
            Family::Xl => {
                let vae_dtype = vae_config.decode_dtype(options.dtype);
                let shared = replacements.shared.text_encoder_2;
                (load_xl(repository, &index, &text_options, shared)?, unet_config.sample_size, vae_dtype)
            }
        };
        check_text(repository, &unet_config, &text_encoders, requires_aesthetics_score)?;
        let unet = load_unet(repository, "unet", options)?;
        let vae = match replacements.shared.vae {
            Some(vae) => vae,
            None => load_vae(repository, "vae", &LoadOptions { dtype: vae_dtype, ..options.clone() })?,
        };
        // Pipelines of Stable Diffusion XL have none.
        let safety_checker = match family {
            Family::Clip => SafetyChecker::load(repository, &index, options)?,
            Family::Xl => None,
        };
        Ok(Self {
            text_encoders,
            unet,
            vae,
            safety_checker,
            loras: LoraAdapters::new(),
            scheduler,
            scheduler_config,
            sample_size,
            requires_aesthetics_score,
            is_cosxl_edit,
            device: options.device.clone(),
            dtype: options.dtype,
        })
    }
}

/// What is taken instead of a folder's own parts.
#[derive(Debug, Default)]
pub struct Replacements<'a> {
    /// A scheduler of this class with the folder's settings, but for these fields: see [`StableDiffusionPipeline::set_scheduler`].
    pub scheduler: Option<(&'a str, &'a Map<String, Value>)>,
    /// What the text encoders compute in, where it is not what the other models do; what they make of a text comes in the pipeline's dtype all the same.
    pub text_encoder_dtype: Option<DType>,
    /// Models of another pipeline.
    pub shared: SharedParts,
}

/// What differs in how models are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Stable Diffusion 1 and 2.
    Clip,
    /// Stable Diffusion XL and its refiner.
    Xl,
}

/// Only models that this pipeline reads as they are meant.
pub(super) fn family(repository: &Repository, index: &ModelIndex) -> Result<Family> {
    let (family, components): (_, &[&str]) = match index.class_name.as_str() {
        "StableDiffusionPipeline"
        | "StableDiffusionImg2ImgPipeline"
        | "StableDiffusionInpaintPipeline"
        | "StableDiffusionInstructPix2PixPipeline" => {
            (Family::Clip, &["unet", "vae", "text_encoder", "tokenizer"])
        }
        "StableDiffusionXLPipeline"
        | "StableDiffusionXLImg2ImgPipeline"
        | "StableDiffusionXLInpaintPipeline"
        | "StableDiffusionXLInstructPix2PixPipeline" => {
            (Family::Xl, &["unet", "vae", "text_encoder_2", "tokenizer_2"])
        }
        other => {
            let (file, what) = match repository.single_file_model() {
                Some(model) => (repository.name(), format!("is a checkpoint of {}, for a", model.title())),
                None => (index.file(), "is the index of a".to_string()),
            };
            let problem = format!(
                "{what} {other}, which is not a kind that is painted with; expected a StableDiffusionPipeline or a StableDiffusionXLPipeline",
            );
            return Err(Error::Folder { file: file.into(), problem });
        }
    };
    for component in components {
        index.component(component)?;
    }
    Ok(family)
}

/// The config of a repository's VAE.
pub(super) fn read_vae_config(repository: &Repository) -> Result<AutoencoderKLConfig> {
    let json = repository.read_json("vae/config.json")?;
    in_file(repository, "vae/config.json", AutoencoderKLConfig::from_json(&json))
}

/// Says in which config a mistake is.
pub(super) fn in_file<T>(repository: &Repository, path: &str, read: Result<T, ModelError>) -> Result<T> {
    read.map_err(|error| Error::Folder { file: repository.display(path), problem: error.to_string() })
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
