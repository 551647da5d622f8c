use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use super::multiply::{Activations, multiply};
use super::packed::{PackedWeight, Side};
use super::{bias_values, with_values};
use crate::Conv2dParams;
use crate::conv2d::output_size;

pub(super) fn conv2d(
    x: &Tensor,
    weight: &PackedWeight,
    bias: Option<&Tensor>,
    params: Conv2dParams,
) -> Result<Tensor> {
    let &[_, _, kernel_height, kernel_width] = weight.shape().dims() else {
        candle_core::bail!(
            "conv2d: the weight is {:?}, but the input is {:?}",
            weight.shape().dims(),
            x.dims()
        );
    };
    let (out_height, out_width) = output_size(x, weight.shape(), params)?;
    let (batch, channels, height, width) = x.dims4()?;
    let out_channels = weight.features();
    let shape = [batch, out_channels, out_height, out_width];
    let bytes = shape.iter().try_fold(size_of::<f32>(), |bytes, &size| bytes.checked_mul(size));
    let Some(bytes) = bytes.filter(|&bytes| isize::try_from(bytes).is_ok()) else {
        candle_core::bail!("conv2d: an output of {shape:?} has more numbers than can be counted");
    };
    debug_assert_eq!(weight.side(), Side::Left);
    let bias = bias_values("conv2d", x, bias, out_channels)?;
    let mut output = vec![0f32; bytes / size_of::<f32>()];
    with_values(&x.to_dtype(DType::F32)?, |values| {
        let pixels = Pixels {
            values,
            channels,
            height,
            width,
            kernel_height,
            kernel_width,
            params,
            batch,
            out_channels,
            out_width,
            out_pixels: out_height * out_width,
        };
        multiply(weight, &pixels, bias.as_deref(), &mut output);
        Ok(())
    })?;
    Tensor::from_vec(output, &shape, &Device::Cpu)?.to_dtype(x.dtype())
}

/// The output's pixels of all pictures in a row, each with the input's numbers that it is computed from: those under the kernel, channel
/// by channel. They are read from `(batch, channels, height, width)` as they are; the output is `(batch, out_channels, out_pixels)`.
struct Pixels<'a> {
    values: &'a [f32],
    channels: usize,
    height: usize,
    width: usize,
    kernel_height: usize,
    kernel_width: usize,
    params: Conv2dParams,
    batch: usize,
    out_channels: usize,
    out_width: usize,
    out_pixels: usize,
}

/// Pixels of a panel that lie in one row of one picture.
#[derive(Clone, Copy)]
struct Run {
    picture: usize,
    /// Where the run is in the panel.
    start: usize,
    length: usize,
    /// Where the kernel's first tap meets the input at the run's first pixel, counted from the padding's first row and column.
    y: usize,
    x: usize,
}

impl Pixels<'_> {
    fn runs(&self, items: Range<usize>) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut item = items.start;
        while item < items.end {
            let (picture, pixel) = (item / self.out_pixels, item % self.out_pixels);
            let (y, x) = (pixel / self.out_width, pixel % self.out_width);
            let length = (self.out_width - x).min(items.end - item);
            let (start, stride) = (item - items.start, self.params.stride);
            runs.push(Run { picture, start, length, y: y * stride, x: x * stride });
            item += length;
        }
        runs
    }

    /// What one tap of the kernel meets in one channel along a run.
    fn read(&self, run: &Run, channel: usize, tap: (usize, usize), numbers: &mut [f32]) {
        let Conv2dParams { stride, padding } = self.params;
        let (y, x) = (run.y + tap.0, run.x + tap.1);
        if y < padding || y - padding >= self.height {
            return numbers.fill(0.0);
        }
        let row = (run.picture * self.channels + channel) * self.height + y - padding;
        let row = &self.values[row * self.width..][..self.width];
        let reach = (numbers.len() - 1) * stride;
        if x >= padding && x - padding + reach < self.width {
            let row = &row[x - padding..];
            return match stride {
                1 => copy(&row[..numbers.len()], numbers),
                _ => numbers.iter_mut().zip(row.iter().step_by(stride)).for_each(|(to, from)| *to = *from),
            };
        }
        if stride == 1 {
            let before = padding.saturating_sub(x).min(numbers.len());
            let row = row.get(x.saturating_sub(padding)..).unwrap_or(&[]);
            let (before, numbers) = numbers.split_at_mut(before);
            let (inside, after) = numbers.split_at_mut(row.len().min(numbers.len()));
            before.fill(0.0);
            inside.copy_from_slice(&row[..inside.len()]);
            return after.fill(0.0);
        }
        for (index, number) in numbers.iter_mut().enumerate() {
            let x = (x + index * stride).checked_sub(padding);
            *number = x.and_then(|x| row.get(x)).copied().unwrap_or(0.0);
        }
    }
}

/// Copies the usual lengths by a few vectors instead of a call.
fn copy(from: &[f32], to: &mut [f32]) {
    fn whole<const LENGTH: usize>(from: &[f32], to: &mut [f32]) -> Option<()> {
        *<&mut [f32; LENGTH]>::try_from(to).ok()? = *<&[f32; LENGTH]>::try_from(from).ok()?;
        Some(())
    }
    if whole::<32>(from, to).or_else(|| whole::<16>(from, to)).or_else(|| whole::<8>(from, to)).is_none() {
        to.copy_from_slice(from);
    }
}

impl Activations for Pixels<'_> {
    fn items(&self) -> usize {
        self.batch * self.out_pixels
    }

    fn pack(&self, items: Range<usize>, depths: Range<usize>, width: usize, panel: &mut [f32]) {
        let count = items.len();
        let runs = self.runs(items);
        let taps = self.kernel_height * self.kernel_width;
        let (mut channel, tap) = (depths.start / taps, depths.start % taps);
        let mut tap = (tap / self.kernel_width, tap % self.kernel_width);
        for numbers in panel.chunks_exact_mut(width).take(depths.len()) {
            for run in &runs {
                self.read(run, channel, tap, &mut numbers[run.start..run.start + run.length]);
            }
            numbers[count..].fill(0.0);
            // Counted up: a division for each would take longer than the copying.
            tap.1 += 1;
            if tap.1 == self.kernel_width {
                tap = (tap.0 + 1, 0);
            }
            if tap.0 == self.kernel_height {
                (channel, tap.0) = (channel + 1, 0);
            }
        }
    }

    fn place(&self, feature: usize, item: usize) -> usize {
        (item / self.out_pixels * self.out_channels + feature) * self.out_pixels + item % self.out_pixels
    }

    fn stride(&self) -> usize {
        self.out_pixels
    }

    fn adjoin(&self, items: &Range<usize>) -> bool {
        items.start / self.out_pixels == (items.end - 1) / self.out_pixels
    }
}
