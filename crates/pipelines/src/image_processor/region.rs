//! The part of a picture that a mask is about: cutting it out, and putting it back (diffusers' `VaeImageProcessor.get_crop_region`,
//! `resize` with `fill` and `crop`, and `apply_overlay`).

use image::{GenericImageView, GrayImage, ImageBuffer, Pixel, RgbImage, imageops};

use super::resample::{self, Filter};
use super::resized;
use crate::error::{Result, argument};

/// A rectangle of a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first column.
    pub x: u32,
    /// The first row.
    pub y: u32,
    /// How many columns.
    pub width: u32,
    /// How many rows.
    pub height: u32,
}

impl Region {
    /// The smallest that has all of a mask that is not black and `padding` pixels around it, made larger to the proportions of
    /// `width` by `height` as far as the picture goes.
    ///
    /// # Errors
    /// When the mask is black all over.
    pub fn around(mask: &GrayImage, width: u32, height: u32, padding: u32) -> Result<Self> {
        let marked = mask.enumerate_pixels().filter(|(_, _, pixel)| pixel.0[0] > 0);
        let bounds = marked.fold(None, |bounds: Option<[u32; 4]>, (x, y, _)| match bounds {
            None => Some([x, y, x, y]),
            Some([x1, y1, x2, y2]) => Some([x1.min(x), y1.min(y), x2.max(x), y2.max(y)]),
        });
        let Some([x1, y1, x2, y2]) = bounds else {
            return argument("mask", "is black all over: there is nothing to repaint, nor to cut out");
        };
        let end = |last: u32, size: u32| i64::from(last.saturating_add(padding).saturating_add(1).min(size));
        let x = [i64::from(x1.saturating_sub(padding)), end(x2, mask.width())];
        let y = [i64::from(y1.saturating_sub(padding)), end(y2, mask.height())];
        let (across, down) = ((x[1] - x[0]) as f64, (y[1] - y[0]) as f64);
        let proportions = f64::from(width) / f64::from(height);
        let (x, y) = if across / down > proportions {
            (x, enlarge(y, across / proportions, mask.height()))
        } else {
            (enlarge(x, down * proportions, mask.width()), y)
        };
        let size = |range: [i64; 2]| (range[1] - range[0]) as u32;
        Ok(Self { x: x[0] as u32, y: y[0] as u32, width: size(x), height: size(y) })
    }

    /// This part of a picture, as large as it is.
    pub(crate) fn cut<P: Pixel<Subpixel = u8> + 'static>(
        self,
        picture: &ImageBuffer<P, Vec<u8>>,
    ) -> ImageBuffer<P, Vec<u8>> {
        imageops::crop_imm(picture, self.x, self.y, self.width, self.height).to_image()
    }
}

/// The range around its middle in the wished size, cut off towards what it has, moved into `0..limit`.
fn enlarge([mut start, mut end]: [i64; 2], wished: f64, limit: u32) -> [i64; 2] {
    let limit = i64::from(limit);
    let more = (wished - (end - start) as f64) as i64;
    start -= more.div_euclid(2);
    end += more - more.div_euclid(2);
    if end >= limit {
        start -= end - limit;
        end = limit;
    }
    if start < 0 {
        end -= start;
        start = 0;
    }
    [start, end.min(limit)]
}

/// A picture made as large as fits into `width` by `height` in its proportions, in the middle; what it leaves at two sides is filled with the
/// colours of its edges.
pub(crate) fn resize_and_fill<P: Pixel<Subpixel = u8> + 'static>(
    picture: &ImageBuffer<P, Vec<u8>>,
    width: u32,
    height: u32,
) -> Result<ImageBuffer<P, Vec<u8>>> {
    let (old_width, old_height) = picture.dimensions();
    let is_wide = is_wider([old_width, old_height], [width, height]);
    let size = if is_wide {
        [width, scaled(old_height, width, old_width)]
    } else {
        [scaled(old_width, height, old_height), height]
    };
    let middle = resized(Filter::Lanczos, picture, size[0].max(1), size[1].max(1))?;
    let mut filled = ImageBuffer::new(width, height);
    let (left, top) = (width / 2 - middle.width() / 2, height / 2 - middle.height() / 2);
    imageops::replace(&mut filled, &middle, left.into(), top.into());
    let (before, after) = if is_wide {
        (edge(&middle, true, false), edge(&middle, true, true))
    } else {
        (edge(&middle, false, false), edge(&middle, false, true))
    };
    let fill = |filled: &mut ImageBuffer<P, Vec<u8>>, from: u32, line: &[u8]| {
        let channels = usize::from(P::CHANNEL_COUNT);
        let count = if is_wide { top } else { left };
        for place in from..(from + count).min(if is_wide { height } else { width }) {
            for (index, pixel) in line.chunks_exact(channels).enumerate() {
                let (x, y) = if is_wide { (index as u32, place) } else { (place, index as u32) };
                if filled.in_bounds(x, y) {
                    filled.put_pixel(x, y, *P::from_slice(pixel));
                }
            }
        }
    };
    let behind = if is_wide { top + middle.height() } else { left + middle.width() };
    fill(&mut filled, 0, &before);
    fill(&mut filled, behind, &after);
    Ok(filled)
}

