//! The model that a run begins with.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use candle_core::{DType, Device};
use candle_diffusers_kernels::keep_transposed_weights;
use candle_diffusers_loaders::{LoadOptions, ModelIndex, Repository, load_vae};
use candle_diffusers_models::{AutoencoderKL, AutoencoderKLConfig};
use candle_diffusers_pipelines::{Replacements, StableDiffusionPipeline, Task, task};
use serde_json::Value;

use super::{TrainArguments, noise_schedule};
use crate::embedded;
use crate::progress::Progress;

/// Where it is.
pub(super) fn open(arguments: &TrainArguments, progress: &Progress) -> Result<Repository> {
    let repository = match &arguments.pretrained_model_name_or_path {
        Some(model) => repository(model, arguments, progress)?,
        None => embedded::model(),
    };
    let class = ModelIndex::load(&repository)?.class_name;
    ensure!(
        class.starts_with("StableDiffusion"),
        "{} is a {class}; this recipe teaches Stable Diffusion, and unconditional teaches models that paint without a text",
        repository.name()
    );
    Ok(repository)
}

/// A pipeline: a folder, a file, or one of the hub.
pub(super) fn repository(
    model: &OsStr,
    arguments: &TrainArguments,
    progress: &Progress,
) -> Result<Repository> {
    let path = Path::new(model);
    if path.is_file() {
        return Ok(Repository::single_file(path, &Default::default())?);
    }
    let name = of_revision(path, arguments.revision.as_deref());
    let (variant, left_out) = (arguments.variant.as_deref(), ["safety_checker", "feature_extractor"]);
    let mut downloads = progress.downloads();
    Ok(Repository::open_without(name, variant, &left_out, &mut |download| {
        let what = format!("{} ({} of {})", download.file, download.number, download.files);
        downloads.show(what, download.received, download.size);
    })?)
}

/// A model of the hub in the revision that was asked for; what is on disk has none.
fn of_revision(model: &Path, revision: Option<&str>) -> PathBuf {
    let mut name = model.as_os_str().to_os_string();
    if let Some(revision) = revision.filter(|_| !model.exists()) {
        name.push(format!("@{revision}"));
    }
    name.into()
}

/// The models with which a run begins, and how they were loaded.
pub(super) fn load(
    arguments: &TrainArguments,
    repository: &Repository,
    device: Device,
    progress: &Progress,
) -> Result<(StableDiffusionPipeline, LoadOptions)> {
    let dtype = arguments.steps.mixed_precision.compute_dtype();
    // Who asks for less memory has none for a second copy of the weights.
    keep_transposed_weights(!arguments.steps.gradient_checkpointing);
    let options = LoadOptions { dtype, device, variant: arguments.variant.clone() };
    let _loading = progress.activity(format!("loading {}", repository.name()));
    // Pictures that are looked at while training are for whoever trains.
    let unchecked = repository.clone().without(&["safety_checker", "feature_extractor"]);
    // As diffusers' scripts have it: in half precision the losses of Stable Diffusion XL's may be no numbers.
    let is_xl = ModelIndex::load(repository)?.class_name.starts_with("StableDiffusionXL");
    let vae_options = if is_xl { in_float32(&options) } else { options.clone() };
    let mut replacements = Replacements::default();
    if arguments.recipe.has_token() {
        // As in diffusers' scripts: half precision would round the vectors that are learned in each step.
        replacements.text_encoder_dtype = Some(DType::F32);
    }
    replacements.shared.vae = match &arguments.pretrained_vae_model_name_or_path {
        Some(name) => Some(load_other_vae(&open_component(name, progress)?, repository, &vae_options)?),
        None if is_xl => Some(load_vae(repository, "vae", &vae_options)?),
        None => None,
    };
    let mut models = StableDiffusionPipeline::load_with(&unchecked, &options, replacements)?;
    models.text_encoders.set_gradient_checkpointing(arguments.steps.gradient_checkpointing);
    noise_schedule::set(arguments, &mut models)?;
    Ok((models, options))
}

/// A VAE that takes the place of the model's own.
fn load_other_vae(
    other: &Repository,
    repository: &Repository,
    options: &LoadOptions,
) -> Result<AutoencoderKL> {
    ensure!(
        other.path().is_some() || vae_folder(other).is_empty(),
        "--pretrained-vae-model-name-or-path {} is the file of a whole model; give a VAE's, or a folder",
        other.name()
    );
    let vae = load_vae(other, vae_folder(other), options)?;
    let own = AutoencoderKLConfig::from_json(&repository.read_json("vae/config.json")?)?;
    let latents = |config: &AutoencoderKLConfig| (config.latent_channels, config.vae_scale_factor());
    let (found, expected) = (latents(vae.config()), latents(&own));
    ensure!(
        found == expected,
        "--pretrained-vae-model-name-or-path {}: its latents have {} channels and an {}th of a picture's width, expected {} and an {}th, as the model's own VAE",
        other.name(),
        found.0,
        found.1,
        expected.0,
        expected.1
    );
    Ok(vae)
}

/// Where the VAE is in a pipeline's repository, or in that of a VAE alone.
pub(super) fn vae_folder(repository: &Repository) -> &'static str {
    if repository.exists("vae/config.json") { "vae" } else { "" }
}

/// A model alone: a folder, a file, or one of the hub.
pub(super) fn open_component(name: &OsStr, progress: &Progress) -> Result<Repository> {
    let path = Path::new(name);
    if path.is_file() {
        return Ok(Repository::single_file(path, &Default::default())?);
    }
    let mut downloads = progress.downloads();
    Ok(Repository::open_component(path, None, &mut |download| {
        let what = format!("{} ({} of {})", download.file, download.number, download.files);
        downloads.show(what, download.received, download.size);
    })?)
}

/// How what is trained is loaded: in float32, whatever models compute in.
pub(super) fn in_float32(options: &LoadOptions) -> LoadOptions {
    LoadOptions { dtype: DType::F32, ..options.clone() }
}

/// Whether a recipe can teach a model that was made for this; told before it is loaded.
pub(super) fn check_task(repository: &Repository, tasks: &[Task]) -> Result<()> {
    let found = task(repository)?;
    let name = |task: &Task| match task {
        Task::Paint => "paint",
        Task::Inpaint => "paint into pictures",
        Task::Edit => "edit pictures by instructions",
    };
    let expected: Vec<&str> = tasks.iter().map(name).collect();
    ensure!(
        tasks.contains(&found),
        "{} was made to {}; this recipe teaches models that {}",
        repository.name(),
        name(&found),
        expected.join(" or ")
    );
    ensure!(
        !is_refiner(repository)?,
        "{} is Stable Diffusion XL's refiner, which has no first text encoder or is told scores; give the base, or another model that paints by itself",
        repository.name()
    );
    Ok(())
}

/// Whether it goes on from what Stable Diffusion XL's base has begun, which no recipe teaches.
fn is_refiner(repository: &Repository) -> Result<bool> {
    let index = ModelIndex::load(repository)?;
    let has_scores = index.config.get("requires_aesthetics_score") == Some(&Value::Bool(true));
    let is_xl = index.class_name.starts_with("StableDiffusionXL");
    Ok(is_xl && (has_scores || !index.components.contains_key("text_encoder")))
}
