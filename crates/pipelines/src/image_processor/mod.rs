//! Between a VAE's tensors and pictures (diffusers' `image_processor.py`).

mod blur;
mod canny;
mod clip;
mod region;
mod resample;
#[cfg(test)]
mod tests;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use image::{DynamicImage, GrayImage, ImageBuffer, ImageDecoder, ImageReader, Pixel, RgbImage};

pub use blur::blur;
pub use canny::canny;
pub use clip::ClipImageProcessor;
pub(crate) use region::resize_and_fill;
pub use region::{Region, overlay};
pub use resample::Filter;

use crate::error::{Error, Result, argument};

/// The picture in a file (PNG, JPEG or WebP, told by its content), as one reads it to paint from: turned as its EXIF orientation says, and in
/// red, green and blue of 8 bits. Grey becomes all three, 16 bits are rounded to 8, and transparency is left out, as diffusers' `load_image`
/// leaves it out.
///
/// # Errors
/// When the file cannot be read, or is no such picture.
pub fn load_picture(path: &Path) -> Result<RgbImage> {
    Ok(load(path)?.into_rgb8())
}

/// A mask in a file, read as a picture is ([`load_picture`]) and made grey as Pillow does it: white is what is repainted.
///
/// # Errors
/// Those of [`load_picture`].
pub fn load_mask(path: &Path) -> Result<GrayImage> {
    Ok(grey(&load_picture(path)?))
}

/// The brightness of each pixel as Pillow has it.
fn grey(picture: &RgbImage) -> GrayImage {
    let (width, height) = picture.dimensions();
    GrayImage::from_fn(width, height, |x, y| {
        let [red, green, blue] = picture.get_pixel(x, y).0.map(u32::from);
        image::Luma([((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16) as u8])
    })
}

fn load(path: &Path) -> Result<DynamicImage> {
    let fail = |problem| Err(Error::Picture { file: path.display().to_string(), problem });
    let read = || -> image::ImageResult<DynamicImage> {
        let mut decoder = ImageReader::open(path)?.with_guessed_format()?.into_decoder()?;
        let orientation = decoder.orientation()?;
        let mut picture = DynamicImage::from_decoder(decoder)?;
        picture.apply_orientation(orientation);
        Ok(picture)
    };
    match read() {
        Ok(picture) => Ok(picture),
        Err(image::ImageError::IoError(error)) => fail(format!("cannot be read: {error}")),
        Err(image::ImageError::Unsupported(_)) => {
            fail("is no PNG, JPEG or WebP picture; convert it to one".into())
        }
        Err(error) => fail(format!("is no PNG, JPEG or WebP picture that can be read: {error}")),
    }
}

/// A picture of `width` by `height` pixels, resized exactly as Pillow's Lanczos filter does it, which diffusers resizes with.
///
/// # Errors
/// When a side is 0.
pub fn resize(picture: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    resize_with(Filter::Lanczos, picture, width, height)
}

/// A picture of `width` by `height` pixels, resized exactly as Pillow does it with this filter.
///
/// # Errors
/// When a side is 0.
pub fn resize_with(filter: Filter, picture: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    resized(filter, picture, width, height)
}

pub(crate) fn resized<P: Pixel<Subpixel = u8> + 'static>(
    filter: Filter,
    picture: &ImageBuffer<P, Vec<u8>>,
    width: u32,
    height: u32,
) -> Result<ImageBuffer<P, Vec<u8>>> {
    let (old_width, old_height) = picture.dimensions();
    for (name, side) in [("picture", old_width.min(old_height)), ("width, height", width.min(height))] {
        if side == 0 {
            return argument(name, "is 0 pixels wide or high");
        }
    }
    let size = |width: u32, height: u32| [width as usize, height as usize];
    let (old_size, new_size) = (size(old_width, old_height), size(width, height));
    let channels = usize::from(P::CHANNEL_COUNT);
    let pixels = resample::resize(picture.as_raw(), channels, old_size, new_size, filter);
    match ImageBuffer::from_raw(width, height, pixels) {
        Some(resized) => Ok(resized),
        None => argument("width, height", format!("are {width}x{height}, too large for a picture")),
    }
}

