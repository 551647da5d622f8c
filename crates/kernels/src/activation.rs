use candle_core::{D, Result, Tensor};

/// `x * sigmoid(x)`, also called swish; any shape.
///
/// # Errors
/// Those of the device.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    x.silu()
}

/// The exact GELU, `x * (1 + erf(x / sqrt 2)) / 2` (Hendrycks and Gimpel, 2016); any shape.
///
/// # Errors
/// Those of the device.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    x.gelu_erf()
}

/// OpenAI CLIP's approximation of GELU, `x * sigmoid(1.702 x)`; any shape.
///
/// # Errors
/// Those of the device.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    // The same as silu(1.702 x) / 1.702, and silu's gradient stays finite where exp(-1.702 x) would not.
    silu(&x.affine(1.702, 0.0)?)?.affine(1.0 / 1.702, 0.0)
}

/// The gated GELU of a transformer's feed-forward (Shazeer, 2020): the last dimension is cut in two halves, value and gate,
/// and the result is `value * gelu(gate)`.
///
/// `x` is `(..., 2 * features)`, the result `(..., features)`.
///
/// # Errors
/// When the last dimension is odd.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if !width.is_multiple_of(2) {
        candle_core::bail!("geglu: the last dimension of {:?} is odd and has no two halves", x.dims());
    }
    let value = x.narrow(D::Minus1, 0, width / 2)?;
    let gate = x.narrow(D::Minus1, width / 2, width / 2)?;
    value.mul(&gelu(&gate.contiguous()?)?)
}
