use std::ops::Range;

use candle_core::{DType, Result, Tensor};
use half::{bf16, f16};

use super::level::Level;
use super::microkernel::{MAX_COLUMNS, Microkernel};
use super::multiply::{Activations, After, Factor, multiply};
use super::packed::{Numbers, PackedWeight, Side};
use super::panels::{Element, Source, copy};
use super::weight_panels::{AsFloats, Stored, WeightPanels};
use super::winograd::{SHARED_BYTES, Winograd};
use super::winograd_transforms::{Added, Pictures, Planes, Transforms};
use super::{bias_values, to_tensor, with_addend, with_values};
use crate::Conv2dParams;
use crate::activation::Silu;
use crate::conv2d::output_size;
use crate::cpu::{Float, fill};
use crate::norm::Normalize;

/// With fewer channels of the input there is little to multiply, so that the transforms take longer than what they save.
const FEWEST_CHANNELS: usize = 8;
/// Pictures of fewer tiles of 4x4 are filtered by tiles of 2x2, which fill the panels of tiles better.
const FEWEST_TILES: usize = 9;

/// Pictures of fewer tiles are as quick by the processor's dot products of bfloat16, twice the rate of float32: alone the tiles of such a one leave half of a panel
/// of 32 empty.
const FEWEST_TILES_BEYOND_PAIRS: usize = 17;

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// All products.
    Direct,
    /// Winograd's filtering with tiles of so many outputs a side, 2 or 4: 3x3, stride 1 and padding 1.
    Winograd { outputs: usize },
}

pub(super) fn conv2d(
    x: &Tensor,
    weight: &PackedWeight,
    bias: Option<&Tensor>,
    params: Conv2dParams,
    after: After<'_, Tensor>,
) -> Result<Tensor> {
    conv2d_by(None, Input::plain(x), weight, bias, params, after)
}

/// The norm of a picture of more bytes is not stored. Reading through it takes up to 3% longer than storing it, for each number is normalised one and a
/// half times, so that only the pictures are that decide how much memory a model needs.
const MOST_STORED_BYTES: usize = 128 << 20;

/// Whether the input of a convolution is normalised while it is read rather than before.
pub(super) fn normalizes(x: &Tensor, weight: &PackedWeight, params: Conv2dParams) -> Result<bool> {
    let geometry = Geometry::new(x, Scale::One, weight, params)?;
    // Only the size of a picture counts, and not how many there are: half precision rounds what is stored.
    let numbers = geometry.channels * geometry.height * geometry.width;
    let is_large = numbers * x.dtype().size_in_bytes() > MOST_STORED_BYTES;
    Ok(is_large && matches!(geometry.fastest_method(weight), Method::Winograd { .. }))
}

/// A convolution of what these make of each channel of each picture of `x`; it must be one that [`normalizes`].
pub(super) fn conv2d_normed(
    x: &Tensor,
    normed: &[Normalize<Silu>],
    weight: &PackedWeight,
    bias: Option<&Tensor>,
    params: Conv2dParams,
    after: After<'_, Tensor>,
) -> Result<Tensor> {
    conv2d_by(None, Input { normed: Some(normed), ..Input::plain(x) }, weight, bias, params, after)
}

/// A convolution of what nearest-neighbour upsampling by two makes of `x`.
pub(super) fn upsample_conv2d(
    x: &Tensor,
    weight: &PackedWeight,
    bias: Option<&Tensor>,
    params: Conv2dParams,
) -> Result<Tensor> {
    conv2d_by(None, Input { scale: Scale::Two, ..Input::plain(x) }, weight, bias, params, After::Nothing)
}

/// What a convolution reads, and how.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) x: &'a Tensor,
    pub(super) scale: Scale,
    /// What is done with each channel of each picture; by Winograd's filtering alone.
    pub(super) normed: Option<&'a [Normalize<Silu>]>,
}

impl<'a> Input<'a> {
    pub(super) fn plain(x: &'a Tensor) -> Self {
        Self { x, scale: Scale::One, normed: None }
    }
}

/// How often each row and each column of a picture is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    One,
    Two,
}

