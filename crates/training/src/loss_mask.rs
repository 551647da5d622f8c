//! Masks of pictures as weights of a loss.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};

/// The weights that a mask of pictures gives to latents, as cloneofsimo's lora: scaled down to `height` x `width` by nearest values, a little more
/// than zero where the mask is black, raised to `temperature`, and 1 where they are largest (in the batch; in this process's share of it, where several share one). `mask` is shaped (batch, 1, picture's height, width),
/// from 0 to 1.
///
/// # Errors
/// If the mask has another shape or `temperature` is negative.
pub fn loss_mask(mask: &Tensor, height: usize, width: usize, temperature: f64) -> Result<Tensor> {
    crate::parameters::check_not_negative("mask_temperature", temperature)?;
    if mask.dims().len() != 4 || mask.dims()[1] != 1 || mask.elem_count() == 0 {
        let expected = "(batch, 1, height, width)".to_string();
        return Err(Error::Shape { what: "mask", found: mask.dims().to_vec(), expected });
    }
    let small = mask.to_dtype(DType::F32)?.upsample_nearest2d(height, width)?;
    let weights = (small + 0.01)?.powf(temperature)?;
    Ok(weights.broadcast_div(&weights.max_all()?)?)
}
