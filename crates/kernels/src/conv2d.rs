use candle_core::{Result, Tensor};

use crate::dtype::{per_channel, product_dtype};

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
    let (_, channels, height, width) = x.dims4()?;
    if params.stride == 0 {
        candle_core::bail!("conv2d: a stride of 0");
    }
    let (_, in_channels, kernel_height, kernel_width) = weight.dims4()?;
    if channels != in_channels {
        candle_core::bail!("conv2d: the weight is {:?}, but the input is {:?}", weight.dims(), x.dims());
    }
    let padded = |side: usize| params.padding.saturating_mul(2).saturating_add(side);
    if padded(height) < kernel_height || padded(width) < kernel_width {
        candle_core::bail!(
            "conv2d: an input of {height}x{width} with padding {} is smaller than the kernel, {kernel_height}x{kernel_width}",
            params.padding
        );
    }
    let (dtype, result_dtype) = (product_dtype(x), x.dtype());
    let (x, padding) = pad_for_backward(x.to_dtype(dtype)?, kernel_height, kernel_width, params)?;
    let product = x.conv2d(&weight.to_dtype(dtype)?, padding, params.stride, 1, 1)?;
    let product = product.to_dtype(result_dtype)?;
    match bias {
        Some(bias) => product.broadcast_add(&per_channel(bias)?),
        None => Ok(product),
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