/// A picture made so large that it covers `width` by `height` in its proportions, and cut to that around its middle.
fn resize_and_crop(picture: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    let (old_width, old_height) = picture.dimensions();
    let size = if is_wider([old_width, old_height], [width, height]) {
        [scaled(old_width, height, old_height), height]
    } else {
        [width, scaled(old_height, width, old_width)]
    };
    let covering = resized(Filter::Lanczos, picture, size[0].max(1), size[1].max(1))?;
    let mut cropped = RgbImage::new(width, height);
    let place = |side: u32, covering: u32| i64::from(side / 2) - i64::from(covering / 2);
    imageops::replace(
        &mut cropped,
        &covering,
        place(width, covering.width()),
        place(height, covering.height()),
    );
    Ok(cropped)
}

/// Whether the first size is wider in its proportions.
fn is_wider(size: [u32; 2], than: [u32; 2]) -> bool {
    f64::from(than[0]) / f64::from(than[1]) < f64::from(size[0]) / f64::from(size[1])
}

fn scaled(side: u32, to: u32, from: u32) -> u32 {
    (u64::from(side) * u64::from(to) / u64::from(from.max(1))) as u32
}

/// What Pillow makes of the first or last rows (or columns) when it enlarges a strip of no height at the picture's edge: one line of a blend.
fn edge<P: Pixel<Subpixel = u8> + 'static>(
    picture: &ImageBuffer<P, Vec<u8>>,
    is_row: bool,
    is_last: bool,
) -> Vec<u8> {
    let channels = usize::from(P::CHANNEL_COUNT);
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let shape = if is_row { [1, height, width * channels] } else { [height, width, channels] };
    resample::edge(picture.as_raw(), shape, is_last)
}

/// A painted picture with the original around it: `painted` comes into the region that it is of, or is all of the picture, and over it what the
/// mask does not mark, where the mask is grey in proportion (8-bit arithmetic as Pillow's). Where the mask is black, pixels are the original's
/// exactly.
///
/// # Errors
/// When the mask has another size than the original.
pub fn overlay(
    original: &RgbImage,
    mask: &GrayImage,
    painted: &RgbImage,
    region: Option<Region>,
) -> Result<RgbImage> {
    if mask.dimensions() != original.dimensions() {
        let ((width, height), (other_width, other_height)) = (mask.dimensions(), original.dimensions());
        let problem =
            format!("is {width}x{height}, expected the picture's {other_width}x{other_height} pixels");
        return argument("mask", problem);
    }
    let mut result = match region {
        None => resized(Filter::Lanczos, painted, original.width(), original.height())?,
        Some(region) => {
            let mut result = RgbImage::new(original.width(), original.height());
            let painted = resize_and_crop(painted, region.width, region.height)?;
            imageops::replace(&mut result, &painted, region.x.into(), region.y.into());
            result
        }
    };
    for ((result, original), mask) in result.pixels_mut().zip(original.pixels()).zip(mask.pixels()) {
        let alpha = 255 - u32::from(mask.0[0]);
        for (result, original) in result.0.iter_mut().zip(original.0) {
            *result = composite(premultiplied(original.into(), alpha), alpha, (*result).into());
        }
    }
    Ok(result)
}

/// A colour that was multiplied by its alpha, rounded, and divided by it again.
fn premultiplied(colour: u32, alpha: u32) -> u32 {
    let product = colour * alpha + 128;
    let product = ((product >> 8) + product) >> 8;
    match alpha {
        0 | 255 => product,
        _ => (255 * product / alpha).min(255),
    }
}

/// A colour with this alpha over an opaque one (Pillow's `src/libImaging/AlphaComposite.c`).
fn composite(colour: u32, alpha: u32, below: u32) -> u8 {
    const PRECISION: u32 = 7;
    if alpha == 0 {
        return below as u8;
    }
    let whole = alpha * 255 + 255 * (255 - alpha);
    let weight = alpha * 255 * 255 * (1 << PRECISION) / whole;
    let rest = 255 * (1 << PRECISION) - weight;
    let sum = colour * weight + below * rest + (0x80 << PRECISION);
    ((((sum >> 8) + sum) >> 8) >> PRECISION) as u8
}
