//! Group and layer normalisation.

mod backward;
mod cpu;
#[cfg(test)]
mod gradient_tests;
mod moments;
mod normalize;
mod read_through;
#[cfg(test)]
mod tests;

use candle_core::{D, DType, Device, Result, Shape, Tensor};

use self::cpu::{GroupNorm, Nothing};
pub(crate) use self::normalize::Normalize;
pub use self::read_through::GroupNormSilu;
use crate::Level;
use crate::activation::{Silu, silu};
use crate::cpu::computes;
use crate::dtype::sum_dtype;
use crate::elementwise::{add_per_channel, check_vectors, floats};
use crate::gradient::{record, tracks};
use crate::parameters::{check_per_feature, per_channel};

/// Group normalisation (Wu and He, 2018), as `torch.nn.functional.group_norm`.
///
/// `x` is `(batch, channels, ...)`, `weight` and `bias` are `(channels)`; the result has the shape and dtype of `x`. Means
/// and variances are computed in float32 where `x` is half precision.
///
/// # Errors
/// When `groups` does not divide the channels, or shapes do not fit.
pub fn group_norm(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    check_group_norm("group_norm", x, groups, weight, bias)?;
    if is_on_cpu(x, weight, bias) {
        return fused_group_norm(x, None, groups, [weight, bias], eps, false);
    }
    plain_group_norm(x, groups, weight, bias, eps)
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
    check_group_norm("group_norm_silu", x, groups, weight, bias)?;
    if is_on_cpu(x, weight, bias) {
        return fused_group_norm(x, None, groups, [weight, bias], eps, true);
    }
    silu(&plain_group_norm(x, groups, weight, bias, eps)?)
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
    check_group_norm("add_group_norm_silu", x, groups, weight, bias)?;
    check_vectors("add_group_norm_silu", x, vectors)?;
    if is_on_cpu(x, weight, bias) && computes(&[x, vectors]) {
        return fused_group_norm(x, Some(vectors), groups, [weight, bias], eps, true);
    }
    group_norm_silu(&add_per_channel(x, vectors)?, groups, weight, bias, eps)
}

/// Layer normalisation over the last dimension (Ba, Kiros and Hinton, 2016), as `torch.nn.functional.layer_norm`.
///
/// `x` is `(..., features)`, `weight` and `bias` are `(features)`; the result has the shape and dtype of `x`. Means and
/// variances are computed in float32 where `x` is half precision.
///
/// # Errors
/// When shapes do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let Some(&features) = x.dims().last() else {
        candle_core::bail!("layer_norm: a single number has no dimension to normalise");
    };
    check_parameters("layer_norm", features, weight, bias)?;
    if is_on_cpu(x, weight, bias) {
        return fused_layer_norm(x, weight, bias, eps);
    }
    let normed = normalize_last_dim(&x.to_dtype(sum_dtype(x))?, eps)?;
    let weight = weight.to_dtype(normed.dtype())?;
    let bias = bias.to_dtype(normed.dtype())?;
    normed.broadcast_mul(&weight)?.broadcast_add(&bias)?.to_dtype(x.dtype())
}

fn check_group_norm(
    operation: &str,
    x: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<()> {
    let dims = x.dims();
    if dims.len() < 2 || groups == 0 || !dims[1].is_multiple_of(groups) {
        candle_core::bail!("{operation}: {groups} groups do not divide the channels of an input {dims:?}");
    }
    check_parameters(operation, dims[1], weight, bias)
}

fn check_parameters(operation: &str, features: usize, weight: &Tensor, bias: &Tensor) -> Result<()> {
    check_per_feature(operation, "weight", weight, features)?;
    check_per_feature(operation, "bias", bias, features)
}

/// Whether this crate's code computes a norm of `x` with a weight and a bias, of any dtype.
fn is_on_cpu(x: &Tensor, weight: &Tensor, bias: &Tensor) -> bool {
    computes(&[x]) && [weight, bias].iter().all(|tensor| matches!(tensor.device(), Device::Cpu))
}

/// The norm of `x`, to which vectors are added before where there are any, then silu or nothing.
fn fused_group_norm(
    x: &Tensor,
    vectors: Option<&Tensor>,
    groups: usize,
    parameters: [&Tensor; 2],
    eps: f64,
    is_silu: bool,
) -> Result<Tensor> {
    let level = Level::current()?;
    let kept = x.detach();
    let added = vectors.map(floats).transpose()?;
    let [weight, bias] = parameters.map(floats);
    let (weight, bias) = (weight?, bias?);
    let norm = GroupNorm { x: &kept, added, groups, weight, bias, eps };
    let output = if is_silu { norm.compute(level, Silu)? } else { norm.compute(level, Nothing)? };
    let GroupNorm { added, weight, bias, .. } = norm;
    let shape = vectors.map(|vectors| vectors.shape().clone());
    let inputs = [Some(x), Some(parameters[0]), Some(parameters[1]), vectors];
    let (wanted, dtypes) = (inputs.map(tracks), parameters.map(Tensor::dtype));
    record("group-norm", output, &inputs, move |gradient| {
        // Copies of a number for each channel.
        let (added, weight, bias) = (added.clone(), weight.clone(), bias.clone());
        let norm = GroupNorm { x: &kept, added, groups, weight, bias, eps };
        let found = norm.gradients(level, is_silu, gradient)?;
        let vector = |values: Vec<f32>, shape: Shape, dtype: DType| {
            Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
        };
        let channels = Shape::from(found.weight.len());
        Ok(vec![
            wanted[0].then_some(found.x),
            wanted[1].then(|| vector(found.weight, channels.clone(), dtypes[0])).transpose()?,
            wanted[2].then(|| vector(found.bias, channels, dtypes[1])).transpose()?,
            match &shape {
                Some(shape) if wanted[3] => Some(vector(found.added, shape.clone(), kept.dtype())?),
                _ => None,
            },
        ])
    })
}

fn fused_layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let level = Level::current()?;
    let kept = x.detach();
    let weights = floats(weight)?;
    let output = cpu::layer_norm(level, &kept, &weights, &floats(bias)?, eps)?;
    let inputs = [Some(x), Some(weight), Some(bias)];
    let (wanted, dtypes) = (inputs.map(tracks), [weight, bias].map(Tensor::dtype));
    record("layer-norm", output, &inputs, move |gradient| {
        let wants_parameters = wanted[1] || wanted[2];
        let found = backward::layer_norm_gradients(level, &kept, &weights, eps, gradient, wants_parameters)?;
        let vector = |values: Vec<f32>, dtype: DType| {
            let features = values.len();
            Tensor::from_vec(values, features, &Device::Cpu)?.to_dtype(dtype)
        };
        Ok(vec![
            wanted[0].then_some(found.x),
            wanted[1].then(|| vector(found.weight, dtypes[0])).transpose()?,
            wanted[2].then(|| vector(found.bias, dtypes[1])).transpose()?,
        ])
    })
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
