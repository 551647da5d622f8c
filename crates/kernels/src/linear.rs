use candle_core::{D, Result, Tensor};

use crate::dtype::product_dtype;
use crate::gradient::{record, tracks};
use crate::parameters::check_per_feature;
use crate::product::{self, PackedWeight, linear_weight_gradient};
use crate::reduction::sum_rows;

/// `x @ weight^T + bias`, as `torch.nn.functional.linear`.
///
/// `x` is `(batch, ..., in_features)`, `weight` is `(out_features, in_features)`, `bias` is `(out_features)`; the result is
/// `(batch, ..., out_features)` in the dtype of `x`.
///
/// # Errors
/// When the shapes or dtypes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_features, in_features) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    if shape.len() < 2 || shape.last() != Some(&in_features) {
        candle_core::bail!("linear: the weight is {:?}, but the input is {shape:?}", weight.dims());
    }
    if product::computes(x, weight, bias) {
        return with_plain_weight(x, weight, bias);
    }
    if let Some(bias) = bias {
        check_per_feature("linear", "bias", bias, out_features)?;
    }
    let (batch, rows) = (shape[0], shape[1..shape.len() - 1].iter().product::<usize>());
    let dtype = product_dtype(x);
    let items = x.to_dtype(dtype)?.reshape((batch, rows, in_features))?;
    let weight = weight.to_dtype(dtype)?.t()?;
    // One batch item after the other: how the matrix library rounds depends on the number of rows, and a picture must not
    // depend on what it is painted with.
    let products = (0..batch).map(|item| items.get(item)?.matmul(&weight)).collect::<Result<Vec<_>>>()?;
    let product = match &products[..] {
        [] => Tensor::zeros((batch, rows, out_features), dtype, x.device())?,
        [only] => only.clone(),
        several => Tensor::stack(several, 0)?,
    };
    shape.pop();
    shape.push(out_features);
    let product = product.to_dtype(x.dtype())?.reshape(shape)?;
    match bias {
        Some(bias) => product.broadcast_add(bias),
        None => Ok(product),
    }
}

/// By this crate's products, with a weight that may be a variable.
fn with_plain_weight(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let detached_bias = bias.map(Tensor::detach);
    let output = PackedWeight::pack(&weight.detach())?.linear(&x.detach(), detached_bias.as_ref())?;
    let (x_tracks, weight_tracks) = (x.track_op(), weight.track_op());
    let bias_tracks = tracks(bias);
    let kept_weight = x_tracks.then(|| weight.detach());
    let kept_x = weight_tracks.then(|| x.detach());
    record("linear", output, &[Some(x), Some(weight), bias], move |gradient| {
        let for_x = match &kept_weight {
            Some(weight) => {
                // Transposed as it lies in panels, on all cores; a plain copy would be made on one.
                let weight = PackedWeight::pack(weight)?;
                Some(weight.with_transposed(|weight| weight.linear(gradient, None))?)
            }
            None => None,
        };
        let for_weight = match &kept_x {
            Some(x) => Some(linear_weight_gradient(&as_rows(gradient)?, &as_rows(x)?)?),
            None => None,
        };
        Ok(vec![for_x, for_weight, bias_gradient(bias_tracks, gradient)?])
    })
}

/// What a packed weight computed from `x`, with the gradients of `x` and the bias; of the weight only its packed form is kept.
pub(crate) fn record_packed(
    output: Tensor,
    x: &Tensor,
    weight: &PackedWeight,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let kept = x.track_op().then(|| weight.clone());
    let bias_tracks = tracks(bias);
    record("linear", output, &[Some(x), bias], move |gradient| {
        let for_x = match &kept {
            Some(weight) => Some(weight.with_transposed(|weight| weight.linear(gradient, None))?),
            None => None,
        };
        Ok(vec![for_x, bias_gradient(bias_tracks, gradient)?])
    })
}

fn bias_gradient(tracks: bool, gradient: &Tensor) -> Result<Option<Tensor>> {
    if tracks { sum_rows(gradient).map(Some) } else { Ok(None) }
}

/// `(..., features)` as `(rows, features)`.
fn as_rows(x: &Tensor) -> Result<Tensor> {
    let features = x.dim(D::Minus1)?;
    x.reshape((x.elem_count() / features.max(1), features))
}
