use std::mem::MaybeUninit;

use candle_core::{Device, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::cpu::{Float, by_float, fill, values};
use crate::dtype::product_dtype;
use crate::gradient::{record, tracks};
use crate::parameters::{check_per_feature, per_channel};
use crate::product::{self, PackedWeight, conv2d_weight_gradient};
use crate::reduction::sum_channels;

/// How a convolution moves over its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dParams {
    /// Pixels between two outputs.
    pub stride: usize,
    /// Zeros added on each of the four sides.
    pub padding: usize,
}

/// A 2D convolution, as `torch.nn.functional.conv2d` with square stride and padding.
///
/// `x` is `(batch, in_channels, height, width)`, `weight` is `(out_channels, in_channels, kernel_height, kernel_width)`,
/// `bias` is `(out_channels)`; the result is `(batch, out_channels, height', width')` in the dtype of `x`.
///
/// # Errors
/// When the shapes or dtypes do not fit.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, params: Conv2dParams) -> Result<Tensor> {
    output_size(x.dims4()?.into(), weight.shape(), params)?;
    if product::computes(x, weight, bias) {
        return with_plain_weight(x, weight, bias, params);
    }
    let (out_channels, _, kernel_height, kernel_width) = weight.dims4()?;
    if let Some(bias) = bias {
        check_per_feature("conv2d", "bias", bias, out_channels)?;
    }
    let (dtype, result_dtype) = (product_dtype(x), x.dtype());
    let (x, padding) = pad_for_backward(x.to_dtype(dtype)?, kernel_height, kernel_width, params)?;
    let product = x.conv2d(&weight.to_dtype(dtype)?, padding, params.stride, 1, 1)?;
    let product = product.to_dtype(result_dtype)?;
    match bias {
        Some(bias) => product.broadcast_add(&per_channel(bias)?),
        None => Ok(product),
    }
}

/// The height and width of the result of pictures of `size`, `(batch, channels, height, width)`.
///
/// # Errors
/// When the shapes do not fit each other or the parameters.
pub(crate) fn output_size(size: [usize; 4], weight: &Shape, params: Conv2dParams) -> Result<(usize, usize)> {
    let [_, channels, height, width] = size;
    let Conv2dParams { stride, padding } = params;
    if stride == 0 {
        candle_core::bail!("conv2d: a stride of 0");
    }
    let (_, in_channels, kernel_height, kernel_width) = weight.dims4()?;
    if channels != in_channels || kernel_height == 0 || kernel_width == 0 {
        candle_core::bail!("conv2d: the weight is {:?}, but the input is {:?}", weight.dims(), size);
    }
    let size = |side: usize, kernel: usize| {
        let padded = padding.checked_mul(2)?.checked_add(side)?;
        Some(padded.checked_sub(kernel)? / stride + 1)
    };
    match (size(height, kernel_height), size(width, kernel_width)) {
        (Some(height), Some(width)) => Ok((height, width)),
        _ => candle_core::bail!(
            "conv2d: an input of {height}x{width} with padding {padding} does not fit the kernel, {kernel_height}x{kernel_width}"
        ),
    }
}

/// The input, and the padding that is left to the convolution.
///
/// With a stride the last rows or columns may be used by no output. candle's backward assumes that they are as many below as
/// at the right; where they are not, the input is padded here, without those.
fn pad_for_backward(
    x: Tensor,
    kernel_height: usize,
    kernel_width: usize,
    params: Conv2dParams,
) -> Result<(Tensor, usize)> {
    let Conv2dParams { stride, padding } = params;
    let (_, _, height, width) = x.dims4()?;
    let unused = |side: usize, kernel: usize| (side + 2 * padding - kernel) % stride;
    let (below, right) = (unused(height, kernel_height), unused(width, kernel_width));
    if below == right {
        return Ok((x, padding));
    }
    let padded = x.pad_with_zeros(2, padding, padding)?.pad_with_zeros(3, padding, padding)?;
    let padded = padded.narrow(2, 0, height + 2 * padding - below)?;
    Ok((padded.narrow(3, 0, width + 2 * padding - right)?, 0))
}

