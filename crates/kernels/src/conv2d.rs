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
    let (_, in_channels, kernel_height, kernel_width) = weight.dims4()?;
    if channels != in_channels {
        candle_core::bail!("conv2d: the weight is {:?}, but the input is {:?}", weight.dims(), x.dims());
    }
    if height + 2 * params.padding < kernel_height || width + 2 * params.padding < kernel_width {
        candle_core::bail!(
            "conv2d: an input of {height}x{width} with padding {} is smaller than the kernel, {kernel_height}x{kernel_width}",
            params.padding
        );
    }
    let dtype = product_dtype(x);
    let product = x.to_dtype(dtype)?.conv2d(&weight.to_dtype(dtype)?, params.padding, params.stride, 1, 1)?;
    let product = product.to_dtype(x.dtype())?;
    match bias {
        Some(bias) => product.broadcast_add(&per_channel(bias)?),
        None => Ok(product),
    }
}
