//! Pictures of the classes that shall be kept, painted by the model as it was.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use candle_diffusers_pipelines::{StableDiffusionPipeline, TextToImage, seeded_generators};

use super::TrainArguments;
use super::concepts::Concept;
use super::painting::paint;
use crate::output::Outputs;
use crate::progress::Progress;

/// Paints as many as the folders of the classes lack.
pub(super) fn paint_missing(
    arguments: &TrainArguments,
    concepts: &[Concept],
    models: &mut StableDiffusionPipeline,
    progress: &Progress,
) -> Result<()> {
    if !arguments.thing.with_prior_preservation {
        return Ok(());
    }
    for (folder, prompt) in concepts.iter().filter_map(Concept::class) {
        fill(arguments, folder, prompt, models, progress)?;
    }
    Ok(())
}

fn fill(
    arguments: &TrainArguments,
    folder: &Path,
    prompt: &str,
    models: &mut StableDiffusionPipeline,
    progress: &Progress,
) -> Result<()> {
    let name = || format!("class_data_dir {}", folder.display());
    fs::create_dir_all(folder).with_context(name)?;
    let is_picture = |entry: &fs::DirEntry| {
        let path = entry.path();
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        matches!(ending.as_str(), "png" | "jpg" | "jpeg" | "webp")
    };
    let there = fs::read_dir(folder).with_context(name)?.flatten().filter(is_picture).count();
    let bar = progress.steps("painting pictures of the class", arguments.thing.num_class_images);
    for index in there..arguments.thing.num_class_images {
        bar.set_done(index, arguments.thing.num_class_images);
        let request = TextToImage {
            prompts: vec![prompt.to_string()],
            schedule: arguments.watch.schedule(),
            width: arguments.pictures.resolution.map(|side| side as usize),
            height: arguments.pictures.resolution.map(|side| side as usize),
            ..Default::default()
        };
        let seed = arguments.steps.seed.wrapping_add(index as u64);
        let picture = paint(models, request, &mut seeded_generators(seed, 1))?
            .context("interrupted; the same command paints the pictures of the class that are missing")?;
        let path = folder.join(format!("{index}-seed-{seed}.png"));
        Outputs::new(&path, 1)?.write(0, &picture, prompt)?;
    }
    Ok(())
}
