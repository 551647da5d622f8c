//! Blurring masks exactly as Pillow does it (Pillow 13's `src/libImaging/BoxBlur.c`; Gwosdek et al. 2011): a Gaussian as three box filters in
//! each direction, each rounded to 8 bits.

use image::GrayImage;

/// How many box filters make a Gaussian.
const PASSES: usize = 3;
/// From here on the weight of a pixel is 0 in 24 bits.
const WIDEST: usize = 1 << 24;

/// A mask with soft edges: Pillow's `GaussianBlur`, which diffusers' `VaeImageProcessor.blur` calls. `radius` is the standard deviation in pixels; 0 or
/// less, or what is not a number, changes nothing.
pub fn blur(mask: &GrayImage, radius: f32) -> GrayImage {
    let (width, height) = mask.dimensions();
    if !(radius > 0.0 && radius.is_finite()) || width == 0 || height == 0 {
        return mask.clone();
    }
    let filter = BoxFilter::of_gaussian(radius);
    let mut blurred = mask.clone();
    for row in blurred.chunks_exact_mut(width as usize) {
        (0..PASSES).for_each(|_| filter.apply(row));
    }
    for x in 0..width {
        let mut column: Vec<u8> = (0..height).map(|y| blurred.get_pixel(x, y).0[0]).collect();
        (0..PASSES).for_each(|_| filter.apply(&mut column));
        (0..height).zip(column).for_each(|(y, value)| blurred.get_pixel_mut(x, y).0[0] = value);
    }
    blurred
}

/// The mean of the pixels up to a distance that need not be whole: those at its end count in part.
struct BoxFilter {
    radius: usize,
    /// In units of 2^-24.
    weight: u32,
    far_weight: u32,
}

impl BoxFilter {
    /// So wide that [`PASSES`] of them have the deviation of a Gaussian; Pillow's float32 arithmetic, step by step.
    fn of_gaussian(radius: f32) -> Self {
        let sigma2 = radius * radius / PASSES as f32;
        let length = (12.0 * f64::from(sigma2) + 1.0).sqrt() as f32;
        let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
        let mut part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * sigma2);
        part /= 6.0 * (sigma2 - (whole + 1.0) * (whole + 1.0));
        let radius = whole + part;
        let weight = ((1u32 << 24) as f32 / (radius * 2.0 + 1.0)) as u32;
        let radius = (radius as usize).min(WIDEST);
        let inside = (2 * radius as u32 + 1).wrapping_mul(weight);
        Self { radius, weight, far_weight: (1u32 << 24).wrapping_sub(inside) / 2 }
    }

    /// Beyond a line's ends its last pixels go on.
    fn apply(&self, line: &mut [u8]) {
        let before = line.to_vec();
        let last = before.len() - 1;
        let radius = self.radius as isize;
        let pixel = |x: isize| u32::from(before[usize::try_from(x).unwrap_or(0).min(last)]);
        let beyond = (self.radius as u32).saturating_sub(before.len() as u32);
        let inside = before.iter().take(self.radius).map(|value| u32::from(*value)).sum::<u32>();
        let left = u32::from(before[0]).wrapping_mul(self.radius as u32 + 1);
        let mut sum = left.wrapping_add(inside).wrapping_add(beyond.wrapping_mul(u32::from(before[last])));
        for (x, value) in line.iter_mut().enumerate() {
            let x = x as isize;
            sum = sum.wrapping_add(pixel(x + radius)).wrapping_sub(pixel(x - radius - 1));
            let far = pixel(x - radius - 1) + pixel(x + radius + 1);
            let bulk = sum.wrapping_mul(self.weight).wrapping_add(far.wrapping_mul(self.far_weight));
            *value = (bulk.wrapping_add(1 << 23) >> 24) as u8;
        }
    }
}
