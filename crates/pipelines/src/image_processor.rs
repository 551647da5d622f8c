//! Between a VAE's tensors and pictures (diffusers' `image_processor.py`).

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use crate::error::{Error, Result};

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
