//! Parameters that have a number for each feature or channel: biases, and the weights of norms.

use candle_core::{Result, Tensor};

/// Fails unless the parameter is `(features)`. candle's operations would repeat a single number, or take another shape of as many.
pub(crate) fn check_per_feature(
    operation: &str,
    name: &str,
    parameter: &Tensor,
    features: usize,
) -> Result<()> {
    if parameter.dims() != [features] {
        candle_core::bail!("{operation}: the {name} is {:?}, expected [{features}]", parameter.dims());
    }
    Ok(())
}

/// A parameter of shape `(channels)` as something that broadcasts to `(batch, channels, height, width)`.
pub(crate) fn per_channel(parameter: &Tensor) -> Result<Tensor> {
    parameter.reshape((1, parameter.elem_count(), 1, 1))
}
