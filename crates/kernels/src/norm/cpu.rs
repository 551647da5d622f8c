//! Norms that read and write their numbers once, as far as a group fits into the caches.

use std::mem::MaybeUninit;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::moments::{Moments, MomentsOf};
use super::normalize::Normalize;
use crate::Level;
use crate::cpu::{
    Chunk, Float, Instructions, LANES, OnPart, Pointwise, TASK, Work, by_float, fill, load_tail, run_at,
    store, store_tail, values,
};

/// What a group norm is asked for; `x` is `(batch, channels, ...)`.
pub(super) struct GroupNorm<'a> {
    pub(super) x: &'a Tensor,
    /// `(batch, channels)` numbers to add before.
    pub(super) added: Option<Vec<f32>>,
    pub(super) groups: usize,
    /// One number for each channel.
    pub(super) weight: Vec<f32>,
    /// One number for each channel.
    pub(super) bias: Vec<f32>,
    pub(super) eps: f64,
}

impl GroupNorm<'_> {
    /// The norm, then `activation`.
    pub(super) fn compute(&self, level: Level, activation: impl Pointwise<1>) -> Result<Tensor> {
        let x = self.x.contiguous()?;
        if x.elem_count() == 0 {
            return Ok(x);
        }
        by_float!(x.dtype(), T => {
            let x_values = values::<T>(&x)?;
            let output = self.on(level, x_values.get()?, activation)?;
            Tensor::from_vec(output, x.shape(), &Device::Cpu)
        })
    }

    /// What the norm does with each channel of each picture, for something that reads the numbers itself.
    pub(super) fn channels<F: Pointwise<1>>(&self, level: Level, activation: F) -> Result<Vec<Normalize<F>>> {
        let x = self.x.contiguous()?;
        if x.elem_count() == 0 {
            return Ok(Vec::new());
        }
        by_float!(x.dtype(), T => {
            let x_values = values::<T>(&x)?;
            let moments = self.moments(level, x_values.get()?);
            let channels = self.groups_of_channels(&moments);
            Ok(channels.map(|(channel, moments)| self.channel(channel, moments, activation)).collect())
        })
    }

    /// What is added to the numbers of a channel of a picture.
    fn added(&self, channel: usize) -> f32 {
        self.added.as_ref().map_or(0.0, |added| added[channel])
    }

    /// What the norm does with a channel of a picture, whose group has these moments.
    fn channel<F>(&self, channel: usize, moments: Moments, activation: F) -> Normalize<F> {
        let feature = channel % self.weight.len();
        let scale = moments.inverse_deviation(self.eps) * f64::from(self.weight[feature]);
        let mean = moments.mean - f64::from(self.added(channel));
        let center = mean as f32;
        // What rounding the mean took from it.
        let shift = f64::from(self.bias[feature]) - (mean - f64::from(center)) * scale;
        Normalize { center, scale: scale as f32, shift: shift as f32, activation }
    }

    /// Numbers of a channel.
    fn length(&self) -> usize {
        self.x.dims()[2..].iter().product()
    }

    /// Those of each group of each picture.
    fn moments<T: Float>(&self, level: Level, values: &[T]) -> Vec<Moments> {
        let length = self.length();
        // Channel by channel, whoever sums them: so the bits are the same.
        let moments: Vec<Moments> = values
            .par_chunks(length)
            .with_min_len(TASK.div_ceil(length))
            .enumerate()
            .map(|(channel, x)| self.channel_moments(level, channel, x))
            .collect();
        let merge = |group: &[Moments]| group.iter().fold(Moments::default(), |all, one| all.merge(*one));
        moments.chunks(self.weight.len() / self.groups).map(merge).collect()
    }

    fn channel_moments<T: Float>(&self, level: Level, channel: usize, x: &[T]) -> Moments {
        run_at(level, MomentsOf(x)).shifted(self.added(channel))
    }

    /// The channels of all pictures, with the moments of their groups.
    fn groups_of_channels<'m>(
        &self,
        moments: &'m [Moments],
    ) -> impl Iterator<Item = (usize, Moments)> + use<'m> {
        let in_group = self.weight.len() / self.groups;
        (0..moments.len() * in_group).map(move |channel| (channel, moments[channel / in_group]))
    }

    fn on<T: Float>(&self, level: Level, values: &[T], activation: impl Pointwise<1>) -> Result<Vec<T>> {
        let length = self.length();
        let in_group = self.weight.len() / self.groups;
        let write_channel = |channel: usize, moments: Moments, x: &[T], output: &mut [MaybeUninit<T>]| {
            let function = self.channel(channel, moments, activation);
            run_at(level, OnPart { inputs: [x], output, function });
        };
        let group_numbers = in_group * length;
        let write = |output: &mut [MaybeUninit<T>]| {
            if values.len() / group_numbers >= 2 * rayon::current_num_threads() {
                // A group at a time: what was read for its moments is still in a cache when it is written.
                let groups = output.par_chunks_mut(group_numbers).zip(values.par_chunks(group_numbers));
                groups.with_min_len(TASK.div_ceil(group_numbers)).enumerate().for_each(
                    |(group, (output, x))| {
                        let numbered = || (group * in_group..).zip(x.chunks(length));
                        let moments = numbered().fold(Moments::default(), |all, (channel, x)| {
                            all.merge(self.channel_moments(level, channel, x))
                        });
                        for ((channel, x), output) in numbered().zip(output.chunks_mut(length)) {
                            write_channel(channel, moments, x, output);
                        }
                    },
                );
                return;
            }
            let moments = self.moments(level, values);
            let channels = output.par_chunks_mut(length).zip(values.par_chunks(length));
            channels.with_min_len(TASK.div_ceil(length)).enumerate().for_each(|(channel, (output, x))| {
                write_channel(channel, moments[channel / in_group], x, output);
            });
        };
        // SAFETY: groups, and channels, are the whole output; `OnPart` writes all that it is given.
        unsafe { fill(values.len(), write) }
    }
}

