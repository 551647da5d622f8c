//! The same numbers in another order, beside others, or several times.

use std::mem::MaybeUninit;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use crate::cpu::{self, Float, TASK, by_float, fill, values};
use crate::gradient::record;

/// A transposition takes so many rows and columns at a time: a row of float32 fills a cache line.
const TILE: usize = 16;

/// Tensors one after the other along a dimension, as `torch.cat`.
///
/// # Errors
/// When there are no tensors, or shapes or dtypes do not fit.
pub fn cat(tensors: &[&Tensor], dim: usize) -> Result<Tensor> {
    if let [only] = tensors {
        return Ok((*only).clone());
    }
    let fits = |tensor: &&Tensor| {
        let (dims, first) = (tensor.dims(), tensors[0].dims());
        dims.len() == first.len()
            && dims.iter().zip(first).enumerate().all(|(axis, (a, b))| axis == dim || a == b)
    };
    if !cpu::computes(tensors) || dim >= tensors[0].rank() || !tensors.iter().all(fits) {
        return Tensor::cat(tensors, dim);
    }
    let joined = cat_numbers(&tensors.iter().map(|tensor| tensor.detach()).collect::<Vec<_>>(), dim)?;
    let inputs: Vec<_> = tensors.iter().map(|tensor| Some(*tensor)).collect();
    let parts: Vec<_> = tensors.iter().map(|tensor| (tensor.dims()[dim], tensor.track_op())).collect();
    record("cat", joined, &inputs, move |gradient| {
        let mut start = 0;
        let mut next = |(length, tracks): &(usize, bool)| {
            let part = if *tracks { Some(gradient.narrow(dim, start, *length)?) } else { None };
            start += length;
            Ok(part)
        };
        parts.iter().map(&mut next).collect()
    })
}

/// [`cat`] of tensors that fit, several of them.
fn cat_numbers(tensors: &[Tensor], dim: usize) -> Result<Tensor> {
    let first = tensors[0].dims();
    let (outer, inner) = (first[..dim].iter().product::<usize>(), first[dim + 1..].iter().product::<usize>());
    let mut shape = first.to_vec();
    shape[dim] = tensors.iter().map(|tensor| tensor.dims()[dim]).sum();
    // Rows so short that cutting them would take longer than copying.
    if inner * shape[dim] < 256 {
        return Tensor::cat(tensors, dim);
    }
    let tensors = tensors.iter().map(|tensor| tensor.contiguous()).collect::<Result<Vec<_>>>()?;
    by_float!(tensors[0].dtype(), T => {
        let values = tensors.iter().map(values::<T>).collect::<Result<Vec<_>>>()?;
        let values = values.iter().map(|values| values.get()).collect::<Result<Vec<_>>>()?;
        let lengths: Vec<usize> = tensors.iter().map(|tensor| tensor.dims()[dim] * inner).collect();
        let write = |mut output: &mut [MaybeUninit<T>]| {
            let mut copies = Vec::new();
            for row in 0..outer {
                for (values, length) in values.iter().zip(&lengths) {
                    let source = &values[row * length..(row + 1) * length];
                    let (target, rest) = std::mem::take(&mut output).split_at_mut(*length);
                    output = rest;
                    copies.extend(target.chunks_mut(TASK).zip(source.chunks(TASK)));
                }
            }
            copies.into_par_iter().for_each(|(target, source)| {
                target.write_copy_of_slice(source);
            });
        };
        // SAFETY: the copies are as long as the output together: each row of it has one of each tensor.
        let output = unsafe { fill(outer * inner * shape[dim], write)? };
        Tensor::from_vec(output, shape, &Device::Cpu)
    })
}

/// A picture's pixels as tokens: `(batch, channels, height, width)` to `(batch, height * width, channels)`.
///
/// # Errors
/// When `x` is of another rank.
pub fn pixels_to_tokens(x: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    if !cpu::computes(&[x]) {
        return x.flatten_from(2)?.transpose(1, 2)?.contiguous();
    }
    let tokens = transpose(&x.detach(), [batch, channels, height * width])?;
    record("pixels-to-tokens", tokens, &[Some(x)], move |gradient| {
        let pixels = transpose(gradient, [batch, height * width, channels])?;
        Ok(vec![Some(pixels.reshape((batch, channels, height, width))?)])
    })
}

/// Tokens as a picture's pixels: `(batch, height * width, channels)` to `(batch, channels, height, width)`.
///
/// # Errors
/// When `x` is of another rank or has another number of tokens.
pub fn tokens_to_pixels(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (batch, tokens, channels) = x.dims3()?;
    if height.checked_mul(width) != Some(tokens) {
        candle_core::bail!("tokens_to_pixels: {:?} has not the tokens of {height}x{width} pixels", x.dims());
    }
    if !cpu::computes(&[x]) {
        return x.transpose(1, 2)?.contiguous()?.reshape((batch, channels, height, width));
    }
    let pixels =
        transpose(&x.detach(), [batch, tokens, channels])?.reshape((batch, channels, height, width))?;
    record("tokens-to-pixels", pixels, &[Some(x)], move |gradient| {
        Ok(vec![Some(transpose(gradient, [batch, channels, tokens])?)])
    })
}

/// `(batch, rows, columns)` to `(batch, columns, rows)`.
fn transpose(x: &Tensor, [batch, rows, columns]: [usize; 3]) -> Result<Tensor> {
    let x = x.contiguous()?;
    by_float!(x.dtype(), T => {
        let x_values = values::<T>(&x)?;
        let values = x_values.get()?;
        let write = |output: &mut [MaybeUninit<T>]| {
            if rows == 0 || columns == 0 {
                return;
            }
            let items = output.par_chunks_mut(rows * columns).zip(values.par_chunks(rows * columns));
            items.for_each(|(output, values)| {
                let strips = output.par_chunks_mut(TILE * rows).enumerate();
                strips.with_min_len((TASK / (TILE * rows)).max(1)).for_each(|(strip, output)| {
                    transpose_strip(values, columns, strip * TILE, output, rows);
                });
            });
        };
        // SAFETY: the strips are the whole output, and `transpose_strip` writes all of one.
        let output = unsafe { fill(values.len(), write)? };
        Tensor::from_vec(output, (batch, columns, rows), &Device::Cpu)
    })
}

/// Writes up to [`TILE`] columns of a matrix, from `start` on, as rows.
fn transpose_strip<T: Float>(
    values: &[T],
    columns: usize,
    start: usize,
    output: &mut [MaybeUninit<T>],
    rows: usize,
) {
    let width = output.len() / rows;
    for row in (0..rows).step_by(TILE) {
        let height = TILE.min(rows - row);
        if width < TILE || height < TILE {
            for column in 0..width {
                for row in row..row + height {
                    output[column * rows + row].write(values[row * columns + start + column]);
                }
            }
            continue;
        }
        let mut tile = [[T::zero(); TILE]; TILE];
        for (index, tile) in tile.iter_mut().enumerate() {
            tile.copy_from_slice(&values[(row + index) * columns + start..][..TILE]);
        }
        for column in 0..TILE {
            let line = tile.map(|tile| tile[column]);
            output[column * rows + row..][..TILE].write_copy_of_slice(&line);
        }
    }
}
