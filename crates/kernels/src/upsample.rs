use candle_core::{Result, Tensor};

/// Nearest-neighbour upsampling by two, as `torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")`.
///
/// `x` is `(batch, channels, height, width)`, the result `(batch, channels, 2 * height, 2 * width)`.
///
/// # Errors
/// When `x` is of another rank.
pub fn upsample_nearest2d(x: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    upsample_nearest2d_to(x, height * 2, width * 2)
}

/// Nearest-neighbour upsampling to a given size, as `torch.nn.functional.interpolate(x, size=(height, width), mode="nearest")`.
///
/// `x` is `(batch, channels, any, any)`, the result `(batch, channels, height, width)`.
///
/// # Errors
/// When `x` is of another rank.
pub fn upsample_nearest2d_to(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    x.upsample_nearest2d(height, width)
}