/// Normalises the last dimension, as many numbers as there are weights and biases.
pub(super) fn layer_norm(level: Level, x: &Tensor, weight: &[f32], bias: &[f32], eps: f64) -> Result<Tensor> {
    let x = x.contiguous()?;
    let width = weight.len();
    if x.elem_count() == 0 {
        return Ok(x);
    }
    by_float!(x.dtype(), T => {
        let x_values = values::<T>(&x)?;
        let values = x_values.get()?;
        let write = |output: &mut [MaybeUninit<T>]| {
            let rows_of_task = TASK.div_ceil(width) * width;
            let tasks = output.par_chunks_mut(rows_of_task).zip(values.par_chunks(rows_of_task));
            tasks.for_each(|(output, x)| {
                for (x, output) in x.chunks_exact(width).zip(output.chunks_exact_mut(width)) {
                    // By itself: inlined into what follows, the compiler gathers the numbers of many chunks one by one.
                    let moments = run_at(level, MomentsOf(x));
                    run_at(level, LayerNormRow { x, output, weight, bias, moments, eps });
                }
            });
        };
        // SAFETY: the tasks are the whole output in whole rows, and `LayerNormRow` writes all of its row.
        let output = unsafe { fill(values.len(), write)? };
        Tensor::from_vec(output, x.shape(), &Device::Cpu)
    })
}

struct LayerNormRow<'a, T> {
    x: &'a [T],
    output: &'a mut [MaybeUninit<T>],
    weight: &'a [f32],
    bias: &'a [f32],
    moments: Moments,
    eps: f64,
}

impl<T: Float> Work for LayerNormRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self, instructions: impl Instructions) {
        let Self { x, output, weight, bias, moments, eps } = self;
        let center = moments.mean as f32;
        let scale = moments.inverse_deviation(eps);
        let shift = (f64::from(center) - moments.mean) * scale;
        let normalize = Normalize { center, scale: scale as f32, shift: shift as f32, activation: Nothing };
        let (weights, weights_tail) = weight.as_chunks::<LANES>();
        let (biases, biases_tail) = bias.as_chunks::<LANES>();
        let (chunks, tail) = x.as_chunks::<LANES>();
        let (output, output_tail) = output.as_chunks_mut::<LANES>();
        for (((x, output), weight), bias) in chunks.iter().zip(output).zip(weights).zip(biases) {
            let normed = normalize.apply([T::load(x, instructions)]);
            store(weighted(normed, *weight, *bias), output, instructions);
        }
        if !tail.is_empty() {
            let normed = normalize.apply([load_tail(tail)]);
            store_tail(weighted(normed, load_tail(weights_tail), load_tail(biases_tail)), output_tail);
        }
    }
}

#[inline(always)]
fn weighted(mut chunk: Chunk, weight: Chunk, bias: Chunk) -> Chunk {
    for lane in 0..LANES {
        chunk[lane] = chunk[lane] * weight[lane] + bias[lane];
    }
    chunk
}

/// No activation.
#[derive(Clone, Copy)]
pub(super) struct Nothing;

impl Pointwise<1> for Nothing {
    #[inline(always)]
    fn apply(self, [x]: [Chunk; 1]) -> Chunk {
        x
    }
}
