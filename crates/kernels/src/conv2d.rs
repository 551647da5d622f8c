use candle_core::{Result, Shape, Tensor};

use crate::dtype::{per_channel, product_dtype};
use crate::product::{self, PackedWeight};

/// How a convolution moves over its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dParams {
    /// Pixels between two outputs.
    pub stride: usize,
    /// Zeros added on each of the four sides.
    pub padding: usize,
}

/// A 2D convolution, as `torch.nn.functional.conv2d` with square stride and padding.
///
/// `x` is `(batch, in_channels, height, width)`, `weight` is `(out_channels, in_channels, kernel_height, kernel_width)`,
/// `bias` is `(out_channels)`; the result is `(batch, out_channels, height', width')` in the dtype of `x`.
///
/// # Errors
/// When the shapes or dtypes do not fit.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, params: Conv2dParams) -> Result<Tensor> {
    output_size(x, weight.shape(), params)?;
    if product::computes(x, weight, bias) {
        return PackedWeight::pack(weight)?.conv2d(x, bias, params);
    }
    let (_, _, kernel_height, kernel_width) = weight.dims4()?;
    let (dtype, result_dtype) = (product_dtype(x), x.dtype());
    let (x, padding) = pad_for_backward(x.to_dtype(dtype)?, kernel_height, kernel_width, params)?;
    let product = x.conv2d(&weight.to_dtype(dtype)?, padding, params.stride, 1, 1)?;
    let product = product.to_dtype(result_dtype)?;
    match bias {
        Some(bias) => product.broadcast_add(&per_channel(bias)?),
        None => Ok(product),
    }
}

/// The height and width of the result.
///
/// # Errors
/// When the shapes do not fit each other or the parameters.
pub(crate) fn output_size(x: &Tensor, weight: &Shape, params: Conv2dParams) -> Result<(usize, usize)> {
    let (_, channels, height, width) = x.dims4()?;
    let Conv2dParams { stride, padding } = params;
    if stride == 0 {
        candle_core::bail!("conv2d: a stride of 0");
    }
    let (_, in_channels, kernel_height, kernel_width) = weight.dims4()?;
    if channels != in_channels || kernel_height == 0 || kernel_width == 0 {
        candle_core::bail!("conv2d: the weight is {:?}, but the input is {:?}", weight.dims(), x.dims());
    }
    let size = |side: usize, kernel: usize| {
        let padded = padding.checked_mul(2)?.checked_add(side)?;
        Some(padded.checked_sub(kernel)? / stride + 1)
    };
    match (size(height, kernel_height), size(width, kernel_width)) {
        (Some(height), Some(width)) => Ok((height, width)),
        _ => candle_core::bail!(
            "conv2d: an input of {height}x{width} with padding {padding} does not fit the kernel, {kernel_height}x{kernel_width}"
        ),
    }
}

/// The input, and the padding that is left to the convolution.
///
/// With a stride the last rows or columns may be used by no output. candle's backward assumes that they are as many below as
/// at the right; where they are not, the input is padded here, without those.
fn pad_for_backward(
    x: Tensor,
    kernel_height: usize,
    kernel_width: usize,
    params: Conv2dParams,
) -> Result<(Tensor, usize)> {
    let Conv2dParams { stride, padding } = params;
    let (_, _, height, width) = x.dims4()?;
    let unused = |side: usize, kernel: usize| (side + 2 * padding - kernel) % stride;
    let (below, right) = (unused(height, kernel_height), unused(width, kernel_width));
    if below == right {
        return Ok((x, padding));
    }
    let padded = x.pad_with_zeros(2, padding, padding)?.pad_with_zeros(3, padding, padding)?;
    let padded = padded.narrow(2, 0, height + 2 * padding - below)?;
    Ok((padded.narrow(3, 0, width + 2 * padding - right)?, 0))
}