impl Scale {
    pub(super) fn factor(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

/// Pixels of a row that is read twice, from `start` on, counted in what becomes of it.
#[inline(always)]
pub(super) fn read_twice<S: Copy>(row: &[S], start: usize, pixels: &mut [S]) {
    let odd = (start % 2).min(pixels.len());
    let (first, pixels) = pixels.split_at_mut(odd);
    first.iter_mut().for_each(|pixel| *pixel = row[start / 2]);
    let row = &row[start.div_ceil(2)..];
    let (pairs, last) = pixels.as_chunks_mut::<2>();
    pairs.iter_mut().zip(row).for_each(|(pair, pixel)| *pair = [*pixel; 2]);
    last.iter_mut().for_each(|pixel| *pixel = row[pairs.len()]);
}

/// By the fastest method, or by another one.
pub(super) fn conv2d_by(
    method: Option<Method>,
    input: Input<'_>,
    weight: &PackedWeight,
    bias: Option<&Tensor>,
    params: Conv2dParams,
    after: After<'_, Tensor>,
) -> Result<Tensor> {
    let x = input.x;
    if weight.side() != Side::Left {
        candle_core::bail!(
            "conv2d: the weight is {:?}, but the input is {:?}",
            weight.shape().dims(),
            x.dims()
        );
    }
    let geometry = Geometry::new(x, input.scale, weight, params)?;
    let bias = bias_values("conv2d", x, weight, bias)?;
    let bias = bias.as_deref();
    // Half precision may be computed with in float32.
    let is_float = weight.dtype() == DType::F32;
    let method = method.unwrap_or_else(|| geometry.fastest_method(weight));
    if let Method::Winograd { outputs } = method {
        return match weight.numbers() {
            Numbers::F32(kernel, panels) => {
                filter::<f32, _>(input, geometry, outputs, kernel, panels, bias, after)
            }
            Numbers::F16(kernel, panels) if is_float => {
                filter::<f32, _>(input, geometry, outputs, kernel, panels, bias, after)
            }
            Numbers::F16(kernel, panels) => {
                filter::<f16, _>(input, geometry, outputs, kernel, panels, bias, after)
            }
            Numbers::Bf16(kernel, panels) if is_float => {
                filter::<f32, _>(input, geometry, outputs, kernel, panels, bias, after)
            }
            Numbers::Bf16(kernel, panels) => {
                filter::<bf16, _>(input, geometry, outputs, kernel, panels, bias, after)
            }
            Numbers::Bf16Pairs(pairs, _) if pairs.level == Level::Amx => {
                candle_core::bail!("conv2d: a weight that is packed for tiles is not filtered")
            }
            Numbers::Bf16Pairs(pairs, panels) => filter::<bf16, _>(
                input,
                geometry,
                outputs,
                &Microkernel::new(pairs.level),
                panels,
                bias,
                after,
            ),
        };
    }
    if input.normed.is_some() {
        candle_core::bail!("conv2d: all products of an input that is to be normalised as it is read");
    }
    match weight.numbers() {
        Numbers::F32(kernel, panels) => compute::<f32, _, _>(x, geometry, kernel, panels, bias, after),
        Numbers::F16(kernel, panels) if is_float => {
            compute::<f32, _, _>(x, geometry, kernel, panels, bias, after)
        }
        Numbers::F16(kernel, panels) => compute::<f16, _, _>(x, geometry, kernel, panels, bias, after),
        Numbers::Bf16(kernel, panels) if is_float => {
            compute::<f32, _, _>(x, geometry, kernel, panels, bias, after)
        }
        Numbers::Bf16(kernel, panels) => compute::<bf16, _, _>(x, geometry, kernel, panels, bias, after),
        Numbers::Bf16Pairs(kernel, panels) => compute::<bf16, _, _>(x, geometry, kernel, panels, bias, after),
    }
}

/// By Winograd's filtering, in float32 whatever the dtype.
fn filter<S: Float, T: AsFloats>(
    input: Input<'_>,
    geometry: Geometry,
    outputs: usize,
    kernel: &Microkernel,
    panels: &WeightPanels<T>,
    bias: Option<&[f32]>,
    after: After<'_, Tensor>,
) -> Result<Tensor> {
    let Geometry { batch, channels, height, width, scale, out_channels, .. } = geometry;
    let shape = [batch, out_channels, height, width];
    let mut output = Vec::new();
    with_values(input.x, |values: &[S]| {
        with_addend("conv2d", after, &shape, |after| {
            let (addend, activation) = match after {
                After::Add(addend) => (Some(addend), None),
                After::Activate(activation) => (None, Some(activation)),
                After::Nothing | After::Geglu => (None, None),
            };
            let winograd = Winograd {
                kernel,
                weight: panels,
                added: Added { bias, addend, activation },
                input: Pictures {
                    values,
                    planes: Planes { channels, height, width, scale },
                    normed: input.normed,
                },
                batch,
                transforms: Transforms::new(kernel.level, outputs),
                shared_bytes: SHARED_BYTES,
            };
            output = winograd.compute()?;
            Ok(())
        })
    })?;
    Ok(to_tensor(output, &shape))
}

fn compute<S: Float + Source<E>, E: Source<E>, T: Stored<E>>(
    x: &Tensor,
    geometry: Geometry,
    kernel: &Microkernel<E>,
    panels: &WeightPanels<T>,
    bias: Option<&[f32]>,
    after: After<'_, Tensor>,
) -> Result<Tensor> {
    let Geometry { batch, out_channels, out_height, out_width, .. } = geometry;
    let shape = [batch, out_channels, out_height, out_width];
    with_values(x, |values: &[S]| {
        let factor = Factor { kernel, side: Side::Left, panels, bias };
        let pixels = Pixels { values, geometry, out_pixels: out_height * out_width };
        with_addend("conv2d", after, &shape, |after: After<'_, [S]>| {
            let write = |output: &mut [_]| multiply(&factor, &pixels, after, output);
            // SAFETY: a product writes all of its output.
            let output = unsafe { fill(shape.iter().product(), write)? };
            Ok(to_tensor(output, &shape))
        })
    })
}

/// The sizes of a convolution.
#[derive(Clone, Copy)]
struct Geometry {
    batch: usize,
    channels: usize,
    /// Of the picture at its scale.
    height: usize,
    width: usize,
    scale: Scale,
    kernel_height: usize,
    kernel_width: usize,
    params: Conv2dParams,
    out_channels: usize,
    out_height: usize,
    out_width: usize,
}

impl Geometry {
    /// Fails unless input and weight fit each other and the output can be counted.
    fn new(x: &Tensor, scale: Scale, weight: &PackedWeight, params: Conv2dParams) -> Result<Self> {
        let (batch, channels, height, width) = x.dims4()?;
        let [height, width] = [height, width].map(|side| side.saturating_mul(scale.factor()));
        let size = [batch, channels, height, width];
        let (out_height, out_width) = output_size(size, weight.shape(), params)?;
        let (out_channels, _, kernel_height, kernel_width) = weight.shape().dims4()?;
        let shape = [batch, out_channels, out_height, out_width];
        let bytes = shape.iter().try_fold(size_of::<f32>(), |bytes, &size| bytes.checked_mul(size));
        if bytes.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
            candle_core::bail!("conv2d: an output of {shape:?} has more numbers than can be counted");
        }
        Ok(Self {
            batch,
            channels,
            height,
            width,
            scale,
            kernel_height,
            kernel_width,
            params,
            out_channels,
            out_height,
            out_width,
        })
    }

