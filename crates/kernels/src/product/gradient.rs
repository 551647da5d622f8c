//! The gradients of weights that train, as products of the gradient of the output with the input.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};
use half::{bf16, f16};

use super::level::Level;
use super::microkernel::{MAX_COLUMNS, Microkernel};
use super::multiply::{Activations, After, Factor, multiply};
use super::packed::Side;
use super::panels::{DEPTH, Element, Pair, Source, transpose_rows};
use super::rows::read_row;
use super::weight_panels::{Stored, WeightPanels, depth_blocks};
use super::{to_tensor, with_values};
use crate::Conv2dParams;
use crate::cpu::{Float, fill};

/// `gradient^T x`: of `(rows, out_features)` and `(rows, in_features)`, `(out_features, in_features)`.
pub(crate) fn linear_weight_gradient(gradient: &Tensor, x: &Tensor) -> Result<Tensor> {
    linear_weight_gradient_at(Level::current()?, gradient, x)
}

pub(super) fn linear_weight_gradient_at(level: Level, gradient: &Tensor, x: &Tensor) -> Result<Tensor> {
    let kernel = Microkernel::new(level);
    match (x.dtype(), Microkernel::of_pairs(level)) {
        (DType::BF16, Some(pairs)) => linear_by::<bf16, Pair>(&pairs, gradient, x),
        (DType::BF16, None) => linear_by::<bf16, f32>(&kernel, gradient, x),
        (DType::F16, _) => linear_by::<f16, f32>(&kernel, gradient, x),
        _ => linear_by::<f32, f32>(&kernel, gradient, x),
    }
}

fn linear_by<S: Float + Source<E>, E: Source<E> + Stored<E>>(
    kernel: &Microkernel<E>,
    gradient: &Tensor,
    x: &Tensor,
) -> Result<Tensor> {
    let (rows, out_features) = gradient.dims2()?;
    let (_, in_features) = x.dims2()?;
    // The narrower one is the factor that is packed once.
    let is_swapped = in_features < out_features;
    let (narrow, wide) = if is_swapped { (x, gradient) } else { (gradient, x) };
    let (features, items) = (out_features.min(in_features), out_features.max(in_features));
    with_values(narrow, |narrow: &[S]| {
        let panels = WeightPanels::pack_columns(narrow, features, rows, kernel.left_width);
        with_values(wide, |wide: &[S]| {
            let columns = Columns { values: wide, items, features, depth: rows, is_swapped };
            let factor = Factor { kernel, side: Side::Left, panels: &panels, bias: None };
            let write = |output: &mut [_]| multiply(&factor, &columns, After::Nothing, output);
            // SAFETY: a product writes all of its output.
            let output: Vec<S> = unsafe { fill(out_features * in_features, write)? };
            Ok(to_tensor(output, &[out_features, in_features]))
        })
    })
}

/// The columns of a matrix `(depth, items)`; the output is `(features, items)`, or `(items, features)` where it is swapped.
struct Columns<'a, S> {
    values: &'a [S],
    items: usize,
    features: usize,
    depth: usize,
    is_swapped: bool,
}

impl<S: Source<E>, E: Element> Activations<E> for Columns<'_, S> {
    type Number = S;

    fn items(&self) -> usize {
        self.items
    }

    fn pack(&self, items: Range<usize>, steps: Range<usize>, width: usize, panel: &mut [E]) {
        let mut rows = [[S::default(); MAX_COLUMNS]; 2];
        for (step, panel) in steps.zip(panel.chunks_exact_mut(width)) {
            for (index, row) in rows.iter_mut().enumerate().take(S::PER_STEP) {
                let depth = step * S::PER_STEP + index;
                match depth < self.depth {
                    true => {
                        row[..items.len()].copy_from_slice(&self.values[depth * self.items..][items.clone()])
                    }
                    // The second half of the last step.
                    false => row[..items.len()].fill(S::default()),
                }
            }
            S::join(&rows[0][..width], &rows[1][..width], panel);
        }
    }

    fn place(&self, feature: usize, item: usize) -> usize {
        if self.is_swapped { item * self.features + feature } else { feature * self.items + item }
    }

    fn adjoin(&self, items: &Range<usize>) -> bool {
        !self.is_swapped || items.len() == 1
    }
}

/// The gradient of a convolution's weight: of that of its output, `(batch, out_channels, height', width')`, and its input, `(batch,
/// in_channels, height, width)`, `(out_channels, in_channels, kernel_height, kernel_width)`.
pub(crate) fn conv2d_weight_gradient(
    gradient: &Tensor,
    x: &Tensor,
    kernel_size: [usize; 2],
    params: Conv2dParams,
) -> Result<Tensor> {
    conv2d_weight_gradient_at(Level::current()?, gradient, x, kernel_size, params)
}

