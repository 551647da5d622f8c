//! The gradients of norms, which are computed again as they are needed: of the forward nothing is kept but its input.

use std::mem::MaybeUninit;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::cpu::{GroupNorm, Nothing};
use super::moments::{Moments, MomentsOf, PIECE};
use crate::Level;
use crate::activation::{Silu, Slope};
use crate::cpu::{
    Chunk, Float, Instructions, LANES, OnPart, Pointwise, TASK, Work, by_float, fill, load_tail, run_at,
    store, store_tail, values,
};

/// What a norm's inputs get.
pub(super) struct NormGradients {
    pub(super) x: Tensor,
    /// A number for each channel (or feature).
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
    /// A number for each channel of each item: what was added before.
    pub(super) added: Vec<f32>,
}

impl Slope for Nothing {
    #[inline(always)]
    fn slope(self, _: Chunk) -> Chunk {
        [1.0; LANES]
    }
}

impl GroupNorm<'_> {
    /// The gradients of the norm with silu after it, or with nothing.
    pub(super) fn gradients(&self, level: Level, is_silu: bool, gradient: &Tensor) -> Result<NormGradients> {
        if is_silu {
            self.gradients_with(level, Silu, gradient)
        } else {
            self.gradients_with(level, Nothing, gradient)
        }
    }

    fn gradients_with(
        &self,
        level: Level,
        activation: impl Slope,
        gradient: &Tensor,
    ) -> Result<NormGradients> {
        let (x, gradient) = (self.x.contiguous()?, gradient.contiguous()?);
        let channels = self.weight.len();
        if x.elem_count() == 0 {
            let zeros = vec![0.0; channels];
            let added = vec![0.0; x.dims()[0] * channels];
            return Ok(NormGradients { x: x.zeros_like()?, weight: zeros.clone(), bias: zeros, added });
        }
        by_float!(x.dtype(), T => {
            let (x_values, gradient_values) = (values::<T>(&x)?, values::<T>(&gradient)?);
            let (numbers, sums) = self.on_groups(level, activation, x_values.get()?, gradient_values.get()?)?;
            let total = |index: usize| {
                let of_channel = |channel: usize| {
                    sums.iter().skip(channel).step_by(channels).map(|sums| sums[index]).sum::<f64>() as f32
                };
                (0..channels).map(of_channel).collect()
            };
            Ok(NormGradients {
                x: Tensor::from_vec(numbers, x.shape(), &Device::Cpu)?,
                weight: total(1),
                bias: total(0),
                added: sums.iter().map(|sums| sums[2] as f32).collect(),
            })
        })
    }

    /// The gradient of `x`, and for each channel of each item the sums of the gradient of the norm's output, of its product with the normalised
    /// numbers, and of the gradient of `x`.
    fn on_groups<T: Float>(
        &self,
        level: Level,
        activation: impl Slope,
        x: &[T],
        gradient: &[T],
    ) -> Result<(Vec<T>, Vec<[f64; 3]>)> {
        let channels = self.weight.len();
        let length: usize = self.x.dims()[2..].iter().product();
        let in_group = channels / self.groups;
        let numbers = in_group * length;
        let mut sums = vec![[0f64; 3]; x.len() / length];
        let write = |output: &mut [MaybeUninit<T>]| {
            let groups =
                output.par_chunks_mut(numbers).zip(x.par_chunks(numbers)).zip(gradient.par_chunks(numbers));
            let groups = groups.zip(sums.par_chunks_mut(in_group)).with_min_len(TASK.div_ceil(numbers));
            groups.enumerate().for_each(|(group, (((output, x), gradient), sums))| {
                let first = group * in_group;
                let added = |channel: usize| self.added.as_ref().map_or(0.0, |added| added[first + channel]);
                let moments = x.chunks(length).enumerate().fold(Moments::default(), |all, (channel, x)| {
                    all.merge(run_at(level, MomentsOf(x)).shifted(added(channel)))
                });
                let scale = moments.inverse_deviation(self.eps);
                let normal = |channel: usize| {
                    let (weight, bias) =
                        (self.weight[(first + channel) % channels], self.bias[(first + channel) % channels]);
                    let mean = moments.mean - f64::from(added(channel));
                    let center = mean as f32;
                    let rest = ((f64::from(center) - mean) * scale) as f32;
                    Normal { center, scale: scale as f32, rest, weight, bias, activation }
                };
                let planes = || x.chunks(length).zip(gradient.chunks(length)).enumerate();
                let mut of_normal = Vec::with_capacity(in_group);
                for (channel, (x, gradient)) in planes() {
                    of_normal.push(run_at(level, ChannelSums { x, gradient, normal: normal(channel) }));
                }
                // The means over the group of the gradient of the normalised numbers, and of its product with them.
                let mean = |index: usize| {
                    let weighted = of_normal.iter().enumerate().map(|(channel, sums)| {
                        f64::from(self.weight[(first + channel) % channels]) * sums[index]
                    });
                    weighted.sum::<f64>() / numbers as f64
                };
                let (mean, mean_product) = (mean(0), mean(1));
                for ((channel, (x, gradient)), output) in planes().zip(output.chunks_mut(length)) {
                    let function = InputGradient {
                        normal: normal(channel),
                        mean: mean as f32,
                        mean_product: mean_product as f32,
                    };
                    run_at(level, OnPart { inputs: [x, gradient], output, function });
                    let [sum, product, normals] = of_normal[channel];
                    let weight = f64::from(self.weight[(first + channel) % channels]);
                    let of_x = scale * (weight * sum - length as f64 * mean - normals * mean_product);
                    sums[channel] = [sum, product, of_x];
                }
            });
        };
        // SAFETY: the groups are the whole output, and `OnPart` writes all that it is given.
        let output = unsafe { fill(x.len(), write)? };
        Ok((output, sums))
    }
}

