//! Pictures of the classes that shall be kept, painted by the model as it was.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_diffusers_pipelines::{StableDiffusionPipeline, TextToImage, seeded_generators};
use candle_diffusers_training::dataset::CaptionFiles;

use super::TrainArguments;
use super::concepts::{Concept, classes};
use super::data::Data;
use super::painting::paint;
use crate::output::{Outputs, write_whole};
use crate::progress::Progress;

/// Tells what is wrong with the pictures of the classes that are there, and where those that would be painted are of no use, before either takes long.
pub(super) fn check(arguments: &TrainArguments, concepts: &[Concept], data: &Data) -> Result<()> {
    let wanted = arguments.thing.num_class_images;
    // One that is not there is made.
    for (folder, prompt) in classes(arguments, concepts).filter(|(folder, _)| folder.exists()) {
        let (there, captions) = data.class_folder(arguments, folder)?;
        ensure!(
            there >= wanted || captions != Some(CaptionFiles::Metadata),
            "{}: has {there} of {wanted} pictures of the class (--num-class-images), and those that are painted would not be in its metadata; add pictures with their rows, take another folder, or give a smaller --num-class-images",
            folder.display()
        );
        if there > 0 {
            data.check_class(arguments, folder, prompt)?;
        }
    }
    Ok(())
}

/// Paints as many as the folders of the classes lack.
pub(super) fn paint_missing(
    arguments: &TrainArguments,
    concepts: &[Concept],
    data: &Data,
    models: &mut StableDiffusionPipeline,
    progress: &Progress,
) -> Result<()> {
    for (folder, prompt) in classes(arguments, concepts) {
        fill(arguments, folder, prompt, data, models, progress)?;
    }
    Ok(())
}

fn fill(
    arguments: &TrainArguments,
    folder: &Path,
    prompt: &str,
    data: &Data,
    models: &mut StableDiffusionPipeline,
    progress: &Progress,
) -> Result<()> {
    let name = || format!("class_data_dir {}", folder.display());
    fs::create_dir_all(folder).with_context(name)?;
    let wanted = arguments.thing.num_class_images;
    let (there, captions) = data.class_folder(arguments, folder)?;
    let seed = |index: usize| arguments.steps.seed.wrapping_add(index as u64);
    let file = |index: usize| folder.join(format!("{index}-seed-{}.png", seed(index)));
    // Where some have been removed, others may have the numbers that come next.
    let free = (there..).filter(|index| !file(*index).exists());
    let bar = progress.steps("painting pictures of the class", wanted);
    for (painted, index) in (there..wanted).zip(free) {
        bar.set_done(painted, wanted);
        let request = TextToImage {
            prompts: vec![prompt.to_string()],
            schedule: arguments.watch.schedule(),
            width: arguments.pictures.resolution.map(|side| side as usize),
            height: arguments.pictures.resolution.map(|side| side as usize),
            ..Default::default()
        };
        let picture = paint(models, request, &mut seeded_generators(seed(index), 1))?
            .context("interrupted; the same command paints the pictures of the class that are missing")?;
        let path = file(index);
        if captions == Some(CaptionFiles::Texts) {
            // First: a picture without one could not be learned from.
            let caption = path.with_extension("txt");
            write_whole(&caption, prompt.as_bytes())
                .with_context(|| format!("writing {}", caption.display()))?;
        }
        Outputs::new(&path, 1)?.write(0, &picture, prompt)?;
    }
    Ok(())
}
