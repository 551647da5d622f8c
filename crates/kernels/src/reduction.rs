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
    sum_rows_at(Level::current()?, x)
}

fn sum_rows_at(level: Level, x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let features = x.dims().last().copied().unwrap_or(1);
    by_float!(x.dtype(), T => {
        let x_values = values::<T>(&x)?;
        let values = x_values.get()?;
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
    sum_pixels_at(Level::current()?, x)
}

fn sum_pixels_at(level: Level, x: &Tensor) -> Result<Vec<f64>> {
    let x = x.contiguous()?;
    let pixels: usize = x.dims().iter().skip(2).product();
    let channels: usize = x.dims().iter().take(2).product();
    if pixels == 0 {
        return Ok(vec![0.0; channels]);
    }
    by_float!(x.dtype(), T => {
        let x_values = values::<T>(&x)?;
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

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::cpu::testing::{as_view, doubles, levels, numbers};

    const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
    /// Of the sum of the absolute numbers: what float32's additions may round.
    const BOUND: f64 = 1e-6;

    /// For each of `count` sums, that of the numbers whose place `of` gives to it, and that of their absolute values.
    fn plain(x: &Tensor, count: usize, of: impl Fn(usize) -> usize) -> Vec<(f64, f64)> {
        let mut sums = vec![(0f64, 0f64); count];
        for (place, value) in doubles(x).into_iter().enumerate() {
            let (sum, scale) = &mut sums[of(place)];
            *sum += value;
            *scale += value.abs();
        }
        sums
    }

    #[test]
    fn rows_at_odd_sizes() -> Result<()> {
        // The last ones are several tasks.
        for shape in
            [&[1, 1][..], &[1, 31], &[3, 17], &[2, 17, 3], &[33, 33], &[31, 1], &[700, 33], &[20_000, 1]]
        {
            for dtype in DTYPES {
                let x = as_view(&numbers(shape, 1).to_dtype(dtype)?);
                let features = shape[shape.len() - 1];
                let expected = plain(&x, features, |place| place % features);
                // Half of a unit in the last place, and of the smallest number.
                let (round, smallest) = match dtype {
                    DType::F16 => (2f64.powi(-11), 1e-7),
                    DType::BF16 => (2f64.powi(-8), 1e-7),
                    _ => (0.0, 0.0),
                };
                for level in levels() {
                    let found = sum_rows_at(level, &x)?;
                    assert_eq!((found.dims(), found.dtype()), (&[features][..], dtype));
                    for (found, (sum, scale)) in doubles(&found).into_iter().zip(&expected) {
                        let bound = BOUND * scale + round * sum.abs() * 1.01 + smallest;
                        let name = format!("{level:?}, {shape:?} of {dtype:?}");
                        assert!((found - sum).abs() <= bound, "{name}: {found}, expected {sum}");
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn pixels_at_odd_sizes() -> Result<()> {
        // The last one is several pieces a channel.
        for shape in
            [&[1, 1, 1, 1][..], &[2, 3, 17, 31], &[3, 17, 33, 1], &[1, 33, 3], &[3, 31], &[2, 3, 71, 67]]
        {
            for dtype in DTYPES {
                let x = as_view(&numbers(shape, 1).to_dtype(dtype)?);
                let (channels, pixels) = (shape[0] * shape[1], shape[2..].iter().product::<usize>());
                let expected = plain(&x, channels, |place| place / pixels);
                for level in levels() {
                    let found = sum_pixels_at(level, &x)?;
                    assert_eq!(found.len(), channels);
                    for (found, (sum, scale)) in found.into_iter().zip(&expected) {
                        let name = format!("{level:?}, {shape:?} of {dtype:?}");
                        assert!((found - sum).abs() <= BOUND * scale, "{name}: {found}, expected {sum}");
                    }
                }
            }
        }
        assert_eq!(sum_pixels(&numbers(&[2, 3, 0, 5], 1))?, [0.0; 6]);
        Ok(())
    }
}