/// A channel's `activation(normal * weight + bias)`, where `normal` is `(x - center) * scale + rest`.
#[derive(Clone, Copy)]
struct Normal<F> {
    center: f32,
    scale: f32,
    rest: f32,
    weight: f32,
    bias: f32,
    activation: F,
}

impl<F: Slope> Normal<F> {
    /// The normalised numbers, and the gradient of what the activation is given.
    #[inline(always)]
    fn apply(self, mut x: Chunk, gradient: Chunk) -> [Chunk; 2] {
        let mut output = x;
        for lane in 0..LANES {
            x[lane] = (x[lane] - self.center) * self.scale + self.rest;
            output[lane] = x[lane] * self.weight + self.bias;
        }
        let mut slope = self.activation.slope(output);
        for lane in 0..LANES {
            slope[lane] *= gradient[lane];
        }
        [x, slope]
    }
}

/// The sums over a channel of the gradient of what the activation is given, of its product with the normalised numbers, and of these.
struct ChannelSums<'a, T, F> {
    x: &'a [T],
    gradient: &'a [T],
    normal: Normal<F>,
}

impl<T: Float, F: Slope> Work for ChannelSums<'_, T, F> {
    type Output = [f64; 3];

    #[inline(always)]
    fn run(self, instructions: impl Instructions) -> [f64; 3] {
        let mut totals = [0f64; 3];
        for (x, gradient) in self.x.chunks(PIECE).zip(self.gradient.chunks(PIECE)) {
            let (x, x_tail) = x.as_chunks::<LANES>();
            let (gradient, gradient_tail) = gradient.as_chunks::<LANES>();
            let mut sums = [[0f32; LANES]; 3];
            for (x, gradient) in x.iter().zip(gradient) {
                let [x, gradient] =
                    self.normal.apply(T::load(x, instructions), T::load(gradient, instructions));
                for lane in 0..LANES {
                    sums[0][lane] += gradient[lane];
                    sums[1][lane] += gradient[lane] * x[lane];
                    sums[2][lane] += x[lane];
                }
            }
            if !x_tail.is_empty() {
                let [x, gradient] = self.normal.apply(load_tail(x_tail), load_tail(gradient_tail));
                for lane in 0..x_tail.len() {
                    sums[0][lane] += gradient[lane];
                    sums[1][lane] += gradient[lane] * x[lane];
                    sums[2][lane] += x[lane];
                }
            }
            for (total, sums) in totals.iter_mut().zip(sums) {
                for sum in sums {
                    *total += f64::from(sum);
                }
            }
        }
        totals
    }
}

#[derive(Clone, Copy)]
struct InputGradient<F> {
    normal: Normal<F>,
    mean: f32,
    mean_product: f32,
}

impl<F: Slope> Pointwise<2> for InputGradient<F> {
    #[inline(always)]
    fn apply(self, [x, gradient]: [Chunk; 2]) -> Chunk {
        let [x, mut gradient] = self.normal.apply(x, gradient);
        for lane in 0..LANES {
            let change = gradient[lane] * self.normal.weight - self.mean - x[lane] * self.mean_product;
            gradient[lane] = change * self.normal.scale;
        }
        gradient
    }
}

/// The gradients of [`layer_norm`](super::cpu::layer_norm); those of weight and bias only where they are wanted.
pub(super) fn layer_norm_gradients(
    level: Level,
    x: &Tensor,
    weight: &[f32],
    eps: f64,
    gradient: &Tensor,
    wants_parameters: bool,
) -> Result<NormGradients> {
    let (x, gradient) = (x.contiguous()?, gradient.contiguous()?);
    let width = weight.len();
    let mut found =
        NormGradients { x: x.clone(), weight: vec![0.0; width], bias: vec![0.0; width], added: Vec::new() };
    if x.elem_count() == 0 {
        found.x = x.zeros_like()?;
        return Ok(found);
    }
    by_float!(x.dtype(), T => {
        let (x_values, gradient_values) = (values::<T>(&x)?, values::<T>(&gradient)?);
        let (numbers, slopes) = (x_values.get()?, gradient_values.get()?);
        // The same tasks whatever the number of threads, so that the sums of their parts are the same.
        let in_task = TASK.div_ceil(width).max(64) * width;
        let mut parts = Vec::new();
        let write = |output: &mut [MaybeUninit<T>]| {
            let tasks = output.par_chunks_mut(in_task).zip(numbers.par_chunks(in_task)).zip(slopes.par_chunks(in_task));
            let tasks = tasks.map(|((output, x), gradient)| {
                // By themselves, as forwards.
                let moments: Vec<Moments> =
                    x.chunks_exact(width).map(|x| run_at(level, MomentsOf(x))).collect();
                let moments = &moments[..];
                run_at(level, LayerNormGradients { x, gradient, output, weight, moments, eps, wants_parameters })
            });
            parts = tasks.collect::<Vec<_>>();
        };
        // SAFETY: the tasks are the whole output, and `LayerNormGradients` writes all of its rows.
        let output = unsafe { fill(numbers.len(), write)? };
        found.x = Tensor::from_vec(output, x.shape(), &Device::Cpu)?;
        if wants_parameters {
            let total = |index: usize, feature: usize| {
                parts.iter().map(|part: &[Vec<f32>; 2]| f64::from(part[index][feature])).sum::<f64>() as f32
            };
            found.weight = (0..width).map(|feature| total(0, feature)).collect();
            found.bias = (0..width).map(|feature| total(1, feature)).collect();
        }
        Ok(found)
    })
}