    /// By measured times. Only the size of a picture counts, and not how many there are: so the bits of a picture do not depend on the
    /// others.
    fn fastest_method(&self, weight: &PackedWeight) -> Method {
        let stride_and_padding = Conv2dParams { stride: 1, padding: 1 };
        if (self.kernel_height, self.kernel_width, self.params) != (3, 3, stride_and_padding)
            || self.channels < FEWEST_CHANNELS
        {
            return Method::Direct;
        }
        let tiles = self.height.div_ceil(4) * self.width.div_ceil(4);
        match (weight.numbers(), tiles) {
            // By tiles, all products are quicker than a quarter of them in float32.
            (Numbers::Bf16Pairs(kernel, _), _) if kernel.level == Level::Amx => Method::Direct,
            (Numbers::Bf16Pairs(..), ..FEWEST_TILES_BEYOND_PAIRS) => Method::Direct,
            (_, FEWEST_TILES..) => Method::Winograd { outputs: 4 },
            (_, 2..) => Method::Winograd { outputs: 2 },
            _ => Method::Direct,
        }
    }
}

/// The output's pixels of all pictures in a row, each with the input's numbers that it is computed from: those under the kernel, channel
/// by channel. They are read from `(batch, channels, height, width)` as they are; the output is `(batch, out_channels, out_pixels)`.
struct Pixels<'a, S> {
    values: &'a [S],
    geometry: Geometry,
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

