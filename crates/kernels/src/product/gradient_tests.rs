//! Gradients at every level that the machine has, at odd sizes, against plain float64.

use candle_core::{DType, Result, Tensor};

use super::PackedWeight;
use super::gradient::{conv2d_weight_gradient_at, linear_weight_gradient_at};
use super::panels::DEPTH;
use super::tests::{BOUND, levels, numbers, values};
use crate::Conv2dParams;
use crate::cpu::testing::{as_view, assert_sums};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn sums(products: impl Iterator<Item = f64>) -> (f64, f64) {
    products.fold((0.0, 0.0), |(sum, scale), product| (sum + product, scale + product.abs()))
}

fn plain_linear(gradient: &Tensor, x: &Tensor) -> Vec<(f64, f64)> {
    let ((rows, out_features), in_features) = (gradient.dims2().unwrap(), x.dims()[1]);
    let (gradient, x) = (values(gradient), values(x));
    let places = (0..out_features).flat_map(|out| (0..in_features).map(move |input| (out, input)));
    let at = |(out, input): (usize, usize)| {
        sums((0..rows).map(|row| gradient[row * out_features + out] * x[row * in_features + input]))
    };
    places.map(at).collect()
}

fn plain_conv2d(gradient: &Tensor, x: &Tensor, kernel: usize, params: Conv2dParams) -> Vec<(f64, f64)> {
    let (batch, out_channels, out_height, out_width) = gradient.dims4().unwrap();
    let (_, channels, height, width) = x.dims4().unwrap();
    let (gradient, x) = (values(gradient), values(x));
    let out_pixels = out_height * out_width;
    let taps = channels * kernel * kernel;
    let places = (0..out_channels).flat_map(|out| (0..taps).map(move |tap| (out, tap)));
    let at = |(out, tap): (usize, usize)| {
        let (channel, tap_y, tap_x) = (tap / (kernel * kernel), tap / kernel % kernel, tap % kernel);
        sums((0..batch * out_pixels).filter_map(|pixel| {
            let (picture, pixel) = (pixel / out_pixels, pixel % out_pixels);
            let inside =
                |place: usize, side: usize| place.checked_sub(params.padding).filter(|place| *place < side);
            let row = inside(pixel / out_width * params.stride + tap_y, height)?;
            let column = inside(pixel % out_width * params.stride + tap_x, width)?;
            let number = x[((picture * channels + channel) * height + row) * width + column];
            Some(gradient[(picture * out_channels + out) * out_pixels + pixel] * number)
        }))
    };
    places.map(at).collect()
}

fn check_linear(gradient: &Tensor, x: &Tensor) -> Result<()> {
    let expected = plain_linear(gradient, x);
    for level in levels() {
        let name = format!("{level:?}, {:?}, {:?} and {:?}", x.dtype(), gradient.dims(), x.dims());
        let found = linear_weight_gradient_at(level, gradient, x)?;
        assert_eq!((found.dims(), found.dtype()), (&[gradient.dims()[1], x.dims()[1]][..], x.dtype()));
        assert_sums(&name, &found, &expected, BOUND);
    }
    Ok(())
}

fn check_conv2d(gradient: &Tensor, x: &Tensor, kernel: usize, params: Conv2dParams) -> Result<()> {
    let expected = plain_conv2d(gradient, x, kernel, params);
    let shape = [gradient.dims()[1], x.dims()[1], kernel, kernel];
    for level in levels() {
        let name = format!("{level:?}, {:?}, {:?}, {shape:?}, {params:?}", x.dtype(), x.dims());
        let found = conv2d_weight_gradient_at(level, gradient, x, [kernel; 2], params)?;
        assert_eq!((found.dims(), found.dtype()), (&shape[..], x.dtype()));
        assert_sums(&name, &found, &expected, BOUND);
    }
    Ok(())
}

/// The size of the gradient of a convolution's output; `None` where the kernel does not fit.
pub(super) fn out_side(side: usize, kernel: usize, params: Conv2dParams) -> Option<usize> {
    Some((side + 2 * params.padding).checked_sub(kernel)? / params.stride + 1)
}

#[test]
fn weights_of_linear_layers_at_odd_sizes() -> Result<()> {
    for dtype in DTYPES {
        for rows in [1, 3, 17, 31, 33, DEPTH + 1, 5 * DEPTH + 17] {
            for out_features in [1, 3, 17, 31, 33] {
                for in_features in [1, 3, 17, 31, 33] {
                    let gradient = numbers(&[rows, out_features], 1).to_dtype(dtype)?;
                    check_linear(&gradient, &numbers(&[rows, in_features], 2).to_dtype(dtype)?)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn weights_of_convolutions_at_odd_sizes() -> Result<()> {
    let pictures = [(1, 1), (1, 3), (3, 1), (3, 17), (17, 3), (31, 33)];
    let kernels = [(1, 1, 0), (1, 2, 0), (1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 0), (3, 2, 0)];
    for (height, width) in pictures {
        for (kernel, stride, padding) in kernels {
            let params = Conv2dParams { stride, padding };
            let out = [height, width].map(|side| out_side(side, kernel, params));
            let [Some(out_height), Some(out_width)] = out else { continue };
            for (batch, channels, out_channels) in [(1, 1, 1), (2, 3, 17), (3, 17, 3), (1, 33, 31)] {
                for dtype in DTYPES {
                    let x = numbers(&[batch, channels, height, width], 1).to_dtype(dtype)?;
                    let gradient = numbers(&[batch, out_channels, out_height, out_width], 2);
                    check_conv2d(&gradient.to_dtype(dtype)?, &x, kernel, params)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn views_are_read_by_their_strides() -> Result<()> {
    for dtype in DTYPES {
        let view = |shape: &[usize], seed| numbers(shape, seed).to_dtype(dtype).map(|x| as_view(&x));
        check_linear(&view(&[33, 17], 1)?, &view(&[33, 31], 2)?)?;
        let params = Conv2dParams { stride: 2, padding: 1 };
        check_conv2d(&view(&[2, 3, 9, 2], 1)?, &view(&[2, 17, 17, 3], 2)?, 3, params)?;
    }
    Ok(())
}

#[test]
fn inputs_of_linear_layers_have_the_bits_of_a_transposed_copy() -> Result<()> {
    for level in levels() {
        for dtype in DTYPES {
            for (rows, out_features, in_features) in
                [(1, 1, 1), (3, 17, 31), (33, 64, 33), (17, DEPTH + 1, 3), (31, 2 * DEPTH, 65)]
            {
                let weight = numbers(&[out_features, in_features], 1).to_dtype(dtype)?;
                let gradient = numbers(&[rows, out_features], 2).to_dtype(dtype)?;
                let packed = PackedWeight::pack_at(level, &weight)?;
                let found = packed.with_transposed(|weight| weight.linear(&gradient, None))?;
                let copied = PackedWeight::pack_at(level, &weight.t()?)?.linear(&gradient, None)?;
                let name = format!("{level:?}, {dtype:?}, {rows} x {out_features} x {in_features}");
                assert_eq!(found.dims(), copied.dims(), "{name}");
                assert!(values(&found) == values(&copied), "{name}");
            }
        }
    }
    Ok(())
}