struct LayerNormGradients<'a, T> {
    x: &'a [T],
    gradient: &'a [T],
    output: &'a mut [MaybeUninit<T>],
    weight: &'a [f32],
    /// Those of each row.
    moments: &'a [Moments],
    eps: f64,
    wants_parameters: bool,
}

impl<T: Float> Work for LayerNormGradients<'_, T> {
    /// The parts of the gradients of weight and bias; empty where they are not wanted.
    type Output = [Vec<f32>; 2];

    #[inline(always)]
    fn run(self, instructions: impl Instructions) -> [Vec<f32>; 2] {
        let width = self.weight.len();
        let length = if self.wants_parameters { width } else { 0 };
        let mut parameters = [vec![0f32; length], vec![0f32; length]];
        let (weights, weights_tail) = self.weight.as_chunks::<LANES>();
        let rows = self.x.chunks_exact(width).zip(self.gradient.chunks_exact(width)).zip(self.moments);
        for (((x, gradient), moments), output) in rows.zip(self.output.chunks_exact_mut(width)) {
            let scale = moments.inverse_deviation(self.eps);
            let center = moments.mean as f32;
            let rest = ((f64::from(center) - moments.mean) * scale) as f32;
            let normal =
                Normal { center, scale: scale as f32, rest, weight: 1.0, bias: 0.0, activation: Nothing };
            let (x_chunks, x_tail) = x.as_chunks::<LANES>();
            let (gradients, gradient_tail) = gradient.as_chunks::<LANES>();
            let (mut sums, mut products) = ([0f32; LANES], [0f32; LANES]);
            for ((x, gradient), weight) in x_chunks.iter().zip(gradients).zip(weights) {
                let [x, gradient] = normal.apply(T::load(x, instructions), T::load(gradient, instructions));
                for lane in 0..LANES {
                    let weighted = gradient[lane] * weight[lane];
                    sums[lane] += weighted;
                    products[lane] += weighted * x[lane];
                }
            }
            if !x_tail.is_empty() {
                let [x, gradient] = normal.apply(load_tail(x_tail), load_tail(gradient_tail));
                let weight: Chunk = load_tail(weights_tail);
                // Where there is no number, the weight is zero.
                for lane in 0..LANES {
                    let weighted = gradient[lane] * weight[lane];
                    sums[lane] += weighted;
                    products[lane] += weighted * x[lane];
                }
            }
            let (mut mean, mut mean_product) = (0f64, 0f64);
            for lane in 0..LANES {
                mean += f64::from(sums[lane]);
                mean_product += f64::from(products[lane]);
            }
            let (mean, mean_product) = ((mean / width as f64) as f32, (mean_product / width as f64) as f32);
            let (outputs, output_tail) = output.as_chunks_mut::<LANES>();
            for (((x, gradient), weight), output) in x_chunks.iter().zip(gradients).zip(weights).zip(outputs)
            {
                let [x, mut gradient] =
                    normal.apply(T::load(x, instructions), T::load(gradient, instructions));
                for lane in 0..LANES {
                    let change = gradient[lane] * weight[lane] - mean - x[lane] * mean_product;
                    gradient[lane] = change * normal.scale;
                }
                store(gradient, output, instructions);
            }
            if !x_tail.is_empty() {
                let [x, mut gradient] = normal.apply(load_tail(x_tail), load_tail(gradient_tail));
                let weight: Chunk = load_tail(weights_tail);
                for lane in 0..LANES {
                    let change = gradient[lane] * weight[lane] - mean - x[lane] * mean_product;
                    gradient[lane] = change * normal.scale;
                }
                store_tail(gradient, output_tail);
            }
            if self.wants_parameters {
                let [weight, bias] = &mut parameters;
                for (((x, gradient), weight), bias) in x.iter().zip(gradient).zip(weight).zip(bias) {
                    let normal = (x.to_float() - center) * normal.scale + rest;
                    *weight += gradient.to_float() * normal;
                    *bias += gradient.to_float();
                }
            }
        }
        parameters
    }
}
