//! Whether a model paints what it is told: the 32 prompts of the template's `check.tsv`, by the rule of its README.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::{Schedule, StableDiffusionPipeline, TextToImage, seeded_generators};
use image::imageops::{FilterType, replace, resize};
use image::{GenericImageView, RgbImage};

use crate::picture::{JUDGED, PALETTE, SIDE};

/// Paints the prompts of `template/check.tsv` with the model in `folder`, each with the seed of its row, writes them there as `sheet.png`, and gives the number of those
/// that are right.
pub(crate) fn check(folder: &Path, template: &Path) -> Result<usize> {
    let path = template.join("check.tsv");
    let table = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    fs::write(folder.join("check.tsv"), &table)?;
    let mut pipeline = StableDiffusionPipeline::load(&Repository::folder(folder)?, &LoadOptions::default())?;
    let mut right = 0;
    let tile = 2 * SIDE;
    let mut sheet = RgbImage::new(8 * tile, 4 * tile);
    for (row, line) in table.lines().skip(1).enumerate() {
        let fields: Vec<&str> = line.split('\t').collect();
        ensure!(fields.len() == 4, "{}: {line:?} has not four fields", path.display());
        let (figure, shape, ground) = (fields[1], fields[2], fields[3]);
        let request = TextToImage {
            prompts: vec![format!("a large {figure} {shape} in the center on a {ground} background")],
            schedule: Schedule::Steps(20),
            guidance_scale: Some(4.0),
            ..Default::default()
        };
        let mut noise = seeded_generators(row as u64, 1);
        let output = pipeline.generate(&request, &mut noise, &mut |_| Ok(ControlFlow::Continue(())))?;
        let picture = &output.images[0];
        let middle = (SIDE - 7) / 2;
        let painted = (colour(picture, middle, 7), colour(picture, 0, 5));
        if painted == (figure, ground) {
            right += 1;
        } else {
            println!("row {row}: {figure} on {ground} was painted {} on {}", painted.0, painted.1);
        }
        let (column, line) = (row as u32 % 8, row as u32 / 8);
        let large = resize(picture, tile, tile, FilterType::Nearest);
        replace(&mut sheet, &large, i64::from(column * tile), i64::from(line * tile));
    }
    sheet.save(folder.join("sheet.png"))?;
    Ok(right)
}

/// The palette's colour that is nearest to the mean of the square of `size` pixels that begins at `(first, first)`.
fn colour(picture: &RgbImage, first: u32, size: u32) -> &'static str {
    let mut mean = [0.0f32; 3];
    for (_, _, pixel) in picture.view(first, first, size, size).pixels() {
        mean.iter_mut()
            .zip(pixel.0)
            .for_each(|(mean, value)| *mean += f32::from(value) / (size * size) as f32);
    }
    let distance = |colour: &[f32; 3]| -> f32 { colour.iter().zip(mean).map(|(c, m)| (c - m).powi(2)).sum() };
    let nearest = PALETTE[..JUDGED].iter().min_by(|(_, a), (_, b)| distance(a).total_cmp(&distance(b)));
    nearest.map_or("", |(name, _)| name)
}