/// Pictures of one size as a tensor `(batch, 3, height, width)` of float32 with values from 0 to 1, on the CPU.
///
/// # Errors
/// When there are none, or their sizes differ.
pub fn from_pictures(pictures: &[RgbImage]) -> Result<Tensor> {
    let Some(first) = pictures.first() else { return argument("pictures", "are missing") };
    let (width, height) = first.dimensions();
    if let Some(other) = pictures.iter().find(|picture| picture.dimensions() != (width, height)) {
        let (other_width, other_height) = other.dimensions();
        let problem = format!("are {width}x{height} and {other_width}x{other_height}, expected one size");
        return argument("pictures", problem);
    }
    let shape = (pictures.len(), height as usize, width as usize, 3);
    let bytes: Vec<u8> = pictures.iter().flat_map(|picture| picture.as_raw()).copied().collect();
    let values: Vec<f32> = bytes.into_iter().map(|byte| f32::from(byte) / 255.0).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.permute((0, 3, 1, 2))?.contiguous()?)
}

/// Masks of one size as a tensor `(batch, 1, height, width)` of float32 on the CPU: 1 where they are at least half white, else 0.
///
/// # Errors
/// When there are none, or their sizes differ.
pub fn from_masks(masks: &[GrayImage]) -> Result<Tensor> {
    let Some(first) = masks.first() else { return argument("masks", "are missing") };
    let (width, height) = first.dimensions();
    if let Some(other) = masks.iter().find(|mask| mask.dimensions() != (width, height)) {
        let (other_width, other_height) = other.dimensions();
        let problem = format!("are {width}x{height} and {other_width}x{other_height}, expected one size");
        return argument("masks", problem);
    }
    let marks = |byte: &u8| if *byte >= 128 { 1f32 } else { 0.0 };
    let values: Vec<f32> = masks.iter().flat_map(|mask| mask.as_raw()).map(marks).collect();
    Ok(Tensor::from_vec(values, (masks.len(), 1, height as usize, width as usize), &Device::Cpu)?)
}

/// From a picture's 0 to 1 to the -1 to 1 that a VAE encodes; any shape and dtype.
///
/// # Errors
/// Those of the device.
pub fn normalize(image: &Tensor) -> Result<Tensor> {
    Ok(image.affine(2.0, -1.0)?)
}

/// From the VAE's -1 to 1 to a picture's 0 to 1, cut to that range; any shape and dtype.
///
/// # Errors
/// Those of the device.
pub fn denormalize(image: &Tensor) -> Result<Tensor> {
    Ok(image.affine(0.5, 0.5)?.clamp(0.0, 1.0)?)
}

/// Pictures of a tensor `(batch, 3, height, width)` with values from 0 to 1, rounded to the nearest of 256 levels (half to even,
/// as numpy does it).
///
/// # Errors
/// When the tensor has another rank or another number of channels.
pub fn to_pictures(images: &Tensor) -> Result<Vec<RgbImage>> {
    let (batch, channels, height, width) = images.dims4()?;
    if channels != 3 {
        let problem = format!("has {channels} channels, expected 3 (red, green, blue)");
        return Err(Error::Argument { argument: "images", problem });
    }
    let images = images.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.permute((0, 2, 3, 1))?;
    let picture = |i: usize| -> Result<RgbImage> {
        let values: Vec<f32> = images.get(i)?.flatten_all()?.to_vec1()?;
        let bytes = values.iter().map(|value| (value * 255.0).round_ties_even() as u8).collect();
        RgbImage::from_raw(width as u32, height as u32, bytes).ok_or_else(|| Error::Argument {
            argument: "images",
            problem: format!("are {width}x{height}, too large for a picture"),
        })
    };
    (0..batch).map(picture).collect()
}
