//! Pictures of the validation prompts, as the model is now and as it has been.

use std::fs;
use std::mem;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_diffusers_pipelines::{Schedule, TextToImage, Unconditional, load_picture, seeded_generators};
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use super::TrainArguments;
use super::taught::Taught;
use crate::grid::Grid;
use crate::output::Outputs;

/// The pictures of all steps, one row for each, in the folder of those of each step.
const ALL: &str = "all.png";
/// How high that may be; beyond, its rows are made smaller.
const HIGHEST: u32 = 16_384;

/// The pictures of a run.
pub(super) struct Validation {
    folder: PathBuf,
    /// Steps whose pictures there are.
    steps: Vec<u64>,
    /// Those of an earlier run's, where this one begins.
    earlier: Vec<u64>,
}

impl Validation {
    /// Those of a run in `folder` until a step: a run that begins has none, whatever an earlier one has left.
    pub(super) fn open(folder: &Path, step: u64) -> Self {
        let folder = folder.join("validation");
        let mut steps = painted(&folder);
        let earlier = if step == 0 { mem::take(&mut steps) } else { Vec::new() };
        steps.retain(|painted| *painted <= step);
        Self { folder, steps, earlier }
    }

    /// Paints the prompts: `STEP.png` is a row, and `all.png` has all rows so far, one below the other. Nothing where an interrupt comes before the row is
    /// done.
    pub(super) fn paint(
        &mut self,
        arguments: &TrainArguments,
        taught: &mut Taught,
        step: u64,
    ) -> Result<Option<RgbImage>> {
        let Some(grid) = paint(arguments, taught)? else { return Ok(None) };
        fs::create_dir_all(&self.folder).with_context(|| format!("writing {}", self.folder.display()))?;
        let row = grid.join(grid.len());
        // A run that goes on would take them for its own. One that cannot be removed is no reason to end.
        for step in mem::take(&mut self.earlier) {
            fs::remove_file(self.row(step)).ok();
        }
        let write =
            |path: &Path, picture: &RgbImage| Outputs::new(path, 1)?.write(0, picture, grid.parameters());
        write(&self.row(step), &row)?;
        if self.steps.last() != Some(&step) {
            self.steps.push(step);
        }
        let read = |step: &u64| {
            let path = self.row(*step);
            Ok(image::open(&path).with_context(|| format!("reading {}", path.display()))?.to_rgb8())
        };
        let rows = self.steps.iter().map(read).collect::<Result<Vec<_>>>()?;
        write(&self.folder.join(ALL), &stack(&rows))?;
        Ok(Some(row))
    }

    fn row(&self, step: u64) -> PathBuf {
        self.folder.join(row_name(step))
    }
}

fn row_name(step: u64) -> String {
    format!("{step:06}.png")
}

/// The steps whose pictures a folder has, in order.
fn painted(folder: &Path) -> Vec<u64> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let step = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let step: u64 = name.strip_suffix(".png")?.parse().ok()?;
        (name == row_name(step)).then_some(step)
    };
    let mut steps: Vec<u64> = entries.filter_map(step).collect();
    steps.sort_unstable();
    steps
}

/// All pictures of each prompt, and of one prompt for each picture that it is about. Nothing where an interrupt comes.
fn paint(arguments: &TrainArguments, taught: &mut Taught) -> Result<Option<Grid>> {
    let watch = &arguments.watch;
    if let Taught::Unconditional(..) = taught {
        return paint_without_text(arguments, taught);
    }
    let pictures = watch.validation_image.iter().map(|path| Ok(load_picture(path)?));
    let pictures = pictures.collect::<Result<Vec<_>>>()?;
    let mut grid = Grid::default();
    for number in 0..watch.validation_prompt.len().max(pictures.len()) {
        let of_all = |count: usize| if count == 1 { 0 } else { number };
        let prompt = &watch.validation_prompt[of_all(watch.validation_prompt.len())];
        let picture = pictures.get(of_all(pictures.len()));
        let request =
            TextToImage { prompts: vec![prompt.clone()], schedule: watch.schedule(), ..Default::default() };
        for index in 0..watch.num_validation_images as u64 {
            let mut noise = seeded_generators(arguments.steps.seed.wrapping_add(index), 1);
            let Some(painted) = taught.paint(request.clone(), picture, &mut noise)? else { return Ok(None) };
            grid.add(&painted, prompt);
        }
    }
    Ok(Some(grid))
}

/// What the model makes of noise. Nothing where an interrupt comes.
fn paint_without_text(arguments: &TrainArguments, taught: &Taught) -> Result<Option<Grid>> {
    let watch = &arguments.watch;
    let request =
        Unconditional { schedule: watch.num_inference_steps.map(Schedule::Steps), ..Default::default() };
    let mut grid = Grid::default();
    for index in 0..watch.num_validation_images as u64 {
        let mut noise = seeded_generators(arguments.steps.seed.wrapping_add(index), 1);
        let Some(painted) = taught.paint_without_text(&request, &mut noise)? else { return Ok(None) };
        grid.add(&painted, "");
    }
    Ok(Some(grid))
}

/// Pictures one below the other, smaller where the whole would be too high.
fn stack(rows: &[RgbImage]) -> RgbImage {
    let height: u32 = rows.iter().map(RgbImage::height).sum();
    let share = (f64::from(HIGHEST) / f64::from(height.max(1))).min(1.0);
    let scaled = |side: u32| ((f64::from(side) * share) as u32).max(1);
    let (mut sizes, mut width, mut height) = (Vec::new(), 0, 0);
    for row in rows {
        let size = (scaled(row.width()), scaled(row.height()));
        sizes.push(size);
        width = width.max(size.0);
        height += size.1;
    }
    let mut whole = RgbImage::from_pixel(width, height, Rgb([0; 3]));
    let mut top = 0;
    for (row, size) in rows.iter().zip(sizes) {
        if size == row.dimensions() {
            imageops::replace(&mut whole, row, 0, top);
        } else {
            imageops::replace(
                &mut whole,
                &imageops::resize(row, size.0, size.1, FilterType::Triangle),
                0,
                top,
            );
        }
        top += i64::from(size.1);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_too_high_together_become_smaller() {
        let rows: Vec<RgbImage> = (0..3).map(|shade| RgbImage::from_pixel(4, 2, Rgb([shade; 3]))).collect();
        let whole = stack(&rows);
        assert_eq!(whole.dimensions(), (4, 6));
        assert_eq!([0, 2, 5].map(|y| whole.get_pixel(3, y).0[0]), [0, 1, 2]);
        let high = [RgbImage::new(10, HIGHEST), RgbImage::new(10, HIGHEST)];
        assert_eq!(stack(&high).dimensions(), (5, HIGHEST));
    }
}
