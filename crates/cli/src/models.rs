//! The models of `diffuse generate`: where they are, and loading them.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use candle_diffusers_loaders::{Download, LoadOptions, Repository, Result as LoaderResult};
use candle_diffusers_pipelines::{Replacements, SharedParts, StableDiffusionPipeline, check_refiner};

use crate::arguments::GenerateArguments;
use crate::output::utf8_name;
use crate::progress::Progress;
use crate::{device, embedded, scheduler_names};

/// The components that only check pictures.
const SAFETY_CHECKER: &[&str] = &["safety_checker", "feature_extractor"];

/// A model's files, and its name for people.
pub(crate) struct NamedModel {
    pub(crate) name: String,
    pub(crate) repository: Repository,
}

/// What `--model` names, or the model in the program.
pub(crate) fn open_model(arguments: &GenerateArguments, progress: &Progress) -> Result<NamedModel> {
    match &arguments.model {
        Some(model) => open("--model", model, arguments, progress),
        None => Ok(NamedModel { name: embedded::NAME.to_string(), repository: embedded::model() }),
    }
}

/// What `--refiner` names, when it can go on with what `base` paints.
pub(crate) fn open_refiner(
    arguments: &GenerateArguments,
    base: &Repository,
    progress: &Progress,
) -> Result<Option<NamedModel>> {
    let Some(refiner) = &arguments.xl.refiner else { return Ok(None) };
    let refiner = open("--refiner", refiner, arguments, progress)?;
    check_refiner(base, &refiner.repository)?;
    // It may be loaded only when the base has painted: what its file is like is told before.
    refiner.repository.state_dict("unet", arguments.variant.as_deref())?;
    Ok(Some(refiner))
}

/// The ControlNet that a `--control` names.
pub(crate) fn open_controlnet(
    model: &str,
    arguments: &GenerateArguments,
    progress: &Progress,
) -> Result<NamedModel> {
    let variant = arguments.variant.as_deref();
    open_by("--control", OsStr::new(model), arguments, progress, |path, shown| {
        Repository::open_component(path, variant, shown)
    })
}

fn open(flag: &str, model: &OsStr, arguments: &GenerateArguments, progress: &Progress) -> Result<NamedModel> {
    let left_out = if arguments.no_safety_checker { SAFETY_CHECKER } else { &[] };
    let variant = arguments.variant.as_deref();
    open_by(flag, model, arguments, progress, |path, shown| {
        Repository::open_without(path, variant, left_out, shown)
    })
}

/// A file, or what `open_folder` finds of a folder's path or an id.
fn open_by(
    flag: &str,
    model: &OsStr,
    arguments: &GenerateArguments,
    progress: &Progress,
    open_folder: impl FnOnce(&Path, &mut dyn FnMut(Download<'_>)) -> LoaderResult<Repository>,
) -> Result<NamedModel> {
    let path = Path::new(model);
    let text = utf8_name(flag, path)?;
    ensure!(
        !text.is_empty(),
        "{flag} is empty; expected a folder, a checkpoint file or the id of a model on the hub"
    );
    if path.is_file() {
        // Its name is without the ending, as web UIs write it.
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let repository = Repository::single_file(path, &arguments.single_file.read_options())?;
        return Ok(NamedModel { name, repository });
    }
    if flag == "--model"
        && let Some(flag) = arguments.single_file.given()
        && !arguments.control.has_single_file()
    {
        bail!(
            "{flag} is for a checkpoint in one file, but {text} is a folder or an id, whose configs say it"
        );
    }
    let name = path.file_name().map_or(text.to_string(), |name| name.to_string_lossy().into_owned());
    let mut downloads = progress.downloads();
    let repository = open_folder(path, &mut |download| {
        let what = format!("{} ({} of {})", download.file, download.number, download.files);
        downloads.show(what, download.received, download.size);
    })?;
    Ok(NamedModel { name, repository })
}

/// Loads a model, but for what it shares with another one.
pub(crate) fn load_pipeline(
    arguments: &GenerateArguments,
    repository: &Repository,
    shared: SharedParts,
    progress: &Progress,
) -> Result<StableDiffusionPipeline> {
    let device = device::open(arguments.device)?;
    let dtype = device::dtype(arguments.dtype, &device);
    let options = LoadOptions { dtype, device, variant: arguments.variant.clone() };
    let _shown = progress.activity(format!("loading {}", repository.name()));
    let scheduler = arguments.scheduler.as_deref().and_then(scheduler_names::resolve);
    let scheduler = scheduler.as_ref().map(|(class_name, overrides)| (*class_name, overrides));
    Ok(StableDiffusionPipeline::load_with(
        repository,
        &options,
        Replacements { scheduler, shared, ..Default::default() },
    )?)
}