impl<S: Copy + Default> Pixels<'_, S> {
    fn runs(&self, items: Range<usize>) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut item = items.start;
        while item < items.end {
            let (picture, pixel) = (item / self.out_pixels, item % self.out_pixels);
            let Geometry { out_width, params, .. } = self.geometry;
            let (y, x) = (pixel / out_width, pixel % out_width);
            let length = (out_width - x).min(items.end - item);
            let (start, stride) = (item - items.start, params.stride);
            runs.push(Run { picture, start, length, y: y * stride, x: x * stride });
            item += length;
        }
        runs
    }

    /// What one tap of the kernel meets in one channel along a run.
    fn read(&self, run: &Run, channel: usize, tap: (usize, usize), numbers: &mut [S]) {
        let Geometry { channels, height, width, scale, params, .. } = self.geometry;
        let padding = params.padding;
        let (y, x) = (run.y + tap.0, run.x + tap.1);
        if y < padding || y - padding >= height {
            return numbers.fill(S::default());
        }
        let factor = scale.factor();
        let row = (run.picture * channels + channel) * (height / factor) + (y - padding) / factor;
        let row = &self.values[row * (width / factor)..][..width / factor];
        if scale == Scale::Two {
            return read_row_twice(row, x, params, numbers);
        }
        read_row(row, x, params, numbers);
    }
}

/// What one tap meets along a run, `x` being its first place in the padded picture.
pub(super) fn read_row<S: Copy + Default>(row: &[S], x: usize, params: Conv2dParams, numbers: &mut [S]) {
    let Conv2dParams { stride, padding } = params;
    let reach = (numbers.len() - 1) * stride;
    if x >= padding && x - padding + reach < row.len() {
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
        before.fill(S::default());
        inside.copy_from_slice(&row[..inside.len()]);
        return after.fill(S::default());
    }
    for (index, number) in numbers.iter_mut().enumerate() {
        let x = (x + index * stride).checked_sub(padding);
        *number = x.and_then(|x| row.get(x)).copied().unwrap_or_default();
    }
}

/// As [`read_row`], of a row each number of which stands twice.
fn read_row_twice<S: Copy + Default>(row: &[S], x: usize, params: Conv2dParams, numbers: &mut [S]) {
    let Conv2dParams { stride, padding } = params;
    let width = 2 * row.len();
    if stride > 1 {
        for (index, number) in numbers.iter_mut().enumerate() {
            let x = (x + index * stride).checked_sub(padding);
            *number = x.and_then(|x| row.get(x / 2)).copied().unwrap_or_default();
        }
        return;
    }
    let (before, numbers) = numbers.split_at_mut(padding.saturating_sub(x).min(numbers.len()));
    let start = x.saturating_sub(padding).min(width);
    let (inside, after) = numbers.split_at_mut((width - start).min(numbers.len()));
    before.fill(S::default());
    if !inside.is_empty() {
        read_twice(row, start, inside);
    }
    after.fill(S::default());
}

impl<S: Source<E>, E: Element> Activations<E> for Pixels<'_, S> {
    type Number = S;

    fn items(&self) -> usize {
        self.geometry.batch * self.out_pixels
    }

    fn pack(&self, items: Range<usize>, steps: Range<usize>, width: usize, panel: &mut [E]) {
        let Geometry { channels, kernel_height, kernel_width, .. } = self.geometry;
        let runs = self.runs(items);
        let taps = kernel_height * kernel_width;
        let first = steps.start * S::PER_STEP;
        let (mut channel, mut tap) = (first / taps, (first % taps / kernel_width, first % kernel_width));
        // What the panel lacks stays zero.
        let mut rows = [[S::default(); MAX_COLUMNS]; 2];
        for steps in panel.chunks_exact_mut(width).take(steps.len()) {
            for row in rows.iter_mut().take(S::PER_STEP) {
                for run in &runs {
                    let numbers = &mut row[run.start..run.start + run.length];
                    match channel < channels {
                        true => self.read(run, channel, tap, numbers),
                        // The second half of the last step.
                        false => numbers.fill(S::default()),
                    }
                }
                // Counted up: a division for each would take longer than the copying.
                tap.1 += 1;
                if tap.1 == kernel_width {
                    tap = (tap.0 + 1, 0);
                }
                if tap.0 == kernel_height {
                    (channel, tap.0) = (channel + 1, 0);
                }
            }
            S::join(&rows[0][..width], &rows[1][..width], steps);
        }
    }

    fn place(&self, feature: usize, item: usize) -> usize {
        let (picture, pixel) = (item / self.out_pixels, item % self.out_pixels);
        (picture * self.geometry.out_channels + feature) * self.out_pixels + pixel
    }

    fn adjoin(&self, items: &Range<usize>) -> bool {
        items.start / self.out_pixels == (items.end - 1) / self.out_pixels
    }
}
