//! From a picture of any size to one of the size that is trained at, as torchvision's transforms in diffusers' scripts.

use candle_core::{DType, Device};
use candle_diffusers_pipelines::{Filter, resize_with};
use candle_diffusers_schedulers::TorchGenerator;
use image::imageops::{crop_imm, flip_horizontal, replace};
use image::{Rgb, RgbImage};

use super::fit::{Area, Fit};
use crate::error::{Error, Result};

/// Whether pictures are mirrored, one in two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flip {
    /// Never.
    #[default]
    Never,
    /// After the crop, as the scripts for Stable Diffusion 1 and 2 (`random_flip`).
    AfterCrop,
    /// Before the crop, as those for Stable Diffusion XL, which are told where the crop begins.
    BeforeCrop,
}

/// How pictures are brought to size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransformOptions {
    /// How they are resized (`image_interpolation_mode`).
    pub filter: Filter,
    /// Cut the middle out, and not a random part (`center_crop`).
    pub center_crop: bool,
    /// Whether they are mirrored.
    pub flip: Flip,
    /// How they fill what they are cut to; whole ones are never cropped, but where they are larger.
    pub fit: Fit,
    /// Make them a little brighter or darker, with a little more or less contrast, as torchvision's `ColorJitter(0.1, 0.1)`; not the others that belong to them.
    pub color_jitter: bool,
}

impl Default for TransformOptions {
    fn default() -> Self {
        let (flip, fit) = (Flip::Never, Fit::Cover);
        Self { filter: Filter::Bilinear, center_crop: false, flip, fit, color_jitter: false }
    }
}

/// What is done to a picture. It can be done to others that belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Width and height after resizing.
    pub resized: [u32; 2],
    /// Where the crop begins, from the left of the resized (and, before the crop, mirrored) picture; where that is smaller than the target, where on it it is put.
    pub left: u32,
    /// The same from the top.
    pub top: u32,
    /// Width and height of the crop.
    pub target: [u32; 2],
    /// Whether it is mirrored, and when.
    pub flip: Flip,
    /// How it is resized.
    pub filter: Filter,
}

impl TransformOptions {
    /// Whether any picture is cut alike each time.
    pub fn is_fixed(&self) -> bool {
        let is_placed_alike = match self.fit {
            Fit::Cover => self.center_crop,
            Fit::Whole => true,
            Fit::RandomSize => false,
        };
        is_placed_alike && self.flip == Flip::Never && !self.color_jitter
    }

    /// Chooses a cut for a picture of `size` (width and height) by torch's random numbers, in the order of the scripts.
    ///
    /// # Errors
    /// If a side is 0 or the picture is so long and thin that it cannot be resized.
    pub fn choose(&self, size: [u32; 2], target: [u32; 2], generator: &mut TorchGenerator) -> Result<Cut> {
        let resized = resized(size, target)?;
        if self.fit != Fit::Cover {
            return self.choose_whole(target, generator);
        }
        let flips_first = self.flip == Flip::BeforeCrop && one_in_two(generator)?;
        let room = [resized[0] - target[0], resized[1] - target[1]];
        let (left, top) = if self.center_crop {
            (half(room[0]), half(room[1]))
        } else if room == [0, 0] {
            (0, 0)
        } else {
            let top = below(room[1] + 1, generator)?;
            (below(room[0] + 1, generator)?, top)
        };
        let flips_last = self.flip == Flip::AfterCrop && one_in_two(generator)?;
        let flip = if flips_first || flips_last { self.flip } else { Flip::Never };
        Ok(Cut { resized, left, top, target, flip, filter: self.filter })
    }

    /// A whole picture of some size, in the order of Custom Diffusion's script: mirrored, then how large, then where.
    fn choose_whole(&self, target: [u32; 2], generator: &mut TorchGenerator) -> Result<Cut> {
        let flips = self.flip != Flip::Never && one_in_two(generator)?;
        let resized = self.fit.size(target, generator)?;
        let top = below(resized[1].abs_diff(target[1]) + 1, generator)?;
        let left = below(resized[0].abs_diff(target[0]) + 1, generator)?;
        let flip = if flips { Flip::BeforeCrop } else { Flip::Never };
        Ok(Cut { resized, left, top, target, flip, filter: self.filter })
    }
}

/// What is around a picture that is smaller than the target; where it is trained on, exactly the middle between black and white.
const GREY: Rgb<u8> = Rgb([128; 3]);

