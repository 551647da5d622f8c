use candle_core::{Device, Result, Tensor};

use crate::dtype::product_dtype;

/// `x @ weight^T + bias`, as `torch.nn.functional.linear`.
///
/// `x` is `(..., in_features)`, `weight` is `(out_features, in_features)`, `bias` is `(out_features)`; the result is
/// `(..., out_features)` in the dtype of `x`.
///
/// # Errors
/// When the shapes or dtypes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_features, in_features) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    if shape.last() != Some(&in_features) {
        candle_core::bail!("linear: the weight is {:?}, but the input is {shape:?}", weight.dims());
    }
    let rows = x.elem_count() / in_features.max(1);
    let dtype = product_dtype(x);
    let flat = x.to_dtype(dtype)?.reshape((rows, in_features))?;
    // A product with one row takes another path in the matrix library, which rounds differently: a picture would then
    // depend on whether it was painted alone. Two equal rows take the path that many rows take.
    let alone = rows == 1 && matches!(x.device(), Device::Cpu);
    let flat = if alone { flat.broadcast_as((2, in_features))?.contiguous()? } else { flat };
    let product = flat.matmul(&weight.to_dtype(dtype)?.t()?)?;
    let product = if alone { product.narrow(0, 0, 1)? } else { product };
    let product = product.to_dtype(x.dtype())?;
    let result = match bias {
        Some(bias) => product.broadcast_add(bias)?,
        None => product,
    };
    shape.pop();
    shape.push(out_features);
    result.reshape(shape)
}
