use candle_core::{Result, Tensor};

use crate::dtype::product_dtype;
use crate::product::{self, PackedWeight};

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
        return PackedWeight::pack(weight)?.linear(x, bias);
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
