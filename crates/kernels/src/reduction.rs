//! Sums that gradients need: over rows, and over the pixels of a channel. In float32 by pieces and in float64 over these, in one order
//! whatever the number of threads.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use crate::Level;
use crate::cpu::{Float, Instructions, LANES, TASK, Work, by_float, run_at, values};

/// So many numbers are summed in float32.
const PIECE: usize = 4096;

/// The sum of the rows of `(..., features)`, of the dtype of `x`.
pub(crate) fn sum_rows(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let features = x.dims().last().copied().unwrap_or(1);
    by_float!(x.dtype(), T => {
        let x_values = values::<T>(&x)?;
        let values = x_values.get()?;
        let level = Level::current()?;
        let mut sums = vec![0f64; features];
        // As many rows a task as make a piece, so that tasks do not depend on the number of threads.
        let rows = TASK.div_ceil(features.max(1)).max(64);
        let parts: Vec<Vec<f32>> = values
            .par_chunks((rows * features).max(1))
            .map(|values| run_at(level, SumRows { values, features }))
            .collect();
        for part in parts {
            sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += f64::from(part));
        }
        let sums: Vec<T> = sums.into_iter().map(|sum| T::from_float(sum as f32)).collect();
        Tensor::from_vec(sums, features, &Device::Cpu)
    })
}

/// The sum of each channel of each item of `(batch, channels, ...)`, `batch * channels` numbers.
pub(crate) fn sum_pixels(x: &Tensor) -> Result<Vec<f64>> {
    let x = x.contiguous()?;
    let pixels: usize = x.dims().iter().skip(2).product();
    let channels: usize = x.dims().iter().take(2).product();
    if pixels == 0 {
        return Ok(vec![0.0; channels]);
    }
    by_float!(x.dtype(), T => {
        let x_values = values::<T>(&x)?;
        let level = Level::current()?;
        let planes = x_values.get()?.par_chunks(pixels).with_min_len(TASK.div_ceil(pixels));
        Ok(planes.map(|values| run_at(level, SumOf(values))).collect())
    })
}

/// The sum of each channel of `(batch, channels, ...)` over all items, `(channels)` of the dtype of `x`.
pub(crate) fn sum_channels(x: &Tensor) -> Result<Tensor> {
    let channels = x.dims().get(1).copied().unwrap_or(1);
    let sums = sum_pixels(x)?;
    let sum = |channel: usize| sums.iter().skip(channel).step_by(channels).sum::<f64>() as f32;
    let sums: Vec<f32> = (0..channels).map(sum).collect();
    Tensor::from_vec(sums, channels, &Device::Cpu)?.to_dtype(x.dtype())
}

struct SumRows<'a, T> {
    values: &'a [T],
    features: usize,
}

impl<T: Float> Work for SumRows<'_, T> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run(self, _: impl Instructions) -> Vec<f32> {
        let mut sums = vec![0f32; self.features];
        for row in self.values.chunks_exact(self.features.max(1)) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value.to_float();
            }
        }
        sums
    }
}

/// The sum of numbers that lie beside each other.
pub(crate) struct SumOf<'a, T>(pub(crate) &'a [T]);

impl<T: Float> Work for SumOf<'_, T> {
    type Output = f64;

    #[inline(always)]
    fn run(self, instructions: impl Instructions) -> f64 {
        let mut sum = 0.0;
        for piece in self.0.chunks(PIECE) {
            let (chunks, tail) = piece.as_chunks::<LANES>();
            let mut sums = [0f32; LANES];
            for chunk in chunks {
                let chunk = T::load(chunk, instructions);
                for lane in 0..LANES {
                    sums[lane] += chunk[lane];
                }
            }
            for (lane, value) in tail.iter().enumerate() {
                sums[lane] += value.to_float();
            }
            for lane in sums {
                sum += f64::from(lane);
            }
        }
        sum
    }
}
