use candle_core::{D, Result, Tensor};

use crate::activation::silu;
use crate::dtype::{per_channel, sum_dtype};

/// Group normalisation (Wu and He, 2018), as `torch.nn.functional.group_norm`.
///
/// `x` is `(batch, channels, ...)`, `weight` and `bias` are `(channels)`; the result has the shape and dtype of `x`. Means
/// and variances are computed in float32 where `x` is half precision.
///
/// # Errors
/// When `groups` does not divide the channels, or shapes do not fit.
pub fn group_norm(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let dims = x.dims();
    if dims.len() < 2 || groups == 0 || !dims[1].is_multiple_of(groups) {
        candle_core::bail!("group_norm: {groups} groups do not divide the channels of an input {dims:?}");
    }
    let (batch, channels) = (dims[0], dims[1]);
    let rest: usize = dims[2..].iter().product();
    let grouped = x.to_dtype(sum_dtype(x))?.reshape((batch, groups, channels / groups * rest))?;
    let normed = normalize_last_dim(&grouped, eps)?.reshape((batch, channels, rest, 1))?;
    let weight = per_channel(&weight.to_dtype(normed.dtype())?)?;
    let bias = per_channel(&bias.to_dtype(normed.dtype())?)?;
    normed.broadcast_mul(&weight)?.broadcast_add(&bias)?.reshape(dims)?.to_dtype(x.dtype())
}

/// [`group_norm`], then [`silu`]: the pair with which nearly every convolution of these models begins.
///
/// # Errors
/// Those of [`group_norm`].
pub fn group_norm_silu(
    x: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    silu(&group_norm(x, groups, weight, bias, eps)?)
}

/// Layer normalisation over the last dimension (Ba, Kiros and Hinton, 2016), as `torch.nn.functional.layer_norm`.
///
/// `x` is `(..., features)`, `weight` and `bias` are `(features)`; the result has the shape and dtype of `x`. Means and
/// variances are computed in float32 where `x` is half precision.
///
/// # Errors
/// When shapes do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let normed = normalize_last_dim(&x.to_dtype(sum_dtype(x))?, eps)?;
    let weight = weight.to_dtype(normed.dtype())?;
    let bias = bias.to_dtype(normed.dtype())?;
    normed.broadcast_mul(&weight)?.broadcast_add(&bias)?.to_dtype(x.dtype())
}

/// `(x - mean) / sqrt(variance + eps)` over the last dimension, with the variance of the whole population.
fn normalize_last_dim(x: &Tensor, eps: f64) -> Result<Tensor> {
    let centered = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
    centered.broadcast_div(&(variance + eps)?.sqrt()?)
}
