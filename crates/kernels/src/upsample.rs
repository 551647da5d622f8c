#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use crate::Level;
use crate::cpu::{self, Float, Instructions, TASK, Work, by_float, fill, run_at, values};
use crate::gradient::record;

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
/// When `x` is of another rank or has no pixels, or when the result has more numbers than there is memory for.
pub fn upsample_nearest2d_to(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (batch, channels, old_height, old_width) = x.dims4()?;
    let planes = batch * channels;
    let length = planes.checked_mul(height).and_then(|rows| rows.checked_mul(width));
    let is_empty = planes == 0 || old_height == 0 || old_width == 0;
    let (Some(length), false) = (length, is_empty && length != Some(0)) else {
        candle_core::bail!("upsample_nearest2d: {:?} cannot become {height}x{width}", x.dims());
    };
    if !cpu::computes(&[x]) {
        return x.upsample_nearest2d(height, width);
    }
    let output = upsampled(&x.detach(), length, [height, width])?;
    record("upsample-nearest2d", output, &[Some(x)], move |gradient| {
        Ok(vec![Some(summed(Level::current()?, gradient, [old_height, old_width])?)])
    })
}

/// The pixels of `x`, `length` of them in pictures of another size.
fn upsampled(x: &Tensor, length: usize, [height, width]: [usize; 2]) -> Result<Tensor> {
    let (batch, channels, old_height, old_width) = x.dims4()?;
    let x = x.contiguous()?;
    by_float!(x.dtype(), T => {
        let x_values = values::<T>(&x)?;
        let values = x_values.get()?;
        let write = |output: &mut [MaybeUninit<T>]| {
            if length == 0 {
                return;
            }
            let (from_row, from_column) = (sources(old_height, height), sources(old_width, width));
            let rows_per_task = TASK.div_ceil(width);
            output.par_chunks_mut(rows_per_task * width).enumerate().for_each(|(task, output)| {
                let source = |row: usize| row / height * old_height + from_row[row % height];
                let rows = (task * rows_per_task..).map(|row| &values[source(row) * old_width..][..old_width]);
                write_rows(rows, &from_column, output);
            });
        };
        // SAFETY: the tasks are the whole output, and `write_rows` writes all of its rows.
        let output = unsafe { fill(length, write)? };
        Tensor::from_vec(output, (batch, channels, height, width), &Device::Cpu)
    })
}

/// The sums over those pixels that show one of the old ones.
fn summed(level: Level, gradient: &Tensor, [old_height, old_width]: [usize; 2]) -> Result<Tensor> {
    let (batch, channels, height, width) = gradient.dims4()?;
    let gradient = gradient.contiguous()?;
    let (to_row, to_column) = (sources(old_height, height), sources(old_width, width));
    by_float!(gradient.dtype(), T => {
        let gradient_values = values::<T>(&gradient)?;
        let values = gradient_values.get()?;
        let write = |output: &mut [MaybeUninit<T>]| {
            let planes = output.par_chunks_mut((old_height * old_width).max(1));
            planes.with_min_len(TASK.div_ceil((height * width).max(1))).enumerate().for_each(|(plane, output)| {
                let values = &values[plane * height * width..][..height * width];
                run_at(level, SumPixels { values, to_row: &to_row, to_column: &to_column, old_width, output });
            });
        };
        // SAFETY: the planes are the whole output, and `SumPixels` writes all of one.
        let output = unsafe { fill(batch * channels * old_height * old_width, write)? };
        Tensor::from_vec(output, (batch, channels, old_height, old_width), &Device::Cpu)
    })
}

/// The sums for the pixels of one plane.
struct SumPixels<'a, T> {
    values: &'a [T],
    to_row: &'a [usize],
    to_column: &'a [usize],
    old_width: usize,
    output: &'a mut [MaybeUninit<T>],
}

impl<T: Float> Work for SumPixels<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Instructions) {
        let Self { values, to_row, to_column, old_width, output } = self;
        let width = to_column.len();
        let mut sums = vec![0f32; output.len()];
        for (row, values) in to_row.iter().zip(values.chunks_exact(width.max(1))) {
            let sums = &mut sums[row * old_width..][..old_width];
            if width == 2 * old_width {
                let (pairs, _) = values.as_chunks::<2>();
                for (sum, [first, second]) in sums.iter_mut().zip(pairs) {
                    *sum += first.to_float() + second.to_float();
                }
            } else {
                for (value, column) in values.iter().zip(to_column) {
                    sums[*column] += value.to_float();
                }
            }
        }
        for (output, sum) in output.iter_mut().zip(sums) {
            output.write(T::from_float(sum));
        }
    }
}

/// For each of `new` pixels the one of `old` that it shows: in float32, as torch counts them, which is another one at some sizes than exact numbers would say.
/// Where there is none, it is the first, which nobody reads.
fn sources(old: usize, new: usize) -> Vec<usize> {
    let step = old as f32 / new as f32;
    (0..new).map(|index| ((index as f32 * step) as usize).min(old.saturating_sub(1))).collect()
}

/// Writes each row with its pixels as often as `from_column` says, and copies what it has just written where a row comes again.
fn write_rows<'a, T: Float>(
    rows: impl Iterator<Item = &'a [T]>,
    from_column: &[usize],
    output: &mut [MaybeUninit<T>],
) {
    let width = from_column.len();
    let mut last: Option<&[T]> = None;
    for (index, row) in rows.take(output.len() / width).enumerate() {
        let (written, output) = output.split_at_mut(index * width);
        let output = &mut output[..width];
        if last.is_some_and(|last| std::ptr::eq(last, row)) {
            output.copy_from_slice(&written[(index - 1) * width..]);
            continue;
        }
        for (value, column) in output.iter_mut().zip(from_column) {
            value.write(row[*column]);
        }
        last = Some(row);
    }
}