pub(super) fn conv2d_weight_gradient_at(
    level: Level,
    gradient: &Tensor,
    x: &Tensor,
    kernel_size: [usize; 2],
    params: Conv2dParams,
) -> Result<Tensor> {
    let kernel = Microkernel::new(level);
    match (x.dtype(), Microkernel::of_pairs(level)) {
        (DType::BF16, Some(pairs)) => conv2d_by::<bf16, Pair>(&pairs, gradient, x, kernel_size, params),
        (DType::BF16, None) => conv2d_by::<bf16, f32>(&kernel, gradient, x, kernel_size, params),
        (DType::F16, _) => conv2d_by::<f16, f32>(&kernel, gradient, x, kernel_size, params),
        _ => conv2d_by::<f32, f32>(&kernel, gradient, x, kernel_size, params),
    }
}

fn conv2d_by<S: Float + Source<E>, E: Source<E> + Stored<E>>(
    kernel: &Microkernel<E>,
    gradient: &Tensor,
    x: &Tensor,
    [kernel_height, kernel_width]: [usize; 2],
    params: Conv2dParams,
) -> Result<Tensor> {
    let (batch, out_channels, out_height, out_width) = gradient.dims4()?;
    let (_, channels, height, width) = x.dims4()?;
    let items = channels * kernel_height * kernel_width;
    // The pixels of all pictures are one sum.
    with_values(&gradient.transpose(0, 1)?, |gradient: &[S]| {
        let depth = batch * out_height * out_width;
        let panels = WeightPanels::pack(gradient, out_channels, depth, kernel.left_width);
        with_values(x, |values: &[S]| {
            let taps = Taps {
                values,
                channels,
                size: [height, width],
                kernel: [kernel_height, kernel_width],
                out_size: [out_height, out_width],
                depth,
                params,
            };
            let factor = Factor { kernel, side: Side::Left, panels: &panels, bias: None };
            let write = |output: &mut [_]| multiply(&factor, &taps, After::Nothing, output);
            // SAFETY: a product writes all of its output.
            let output: Vec<S> = unsafe { fill(out_channels * items, write)? };
            Ok(to_tensor(output, &[out_channels, channels, kernel_height, kernel_width]))
        })
    })
}

/// The taps of all channels of a convolution's input, each with what it meets at the output's pixels of all pictures; the output is
/// `(out_channels, taps)`.
struct Taps<'a, S> {
    values: &'a [S],
    channels: usize,
    size: [usize; 2],
    kernel: [usize; 2],
    out_size: [usize; 2],
    /// The output's pixels of all pictures.
    depth: usize,
    params: Conv2dParams,
}

impl<S: Copy + Default> Taps<'_, S> {
    /// What a tap meets at as many pixels as there are numbers, from this one.
    fn read(&self, item: usize, first_pixel: usize, mut numbers: &mut [S]) {
        let ([height, width], [kernel_height, kernel_width]) = (self.size, self.kernel);
        let ([out_height, out_width], Conv2dParams { stride, padding }) = (self.out_size, self.params);
        let (channel, tap) = (item / (kernel_height * kernel_width), item % (kernel_height * kernel_width));
        let (tap_y, tap_x) = (tap / kernel_width, tap % kernel_width);
        let (mut row, mut column) = (first_pixel / out_width, first_pixel % out_width);
        while !numbers.is_empty() {
            let (run, rest) = numbers.split_at_mut(numbers.len().min(out_width - column));
            let (picture, y) = (row / out_height, row % out_height * stride + tap_y);
            match y.checked_sub(padding).filter(|y| *y < height) {
                Some(y) => {
                    let row = (picture * self.channels + channel) * height + y;
                    let x = column * stride + tap_x;
                    read_row(&self.values[row * width..][..width], x, self.params, run);
                }
                None => run.fill(S::default()),
            }
            (row, column, numbers) = (row + 1, 0, rest);
        }
    }
}

impl<S: Source<E>, E: Element> Activations<E> for Taps<'_, S> {
    type Number = S;

    fn items(&self) -> usize {
        self.channels * self.kernel[0] * self.kernel[1]
    }

    fn pack(&self, items: Range<usize>, steps: Range<usize>, width: usize, panel: &mut [E]) {
        let mut rows = vec![S::default(); items.len() * DEPTH * S::PER_STEP];
        for (steps, panel) in depth_blocks(steps).zip(panel.chunks_mut(width * DEPTH)) {
            let pixels = steps.start * S::PER_STEP..self.depth.min(steps.end * S::PER_STEP);
            for (item, row) in items.clone().zip(rows.chunks_exact_mut(DEPTH * S::PER_STEP)) {
                self.read(item, pixels.start, &mut row[..pixels.len()]);
            }
            let rows = rows.chunks_exact(DEPTH * S::PER_STEP).map(|row| &row[..pixels.len()]);
            transpose_rows(rows, width, panel);
        }
    }

    fn place(&self, feature: usize, item: usize) -> usize {
        feature * self.channels * self.kernel[0] * self.kernel[1] + item
    }

    fn adjoin(&self, _: &Range<usize>) -> bool {
        true
    }
}
