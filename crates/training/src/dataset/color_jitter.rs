//! Pictures a little brighter or darker, and with a little more or less contrast: torchvision's `ColorJitter(0.1, 0.1)` by Pillow's arithmetic, as in
//! `lora_diffusion/dataset.py` of cloneofsimo's lora.

use candle_core::Device;
use candle_diffusers_schedulers::TorchGenerator;
use image::RgbImage;

use super::transform::uniform;
use crate::error::Result;

/// Factors lie between these.
const FACTORS: [f32; 2] = [0.9, 1.1];

/// What is done to the colours of a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ColorJitter {
    brightness: f32,
    contrast: f32,
    begins_with_contrast: bool,
}

impl ColorJitter {
    /// Draws the order and the factors, in torchvision's order.
    pub(super) fn draw(generator: &mut TorchGenerator) -> Result<Self> {
        // Of brightness, contrast, saturation and hue, the last two of which stay.
        let order = generator.randperm(4, &Device::Cpu)?.to_vec1::<i64>()?;
        let begins_with_contrast = order.into_iter().find(|which| *which < 2) == Some(1);
        // Rounded once, as torch's `uniform_` does where the processor can: now and then a pixel depends on the last bit.
        let mut factor =
            || -> Result<f32> { Ok(uniform(generator)?.mul_add(FACTORS[1] - FACTORS[0], FACTORS[0])) };
        let (brightness, contrast) = (factor()?, factor()?);
        Ok(Self { brightness, contrast, begins_with_contrast })
    }

    pub(super) fn apply(&self, mut picture: RgbImage) -> RgbImage {
        for is_contrast in [self.begins_with_contrast, !self.begins_with_contrast] {
            if is_contrast {
                let grey = mean_grey(&picture);
                blend(&mut picture, grey, self.contrast);
            } else {
                blend(&mut picture, 0, self.brightness);
            }
        }
        picture
    }
}

/// Takes each value `factor` times as far from `from` as it is: Pillow's `Image.blend`, which cuts the rest off.
fn blend(picture: &mut RgbImage, from: u8, factor: f32) {
    for value in picture.iter_mut() {
        let difference = f32::from(*value) - f32::from(from);
        *value = (f32::from(from) + factor * difference) as u8;
    }
}

/// How light the whole is, as Pillow's `ImageEnhance.Contrast` measures it.
fn mean_grey(picture: &RgbImage) -> u8 {
    let grey = |[red, green, blue]: [u8; 3]| {
        let sum = u32::from(red) * 19_595 + u32::from(green) * 38_470 + u32::from(blue) * 7_471;
        u64::from((sum + 0x8000) >> 16)
    };
    let sum: u64 = picture.pixels().map(|pixel| grey(pixel.0)).sum();
    let pixels = (u64::from(picture.width()) * u64::from(picture.height())).max(1);
    (sum as f64 / pixels as f64 + 0.5) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> RgbImage {
        RgbImage::from_raw(2, 1, vec![10, 20, 30, 200, 210, 250]).unwrap()
    }

    #[test]
    fn colours_are_those_of_pillow() {
        let jittered = |brightness, contrast, begins_with_contrast| {
            ColorJitter { brightness, contrast, begins_with_contrast }.apply(picture()).into_raw()
        };
        assert_eq!(jittered(1.0, 1.0, true), picture().into_raw());
        assert_eq!(jittered(0.5, 1.0, false), [5, 10, 15, 100, 105, 125]);
        assert_eq!(jittered(1.5, 1.0, true), [15, 30, 45, 255, 255, 255]);
        // By hand: the pixels are 18 and 212 light, so that the middle is 115.
        assert_eq!(mean_grey(&picture()), 115);
        assert_eq!(jittered(1.0, 0.5, true), [62, 67, 72, 157, 162, 182]);
        assert_eq!(jittered(1.0, 1.5, false), [0, 0, 0, 242, 255, 255]);
        assert_eq!(jittered(0.5, 0.5, true), [31, 33, 36, 78, 81, 91]);
    }

    #[test]
    fn factors_and_their_order_are_drawn() {
        let mut generator = TorchGenerator::new(0);
        let drawn: Vec<ColorJitter> = (0..200).map(|_| ColorJitter::draw(&mut generator).unwrap()).collect();
        for factor in drawn.iter().flat_map(|jitter| [jitter.brightness, jitter.contrast]) {
            assert!((FACTORS[0]..=FACTORS[1]).contains(&factor), "{factor}");
        }
        let first = drawn.iter().filter(|jitter| jitter.begins_with_contrast).count();
        assert!((60..=140).contains(&first), "{first} of 200 begin with the contrast");
    }
}
