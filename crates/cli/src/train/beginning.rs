//! What a run can know of its end before models are loaded, pictures of a class are painted or a word is learned.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_diffusers_training::{Checkpoint, Checkpoints};

use super::data::Data;
use super::processes::Started;
use super::session::Stage;
use super::settings::{assume_defaults, settings};
use super::{Recipe, ReportTo, TrainArguments};

/// Tells of folders that cannot be written to, and of a checkpoint to go on from that is not there or was made with other settings.
pub(super) fn check(arguments: &TrainArguments, started: &Started, data: &Data) -> Result<()> {
    if started.is_first() {
        check_folder("--output-dir", &arguments.output_dir)?;
        if arguments.watch.report_to == ReportTo::Tensorboard {
            check_folder("--logging-dir", &arguments.output_dir.join(&arguments.watch.logging_dir))?;
        }
    }
    // One that is there may be for reading alone.
    if let Some(folder) = &arguments.pictures.encoder_cache_dir
        && !folder.is_dir()
    {
        check_folder("--encoder-cache-dir", folder)?;
    }
    let stages: &[Stage] = match arguments.recipe {
        Recipe::PivotalTuning => &[Stage::Word, Stage::Lora],
        _ => &[Stage::Only],
    };
    // All before one is looked for, as that looks into the folders of both stages.
    let limit = arguments.watch.checkpoints_total_limit;
    let open =
        |stage: &Stage| started.first_before_others(|| Ok(Checkpoints::new(stage.folder(arguments), limit)?));
    let checkpoints = stages.iter().map(open).collect::<Result<Vec<_>>>()?;
    for (stage, checkpoints) in stages.iter().zip(&checkpoints) {
        if let Some(folder) = find(arguments, checkpoints, *stage)? {
            check_settings(arguments, started, data, *stage, &folder)?;
        }
    }
    Ok(())
}

/// The checkpoint that a stage goes on from, if one was named and there is one.
pub(super) fn find(
    arguments: &TrainArguments,
    checkpoints: &Checkpoints,
    stage: Stage,
) -> Result<Option<PathBuf>> {
    let Some(name) = &arguments.watch.resume_from_checkpoint else { return Ok(None) };
    let found = checkpoints.find(name);
    let is_of = |stage: Stage| match &found {
        // By its path all stages find it.
        Ok(Some(path)) => lies_in(path, &stage.folder(arguments)),
        Ok(None) => false,
        Err(_) => Checkpoints::new(stage.folder(arguments), None).and_then(|other| other.find(name)).is_ok(),
    };
    Ok(match stage {
        // A checkpoint of the LoRA comes after the whole of the word's run.
        Stage::Word if is_of(Stage::Lora) => checkpoints.find("latest")?,
        // One of the word comes before anything of the LoRA's.
        Stage::Lora if is_of(Stage::Word) => None,
        _ => found?,
    })
}

/// Whether a checkpoint is directly in a folder, whatever both are called.
fn lies_in(checkpoint: &Path, folder: &Path) -> bool {
    let place = checkpoint.canonicalize().ok();
    let place = place.as_deref().and_then(Path::parent);
    place.is_some_and(|place| folder.canonicalize().is_ok_and(|folder| folder == place))
}

/// Whether a checkpoint was made with the settings of this run.
fn check_settings(
    arguments: &TrainArguments,
    started: &Started,
    data: &Data,
    stage: Stage,
    folder: &Path,
) -> Result<()> {
    let mut checkpoint = Checkpoint::read_fields(folder)?;
    let mut pictures = data.known_by();
    if arguments.thing.with_prior_preservation {
        // Those of the class may not be there yet: when they are, the session compares all.
        for (name, known_by) in &mut pictures {
            if let Some(before) = checkpoint.setting(name) {
                *known_by = before.to_string();
            }
        }
    }
    let settings = settings(arguments, started, data, stage, pictures)?;
    assume_defaults(arguments, &mut checkpoint, &settings)?;
    Ok(checkpoint.check_settings(&folder.display().to_string(), &settings)?)
}

/// Whether a folder can be written to, or made where it is missing; leaves nothing there.
fn check_folder(flag: &str, folder: &Path) -> Result<()> {
    // A link to nothing is there too: no folder can be made in its place.
    let there = folder.ancestors().find(|folder| folder.symlink_metadata().is_ok());
    tempfile::tempfile_in(there.unwrap_or(Path::new(".")))
        .with_context(|| format!("{flag} {} cannot be written to", folder.display()))?;
    Ok(())
}