impl Cut {
    /// Resizes, mirrors, and crops or puts on a grey canvas.
    ///
    /// # Errors
    /// If the picture has a side of 0.
    pub fn apply(&self, picture: &RgbImage) -> Result<RgbImage> {
        self.apply_changed(picture, |resized| resized)
    }

    /// The same, where something is done to the resized picture before it is cut.
    pub(super) fn apply_changed(
        &self,
        picture: &RgbImage,
        change: impl FnOnce(RgbImage) -> RgbImage,
    ) -> Result<RgbImage> {
        let [width, height] = self.resized;
        let resized = if picture.dimensions() == (width, height) {
            picture.clone()
        } else {
            resize_with(self.filter, picture, width, height)?
        };
        let mut resized = change(resized);
        if self.flip == Flip::BeforeCrop {
            resized = flip_horizontal(&resized);
        }
        if self.is_smaller() {
            let mut canvas = RgbImage::from_pixel(self.target[0], self.target[1], GREY);
            replace(&mut canvas, &resized, i64::from(self.left), i64::from(self.top));
            return Ok(canvas);
        }
        let cropped = crop_imm(&resized, self.left, self.top, self.target[0], self.target[1]).to_image();
        Ok(if self.flip == Flip::AfterCrop { flip_horizontal(&cropped) } else { cropped })
    }

    /// Where the crop begins in the resized picture: top and left.
    pub(super) fn crop_top_left(&self) -> (u32, u32) {
        if self.is_smaller() { (0, 0) } else { (self.top, self.left) }
    }

    /// Where all of the picture is, if all of it is on the target.
    pub(super) fn area(&self) -> Option<Area> {
        let [width, height] = self.resized;
        let has_all = width <= self.target[0] && height <= self.target[1];
        has_all.then_some(Area { left: self.left, top: self.top, width, height })
    }

    fn is_smaller(&self) -> bool {
        self.resized[0] < self.target[0] || self.resized[1] < self.target[1]
    }
}

/// As torchvision's `RandomHorizontalFlip` decides.
fn one_in_two(generator: &mut TorchGenerator) -> Result<bool> {
    Ok(uniform(generator)? < 0.5)
}

/// A random number in [0, 1), as `torch.rand(1)`.
pub(super) fn uniform(generator: &mut TorchGenerator) -> Result<f32> {
    Ok(generator.rand(&[1], DType::F32, &Device::Cpu)?.to_vec1::<f32>()?[0])
}

/// A random number below `count`, as `torch.randint`.
pub(super) fn below(count: u32, generator: &mut TorchGenerator) -> Result<u32> {
    Ok(generator.randint(0, i64::from(count), &[1], &Device::Cpu)?.to_vec1::<i64>()?[0] as u32)
}

/// Python's `round(room / 2)`: halves to even.
fn half(room: u32) -> u32 {
    (f64::from(room) / 2.0).round_ties_even() as u32
}

/// The size at which the picture just covers `target`. For a square, that of torchvision's `Resize`: the longer side is cut off to whole pixels. Else
/// that of aspect-ratio buckets, where it is rounded.
pub(super) fn resized([width, height]: [u32; 2], target: [u32; 2]) -> Result<[u32; 2]> {
    let too_thin = || Error::Field {
        field: "picture",
        found: format!("{width}x{height}"),
        expected: "sides of at least 1 pixel, and not one thousands of times the other".to_string(),
    };
    if width == 0 || height == 0 {
        return Err(too_thin());
    }
    let longer = |short: u32, long: u32| u64::from(target[0]) * u64::from(long) / u64::from(short);
    let sides = if target[0] == target[1] {
        if width <= height {
            [u64::from(target[0]), longer(width, height)]
        } else {
            [longer(height, width), u64::from(target[0])]
        }
    } else {
        let [width, height] = [f64::from(width), f64::from(height)];
        let [target_width, target_height] = target.map(f64::from);
        let is_wider = width / height > target_width / target_height;
        let scale = if is_wider { target_height / height } else { target_width / width };
        [width, height].map(|side| (side * scale + 0.5) as u64)
    };
    // Memory ends long before.
    if sides.iter().any(|&side| side > 1 << 16) {
        return Err(too_thin());
    }
    Ok([(sides[0] as u32).max(target[0]), (sides[1] as u32).max(target[1])])
}