/// By this crate's products, with a weight that may be a variable.
fn with_plain_weight(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    params: Conv2dParams,
) -> Result<Tensor> {
    let detached_bias = bias.map(Tensor::detach);
    let output = PackedWeight::pack(&weight.detach())?.conv2d(&x.detach(), detached_bias.as_ref(), params)?;
    let (_, _, height, width) = x.dims4()?;
    let (_, _, kernel_height, kernel_width) = weight.dims4()?;
    let kept_weight = x.track_op().then(|| weight.detach());
    let kept_x = weight.track_op().then(|| x.detach());
    let bias_tracks = tracks(bias);
    record("conv2d", output, &[Some(x), Some(weight), bias], move |gradient| {
        let for_x = match &kept_weight {
            Some(weight) => {
                Some(input_gradient(gradient, &PackedWeight::pack(weight)?, [height, width], params)?)
            }
            None => None,
        };
        let for_weight = match &kept_x {
            Some(x) => Some(conv2d_weight_gradient(gradient, x, [kernel_height, kernel_width], params)?),
            None => None,
        };
        Ok(vec![for_x, for_weight, bias_gradient(bias_tracks, gradient)?])
    })
}

/// What a packed weight computed from `x`, with the gradients of `x` and the bias; of the weight only its packed form is kept.
pub(crate) fn record_packed(
    output: Tensor,
    x: &Tensor,
    weight: &PackedWeight,
    bias: Option<&Tensor>,
    params: Conv2dParams,
) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    let kept = x.track_op().then(|| weight.clone());
    let bias_tracks = tracks(bias);
    record("conv2d", output, &[Some(x), bias], move |gradient| {
        let for_x = match &kept {
            Some(weight) => Some(input_gradient(gradient, weight, [height, width], params)?),
            None => None,
        };
        Ok(vec![for_x, bias_gradient(bias_tracks, gradient)?])
    })
}

fn bias_gradient(tracks: bool, gradient: &Tensor) -> Result<Option<Tensor>> {
    if tracks { sum_channels(gradient).map(Some) } else { Ok(None) }
}

/// The gradient of a convolution's input, of `size`: the convolution of its output's gradient with the turned weight, between whose pixels lie
/// `stride - 1` zeros.
fn input_gradient(
    gradient: &Tensor,
    weight: &PackedWeight,
    size: [usize; 2],
    params: Conv2dParams,
) -> Result<Tensor> {
    let (_, _, kernel_height, kernel_width) = weight.shape().dims4()?;
    let Conv2dParams { stride, padding } = params;
    let kernel = [kernel_height, kernel_width];
    // What the convolution itself pads, on all sides; the rest is written.
    let padded = kernel.map(|side| (side - 1).saturating_sub(padding));
    let padded = padded[0].min(padded[1]);
    let spread_size = [0, 1].map(|axis| size[axis] + kernel[axis] - 1 - 2 * padded);
    let (_, _, height, width) = gradient.dims4()?;
    let whole = Conv2dParams { stride: 1, padding: padded };
    if stride == 1 && [height, width] == spread_size {
        return weight.with_transposed(|weight| weight.conv2d(gradient, None, whole));
    }
    // Where the first pixel comes to; before the start, where the padding is larger than the kernel.
    let first = kernel.map(|side| (side - 1) as isize - padding as isize - padded as isize);
    let gradient = spread(gradient, spread_size, first, stride)?;
    weight.with_transposed(|weight| weight.conv2d(&gradient, None, whole))
}

/// The pixels of `x` in a picture of zeros of another size: the first at `first`, the next ones `stride` pixels on. Those beyond it are left
/// out.
fn spread(x: &Tensor, [height, width]: [usize; 2], first: [isize; 2], stride: usize) -> Result<Tensor> {
    let (batch, channels, old_height, old_width) = x.dims4()?;
    let place = |axis: usize, index: usize, size: usize| {
        let place = first[axis] + (index * stride) as isize;
        usize::try_from(place).ok().filter(|place| *place < size)
    };
    let columns: Vec<_> =
        (0..old_width).filter_map(|column| Some((column, place(1, column, width)?))).collect();
    let x = x.contiguous()?;
    by_float!(x.dtype(), T => {
        let x_values = values::<T>(&x)?;
        let values = x_values.get()?;
        let write = |output: &mut [MaybeUninit<T>]| {
            if height * width == 0 {
                return;
            }
            output.par_chunks_mut(height * width).enumerate().for_each(|(plane, output)| {
                output.fill(MaybeUninit::new(<T as Float>::from_float(0.0)));
                let rows = &values[plane * old_height * old_width..][..old_height * old_width];
                for (row, values) in rows.chunks_exact(old_width.max(1)).enumerate() {
                    if let Some(row) = place(0, row, height) {
                        let output = &mut output[row * width..][..width];
                        columns.iter().for_each(|(from, to)| {
                            output[*to].write(values[*from]);
                        });
                    }
                }
            });
        };
        // SAFETY: the planes are the whole output, and each is filled first.
        let output = unsafe { fill(batch * channels * height * width, write)? };
        Tensor::from_vec(output, (batch, channels, height, width), &Device::Cpu)
    })
}
