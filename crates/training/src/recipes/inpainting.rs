//! What models see that paint into pictures (9 channels): a random part of each picture is to be painted, the rest is seen, as in diffusers'
//! `examples/research_projects/dreambooth_inpaint/train_dreambooth_inpaint_lora.py`.

use candle_core::{Device, Tensor};
use candle_diffusers_schedulers::TorchGenerator;

use super::Example;
use crate::error::{Error, Result};
use crate::processes::RandomSource;

/// A random mask `(1, height, width)`, 1 where is painted, else 0: a rectangle or an ellipse, as the script's `random_mask` draws them, by torch's random numbers in
/// place of Python's.
///
/// # Errors
/// When a side is 0.
pub fn random_mask(width: usize, height: usize, generator: &mut TorchGenerator) -> Result<Tensor> {
    if width == 0 || height == 0 {
        let expected = "sides of at least 1 pixel".to_string();
        return Err(Error::Shape { what: "mask", found: vec![1, height, width], expected });
    }
    let part = Part::draw([width, height], generator)?;
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let values: Vec<f32> = places.map(|(x, y)| if part.has(x, y) { 1.0 } else { 0.0 }).collect();
    Ok(Tensor::from_vec(values, (1, height, width), &Device::Cpu)?)
}

/// One for each picture, `(batch, 1, height, width)`.
pub(super) fn random_masks(examples: &[Example], generator: &mut dyn RandomSource) -> Result<Tensor> {
    let Some(first) = examples.first() else {
        let expected = "at least one picture".to_string();
        return Err(Error::Shape { what: "batch", found: vec![0], expected });
    };
    let (_, height, width) = first.pixel_values.dims3()?;
    generator.each(examples.len(), &mut |generator| random_mask(width, height, generator))
}

/// The picture with zeros, a middle grey, where is painted; `mask` is `(1, height, width)`.
pub(super) fn masked_picture(pixel_values: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let mask = mask.to_device(pixel_values.device())?.to_dtype(pixel_values.dtype())?;
    Ok(pixel_values.broadcast_mul(&mask.affine(-1.0, 1.0)?)?)
}

/// The part of a picture that is painted.
struct Part {
    center: [usize; 2],
    /// How far it reaches to the sides, and up and down.
    reach: [usize; 2],
    /// Of an ellipse, how far each row reaches to the sides, from the middle outwards; none for a rectangle.
    rows: Option<Vec<usize>>,
}

impl Part {
    fn draw(size: [usize; 2], generator: &mut TorchGenerator) -> Result<Self> {
        let mut between = |low: usize, high: usize| -> Result<usize> {
            let drawn = generator.randint(low as i64, high as i64 + 1, &[1], &Device::Cpu)?;
            Ok(drawn.to_vec1::<i64>()?[0] as usize)
        };
        let reach = [between(0, size[0])? / 2, between(0, size[1])? / 2];
        let center = [between(reach[0], size[0] - reach[0])?, between(reach[1], size[1] - reach[1])?];
        let is_ellipse = between(0, 1)? == 1;
        Ok(Self { center, reach, rows: is_ellipse.then(|| ellipse(reach)) })
    }

    fn has(&self, x: usize, y: usize) -> bool {
        let (across, down) = (x.abs_diff(self.center[0]), y.abs_diff(self.center[1]));
        let widest = match &self.rows {
            Some(rows) => rows.get(down).copied(),
            None => (down <= self.reach[1]).then_some(self.reach[0]),
        };
        widest.is_some_and(|widest| across <= widest)
    }
}

/// How far each row of an ellipse reaches, from the middle outwards, as Pillow draws it: by Bresenham's way along the points that are nearest to the curve.
/// One of a single point has none.
fn ellipse([a, b]: [usize; 2]) -> Vec<usize> {
    if [a, b] == [0, 0] {
        return Vec::new();
    }
    let (a, b) = (a as i128, b as i128);
    let off = |x: i128, y: i128| (a * a * y * y + b * b * x * x - a * a * b * b).abs();
    let (mut x, mut y) = (a, 0);
    let mut rows = vec![x as usize];
    while (x, y) != (0, b) {
        let mut next = (x, y + 1);
        if x > 0 {
            for other in [(x - 1, y + 1), (x - 1, y)] {
                if off(other.0, other.1) < off(next.0, next.1) {
                    next = other;
                }
            }
        }
        if next.1 > y {
            rows.push(next.0 as usize);
        }
        (x, y) = next;
    }
    rows
}
