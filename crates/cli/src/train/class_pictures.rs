//! Pictures of the class that DreamBooth shall keep, painted by the model as it was.

use std::fs;

use anyhow::{Context, Result};
use candle_diffusers_pipelines::{Schedule, StableDiffusionPipeline, TextToImage, seeded_generators};

use super::TrainArguments;
use super::painting::paint;
use crate::output::Outputs;
use crate::progress::Progress;

/// Paints as many as the folder of the class lacks.
pub(super) fn paint_missing(
    arguments: &TrainArguments,
    models: &mut StableDiffusionPipeline,
    progress: &Progress,
) -> Result<()> {
    let (true, Some(folder), Some(prompt)) = (
        arguments.thing.with_prior_preservation,
        &arguments.thing.class_data_dir,
        &arguments.thing.class_prompt,
    ) else {
        return Ok(());
    };
    let name = || format!("--class-data-dir {}", folder.display());
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
            prompts: vec![prompt.clone()],
            schedule: Schedule::Steps(arguments.watch.num_inference_steps),
            width: arguments.pictures.resolution.map(|side| side as usize),
            height: arguments.pictures.resolution.map(|side| side as usize),
            ..Default::default()
        };
        let seed = arguments.steps.seed.wrapping_add(index as u64);
        let picture = paint(models, request, &mut seeded_generators(seed, 1))?;
        let path = folder.join(format!("{index}-seed-{seed}.png"));
        Outputs::new(&path, 1)?.write(0, &picture, prompt)?;
    }
    Ok(())
}
