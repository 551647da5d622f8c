//! The model that a run begins with.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Result, ensure};
use candle_core::{DType, Device};
use candle_diffusers_loaders::{LoadOptions, ModelIndex, Repository, load_vae};
use candle_diffusers_pipelines::{Replacements, StableDiffusionPipeline, Task, task};

use super::{TrainArguments, noise_schedule};
use crate::embedded;
use crate::progress::Progress;

/// Where it is.
pub(super) fn open(arguments: &TrainArguments, progress: &Progress) -> Result<Repository> {
    let repository = match &arguments.pretrained_model_name_or_path {
        Some(model) => repository(model, arguments.variant.as_deref(), progress)?,
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

fn repository(model: &OsStr, variant: Option<&str>, progress: &Progress) -> Result<Repository> {
    let path = Path::new(model);
    if path.is_file() {
        return Ok(Repository::single_file(path, &Default::default())?);
    }
    let mut downloads = progress.downloads();
    Ok(Repository::open_without(path, variant, &["safety_checker", "feature_extractor"], &mut |download| {
        let what = format!("{} ({} of {})", download.file, download.number, download.files);
        downloads.show(what, download.received, download.size);
    })?)
}

/// The models with which a run begins, and how they were loaded.
pub(super) fn load(
    arguments: &TrainArguments,
    repository: &Repository,
    device: Device,
    progress: &Progress,
) -> Result<(StableDiffusionPipeline, LoadOptions)> {
    let dtype = arguments.steps.mixed_precision.compute_dtype();
    let options = LoadOptions { dtype, device, variant: arguments.variant.clone() };
    let _loading = progress.activity(format!("loading {}", repository.name()));
    // Pictures that are looked at while training are for whoever trains.
    let unchecked = repository.clone().without(&["safety_checker", "feature_extractor"]);
    let mut replacements = Replacements::default();
    if ModelIndex::load(repository)?.class_name.starts_with("StableDiffusionXL") {
        // As diffusers' scripts have it: in half precision its losses may be no numbers.
        replacements.shared.vae = Some(load_vae(repository, "vae", &in_float32(&options))?);
    }
    let mut models = StableDiffusionPipeline::load_with(&unchecked, &options, replacements)?;
    noise_schedule::set(arguments, &mut models)?;
    Ok((models, options))
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
    Ok(())
}
