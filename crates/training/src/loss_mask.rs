//! Masks of pictures as weights of a loss.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};

/// The weights that a mask of pictures gives to latents, as cloneofsimo's lora: scaled down to `height` x `width` by nearest values, a little more
/// than zero where the mask is 0, raised to `temperature`, and 1 where they are largest in the batch. `mask` is shaped (batch, 1, picture's height, width), of numbers
/// that are not negative: from 0 to 1, or as in that lora's dataset from 0.5, for black, to 1.5.
///
/// # Errors
/// If the mask has another shape or `temperature` is negative.
pub fn loss_mask(mask: &Tensor, height: usize, width: usize, temperature: f64) -> Result<Tensor> {
    loss_mask_of_share(mask, height, width, temperature, Ok)
}

/// [`loss_mask`] of a process's share of a batch: `largest` is told the largest weight of the share, and says that of the whole batch.
///
/// # Errors
/// Those of [`loss_mask`], and when `largest` fails.
pub(crate) fn loss_mask_of_share(
    mask: &Tensor,
    height: usize,
    width: usize,
    temperature: f64,
    largest: impl FnOnce(f32) -> Result<f32>,
) -> Result<Tensor> {
    crate::parameters::check_not_negative("mask_temperature", temperature)?;
    if mask.dims().len() != 4 || mask.dims()[1] != 1 || mask.elem_count() == 0 {
        let expected = "(batch, 1, height, width)".to_string();
        return Err(Error::Shape { what: "mask", found: mask.dims().to_vec(), expected });
    }
    let small = mask.to_dtype(DType::F32)?.upsample_nearest2d(height, width)?;
    let weights = (small + 0.01)?.powf(temperature)?;
    let largest = largest(weights.max_all()?.to_scalar()?)?;
    Ok(weights.broadcast_div(&Tensor::new(largest, weights.device())?)?)
}
