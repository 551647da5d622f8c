//! Group and layer normalisation.

mod cpu;
mod moments;
#[cfg(test)]
mod tests;

use candle_core::{D, Device, Result, Tensor};

use self::cpu::{GroupNorm, Nothing};
use crate::Level;
use crate::activation::{Silu, silu};
use crate::cpu::computes;
use crate::dtype::{per_channel, sum_dtype};
use crate::elementwise::{add_per_channel, check_vectors, floats};

/// Group normalisation (Wu and He, 2018), as `torch.nn.functional.group_norm`.
///
/// `x` is `(batch, channels, ...)`, `weight` and `bias` are `(channels)`; the result has the shape and dtype of `x`. Means
/// and variances are computed in float32 where `x` is half precision.
///
/// # Errors
/// When `groups` does not divide the channels, or shapes do not fit.
pub fn group_norm(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    check_groups(x, groups)?;
    match parameters_on_cpu(x, x.dims()[1], weight, bias)? {
        Some((weight, bias)) => {
            GroupNorm { x, added: None, groups, weight, bias, eps }.compute(Level::current()?, Nothing)
        }
        None => plain_group_norm(x, groups, weight, bias, eps),
    }
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
    check_groups(x, groups)?;
    match parameters_on_cpu(x, x.dims()[1], weight, bias)? {
        Some((weight, bias)) => {
            GroupNorm { x, added: None, groups, weight, bias, eps }.compute(Level::current()?, Silu)
        }
        None => silu(&plain_group_norm(x, groups, weight, bias, eps)?),
    }
}

/// [`add_per_channel`](crate::add_per_channel()), then [`group_norm_silu`]: what a residual block does with the time embedding.
///
/// `vectors` is `(batch, channels)`.
///
/// # Errors
/// Those of both.
pub fn add_group_norm_silu(
    x: &Tensor,
    vectors: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    check_groups(x, groups)?;
    check_vectors("add_group_norm_silu", x, vectors)?;
    match parameters_on_cpu(x, x.dims()[1], weight, bias)? {
        Some((weight, bias)) if computes(&[x, vectors]) => {
            let added = Some(floats(vectors)?);
            GroupNorm { x, added, groups, weight, bias, eps }.compute(Level::current()?, Silu)
        }
        _ => group_norm_silu(&add_per_channel(x, vectors)?, groups, weight, bias, eps),
    }
}

/// Layer normalisation over the last dimension (Ba, Kiros and Hinton, 2016), as `torch.nn.functional.layer_norm`.
///
/// `x` is `(..., features)`, `weight` and `bias` are `(features)`; the result has the shape and dtype of `x`. Means and
/// variances are computed in float32 where `x` is half precision.
///
/// # Errors
/// When shapes do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let features = x.dims().last().copied().unwrap_or(0);
    if let Some((weight, bias)) = parameters_on_cpu(x, features, weight, bias)? {
        return cpu::layer_norm(Level::current()?, x, &weight, &bias, eps);
    }
    let normed = normalize_last_dim(&x.to_dtype(sum_dtype(x))?, eps)?;
    let weight = weight.to_dtype(normed.dtype())?;
    let bias = bias.to_dtype(normed.dtype())?;
    normed.broadcast_mul(&weight)?.broadcast_add(&bias)?.to_dtype(x.dtype())
}

fn check_groups(x: &Tensor, groups: usize) -> Result<()> {
    let dims = x.dims();
    if dims.len() < 2 || groups == 0 || !dims[1].is_multiple_of(groups) {
        candle_core::bail!("group_norm: {groups} groups do not divide the channels of an input {dims:?}");
    }
    Ok(())
}

/// Weight and bias, which may be of any dtype, where this crate's code computes a norm with one of each for every feature.
fn parameters_on_cpu(
    x: &Tensor,
    features: usize,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<Option<(Vec<f32>, Vec<f32>)>> {
    let fits = |tensor: &Tensor| {
        tensor.dims() == [features] && matches!(tensor.device(), Device::Cpu) && !tensor.track_op()
    };
    if computes(&[x]) && fits(weight) && fits(bias) {
        return Ok(Some((floats(weight)?, floats(bias)?)));
    }
    Ok(None)
}

fn plain_group_norm(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let dims = x.dims();
    let (batch, channels) = (dims[0], dims[1]);
    let rest: usize = dims[2..].iter().product();
    let grouped = x.to_dtype(sum_dtype(x))?.reshape((batch, groups, channels / groups * rest))?;
    let normed = normalize_last_dim(&grouped, eps)?.reshape((batch, channels, rest, 1))?;
    let weight = per_channel(&weight.to_dtype(normed.dtype())?)?;
    let bias = per_channel(&bias.to_dtype(normed.dtype())?)?;
    normed.broadcast_mul(&weight)?.broadcast_add(&bias)?.reshape(dims)?.to_dtype(x.dtype())
}

/// `(x - mean) / sqrt(variance + eps)` over the last dimension, with the variance of the whole population.
fn normalize_last_dim(x: &Tensor, eps: f64) -> Result<Tensor> {
    let centered = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
    centered.broadcast_div(&(variance + eps)?.sqrt()?)
}
