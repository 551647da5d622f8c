use std::mem::MaybeUninit;

use candle_core::{DType, Result, Tensor};
use half::{bf16, f16};

use super::geometry::{Geometry, Scale};
use super::level::Level;
use super::microkernel::Microkernel;
use super::multiply::{After, Factor, multiply};
use super::packed::{Numbers, PackedWeight, Side};
use super::panels::Source;
use super::parts::{InFewParts, InParts, Order, Parts, parts_at};
use super::pixels::Pixels;
use super::precision::{Float32MatmulPrecision, float32_matmul_precision};
use super::weight_panels::{AsFloats, Stored, WeightPanels};
use super::winograd::{SHARED_BYTES, Winograd};
use super::winograd_transforms::{Added, Pictures, Planes, Transforms};
use super::{bias_values, to_tensor, with_addend, with_values};
use crate::Conv2dParams;
use crate::activation::Silu;
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
    Ok(is_large && matches!(fastest_method(&geometry, weight), Method::Winograd { .. }))
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

/// A convolution of pictures with so many rows and columns of zeros below and at the right, besides those of the padding.
pub(super) fn conv2d_padded_at_end(
    x: &Tensor,
    weight: &PackedWeight,
    bias: Option<&Tensor>,
    params: Conv2dParams,
    end: usize,
) -> Result<Tensor> {
    conv2d_by(None, Input { end, ..Input::plain(x) }, weight, bias, params, After::Nothing)
}

/// What a convolution reads, and how.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) x: &'a Tensor,
    pub(super) scale: Scale,
    /// Rows and columns of zeros below and at the right, besides those of the padding.
    pub(super) end: usize,
    /// What is done with each channel of each picture; by Winograd's filtering alone.
    pub(super) normed: Option<&'a [Normalize<Silu>]>,
}

impl<'a> Input<'a> {
    pub(super) fn plain(x: &'a Tensor) -> Self {
        Self { x, scale: Scale::One, end: 0, normed: None }
    }
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
    let geometry = Geometry::padded_at_end(x, input.scale, weight, params, input.end)?;
    let bias = bias_values("conv2d", x, weight, bias)?;
    let bias = bias.as_deref();
    // Half precision may be computed with in float32.
    let is_float = weight.dtype() == DType::F32;
    let method = method.unwrap_or_else(|| fastest_method(&geometry, weight));
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
    let precision = float32_matmul_precision()?;
    match weight.numbers() {
        Numbers::F32(kernel, panels) => float32(precision, x, geometry, kernel, panels, bias, after),
        Numbers::F16(kernel, panels) if is_float => {
            float32(precision, x, geometry, kernel, panels, bias, after)
        }
        Numbers::F16(kernel, panels) => compute::<f16, _, _>(x, geometry, kernel, panels, bias, after),
        Numbers::Bf16(kernel, panels) if is_float => {
            float32(precision, x, geometry, kernel, panels, bias, after)
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
    with_pixels(x, geometry, kernel.level, after, |pixels: &Pixels<'_, S>, after, output| {
        multiply(&Factor { kernel, side: Side::Left, panels, bias }, pixels, after, output);
    })
}

/// Float32 at a precision.
pub(super) fn float32<T: InFewParts>(
    precision: Float32MatmulPrecision,
    x: &Tensor,
    geometry: Geometry,
    kernel: &Microkernel,
    panels: &WeightPanels<T>,
    bias: Option<&[f32]>,
    after: After<'_, Tensor>,
) -> Result<Tensor> {
    match parts_at(kernel.level, precision, panels.steps()) {
        Some(1) => compute_in_parts::<1, _>(x, geometry, kernel, panels, bias, after),
        Some(2) => compute_in_parts::<2, _>(x, geometry, kernel, panels, bias, after),
        Some(_) => compute_in_parts::<3, _>(x, geometry, kernel, panels, bias, after),
        None => compute::<f32, _, _>(x, geometry, kernel, panels, bias, after),
    }
}

/// Float32 by products of its parts; plain where the weight lies otherwise: for tiles those of kernels greater than 1x1 do, which may be for Winograd's
/// filtering.
fn compute_in_parts<const PARTS: usize, T: InFewParts + Stored<Parts<PARTS>>>(
    x: &Tensor,
    geometry: Geometry,
    plain: &Microkernel,
    panels: &WeightPanels<T>,
    bias: Option<&[f32]>,
    after: After<'_, Tensor>,
) -> Result<Tensor> {
    let level = plain.level;
    match Microkernel::<Parts<PARTS>>::in_parts(level, Side::Left, T::PARTS) {
        Some((kernel, [left, order])) if left == Order::of_panels(panels.width()) => {
            with_pixels(x, geometry, level, after, |pixels: &Pixels<'_, f32>, after, output| {
                let factor = Factor { kernel: &kernel, side: Side::Left, panels, bias };
                multiply(&factor, &InParts { activations: pixels, order }, after, output);
            })
        }
        _ => compute::<f32, _, _>(x, geometry, plain, panels, bias, after),
    }
}

/// Calls `multiply` with the pixels and room for the output, which it writes.
fn with_pixels<S: Float>(
    x: &Tensor,
    geometry: Geometry,
    level: Level,
    after: After<'_, Tensor>,
    multiply: impl FnOnce(&Pixels<'_, S>, After<'_, [S]>, &mut [MaybeUninit<S>]),
) -> Result<Tensor> {
    let Geometry { batch, out_channels, out_height, out_width, .. } = geometry;
    let shape = [batch, out_channels, out_height, out_width];
    with_values(x, |values: &[S]| {
        let pixels = Pixels { level, values, geometry, out_pixels: out_height * out_width };
        with_addend("conv2d", after, &shape, |after| {
            let write = |output: &mut [_]| multiply(&pixels, after, output);
            // SAFETY: a product writes all of its output.
            let output = unsafe { fill(shape.iter().product(), write)? };
            Ok(to_tensor(output, &shape))
        })
    })
}

/// By measured times. Only the size of a picture counts, and not how many there are: so the bits of a picture do not depend on the
/// others.
fn fastest_method(geometry: &Geometry, weight: &PackedWeight) -> Method {
    let stride_and_padding = Conv2dParams { stride: 1, padding: 1 };
    if (geometry.kernel_height, geometry.kernel_width, geometry.params) != (3, 3, stride_and_padding)
        || geometry.end > 0
        || geometry.channels < FEWEST_CHANNELS
    {
        return Method::Direct;
    }
    let tiles = geometry.height.div_ceil(4) * geometry.width.div_ceil(4);
    match (weight.numbers(), tiles) {
        // By tiles, all products are quicker than a quarter of them in float32.
        (Numbers::Bf16Pairs(kernel, _), _) if kernel.level == Level::Amx => Method::Direct,
        (Numbers::Bf16Pairs(..), ..FEWEST_TILES_BEYOND_PAIRS) => Method::Direct,
        (_, FEWEST_TILES..) => Method::Winograd { outputs: 4 },
        (_, 2..) => Method::Winograd { outputs: 2 },
        _ => Method::Direct,
    }
}
