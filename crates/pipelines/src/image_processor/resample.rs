//! Resizing pictures exactly as Pillow does it, which diffusers and transformers resize with: a separable filter in fixed-point arithmetic
//! (Pillow 13's `src/libImaging/Resample.c`) in two passes, each rounded to 8 bits. Other libraries round elsewhere: the one
//! tried (fast_image_resize 6.1) was up to 43 of 255 away on noise, so that no picture made from a resized one would be the reference's.

use std::f64::consts::PI;
use std::ops::Range;

/// How new pixels are made of old ones; Pillow's filters of the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Between two pixels.
    Bilinear,
    /// Over four, with a = -0.5.
    Bicubic,
    /// Over six: what diffusers resizes pictures with.
    Lanczos,
}

impl Filter {
    /// The filter is this many source pixels wide on each side, times the factor by which the picture shrinks.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The weight of a pixel that is `x` away.
    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => bicubic(x.abs()),
            Self::Lanczos => lanczos(x),
        }
    }
}

/// Bits behind the point of a weight.
const PRECISION: u32 = 32 - 8 - 2;

/// `pixels` is `(height, width, channels)`, 8 bits each; the result is `(new_height, new_width, channels)`. `width`, `height` and the
/// new ones are at least 1.
pub(super) fn resize(
    pixels: &[u8],
    channels: usize,
    [width, height]: [usize; 2],
    [new_width, new_height]: [usize; 2],
    filter: Filter,
) -> Vec<u8> {
    // Pillow's choice, which shows in the result: rows are dropped first where they are many.
    let height_first = new_height < height && height - new_height > 2 * width.saturating_sub(new_width);
    let mut resized = pixels.to_vec();
    let mut size = [width, height];
    for is_height in [height_first, !height_first] {
        if is_height && new_height != height {
            resized =
                resize_lines(&resized, &weights(height, new_height, filter), [1, height, size[0] * channels]);
            size[1] = new_height;
        } else if !is_height && new_width != width {
            resized = resize_lines(&resized, &weights(width, new_width, filter), [size[1], width, channels]);
            size[0] = new_width;
        }
    }
    resized
}

/// What one new line is made of when a strip of no height at the first or last line is enlarged; the middle dimension of
/// `(outer, size, inner)` becomes 1. Pillow's default filter for such, bicubic.
pub(super) fn edge(pixels: &[u8], [outer, size, inner]: [usize; 3], is_last: bool) -> Vec<u8> {
    let place = if is_last { size as f64 } else { 0.0 };
    resize_lines(pixels, &[weights_at(place, 1.0, size, Filter::Bicubic)], [outer, size, inner])
}

/// What one new pixel is made of.
struct Weights {
    /// Source pixels.
    range: Range<usize>,
    /// A weight for each, in units of `2^-PRECISION`.
    weights: Vec<i32>,
}

fn weights(size: usize, new_size: usize, filter: Filter) -> Vec<Weights> {
    let scale = size as f64 / new_size as f64;
    let filter_scale = scale.max(1.0);
    (0..new_size).map(|index| weights_at((index as f64 + 0.5) * scale, filter_scale, size, filter)).collect()
}

/// Of a new pixel whose middle is at `center` of `size` old ones.
fn weights_at(center: f64, filter_scale: f64, size: usize, filter: Filter) -> Weights {
    let support = filter.support() * filter_scale;
    // Casts cut off towards zero, as C's do, and negative numbers become 0.
    let start = (center - support + 0.5) as usize;
    let end = ((center + support + 0.5) as usize).min(size);
    let place = |x: usize| (x as f64 - center + 0.5) / filter_scale;
    let weights: Vec<f64> = (start..end).map(|x| filter.weight(place(x))).collect();
    let sum: f64 = weights.iter().sum();
    let fixed = |weight: &f64| {
        let weight = if sum == 0.0 { *weight } else { weight / sum };
        (weight * f64::from(1u32 << PRECISION)).round() as i32
    };
    Weights { range: start..end, weights: weights.iter().map(fixed).collect() }
}

fn lanczos(x: f64) -> f64 {
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x {
        _ if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        _ if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) }
}

/// Replaces the middle dimension of `(outer, size, inner)` by the weighted sums.
fn resize_lines(pixels: &[u8], weights: &[Weights], [outer, size, inner]: [usize; 3]) -> Vec<u8> {
    let mut resized = Vec::with_capacity(outer * weights.len() * inner);
    let mut sums = vec![0i32; inner];
    for lines in pixels.chunks_exact((size * inner).max(1)) {
        for Weights { range, weights } in weights {
            // Half a unit, so that the shift rounds.
            sums.fill(1 << (PRECISION - 1));
            for (x, weight) in range.clone().zip(weights) {
                let pixels = &lines[x * inner..(x + 1) * inner];
                sums.iter_mut().zip(pixels).for_each(|(sum, pixel)| *sum += i32::from(*pixel) * weight);
            }
            resized.extend(sums.iter().map(|sum| (sum >> PRECISION).clamp(0, 255) as u8));
        }
    }
    resized
}
