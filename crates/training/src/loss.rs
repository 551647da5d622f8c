//! The loss of a training step.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};

/// What else than the plain mean of squared differences; the default is nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct LossOptions<'a> {
    /// A factor for each picture, shaped (batch): see [`loss_weights`](crate::loss_weights).
    pub weights: Option<&'a Tensor>,
    /// Factors on prediction and target before they are compared, shaped (batch, 1, height, width): see [`loss_mask`](crate::loss_mask).
    pub mask: Option<&'a Tensor>,
    /// Prior preservation (DreamBooth): the second half of the batch are pictures of the class, whose plain loss is added times this. Weights
    /// and mask may be those of the whole batch or of its first half.
    pub prior_loss_weight: Option<f64>,
}

/// The mean of squared differences between what a model predicts and what it should, in float32: a tensor without dimensions, to call `backward` on.
///
/// # Errors
/// If shapes do not fit, or a batch with prior preservation has no two halves.
pub fn loss(prediction: &Tensor, target: &Tensor, options: &LossOptions<'_>) -> Result<Tensor> {
    if prediction.dims() != target.dims() || prediction.elem_count() == 0 {
        let expected = format!("{:?}, the target's", target.dims());
        return Err(Error::Shape { what: "prediction", found: prediction.dims().to_vec(), expected });
    }
    let (prediction, target) = (prediction.to_dtype(DType::F32)?, target.to_dtype(DType::F32)?);
    let Some(prior_loss_weight) = options.prior_loss_weight else {
        return weighted_loss(&prediction, &target, options);
    };
    let batch = prediction.dims()[0];
    if !batch.is_multiple_of(2) {
        let expected = "an even number of pictures: instances, then as many of the class".to_string();
        return Err(Error::Shape { what: "batch", found: prediction.dims().to_vec(), expected });
    }
    let half = batch / 2;
    let own = |tensor: &Tensor| tensor.narrow(0, 0, half);
    let prior = |tensor: &Tensor| tensor.narrow(0, half, half);
    let prior_loss = weighted_loss(&prior(&prediction)?, &prior(&target)?, &LossOptions::default())?;
    let (weights, mask) = (first(options.weights, half)?, first(options.mask, half)?);
    let own_options = LossOptions { weights: weights.as_ref(), mask: mask.as_ref(), prior_loss_weight: None };
    let own_loss = weighted_loss(&own(&prediction)?, &own(&target)?, &own_options)?;
    Ok((own_loss + (prior_loss * prior_loss_weight)?)?)
}

/// At most `count` rows of a tensor.
fn first(tensor: Option<&Tensor>, count: usize) -> Result<Option<Tensor>> {
    tensor
        .map(|tensor| match tensor.dims().first() {
            Some(&rows) if rows > count => Ok(tensor.narrow(0, 0, count)?),
            _ => Ok(tensor.clone()),
        })
        .transpose()
}

fn weighted_loss(prediction: &Tensor, target: &Tensor, options: &LossOptions<'_>) -> Result<Tensor> {
    let difference = match options.mask {
        None => (prediction - target)?,
        Some(mask) => {
            let mask = mask.to_dtype(DType::F32)?.to_device(prediction.device())?;
            (prediction.broadcast_mul(&mask)? - target.broadcast_mul(&mask)?)?
        }
    };
    let squares = difference.sqr()?;
    let Some(weights) = options.weights else { return Ok(squares.mean_all()?) };
    let batch = squares.dims()[0];
    if weights.dims() != [batch] {
        let expected = format!("[{batch}], one for each picture");
        return Err(Error::Shape { what: "weights", found: weights.dims().to_vec(), expected });
    }
    let weights = weights.to_dtype(DType::F32)?.to_device(squares.device())?;
    Ok((squares.flatten_from(1)?.mean(1)? * weights)?.mean_all()?)
}
