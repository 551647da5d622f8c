//! The gradients of convolutions' inputs at every level that the machine has, at odd sizes, against plain float64.

use candle_core::{DType, Result, Tensor, Var};

use super::PackedWeight;
use super::gradient_tests::out_side;
use super::tests::{levels, numbers, values};
use crate::Conv2dParams;
use crate::cpu::testing::{as_view, assert_sums};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Of the largest sum of absolute products: Winograd's filtering, which some of these convolutions are computed by, sums more than a pixel's own.
const BOUND: f64 = 2e-6;

/// For each number of an input of `size` the sum of its products, and that of the absolute ones.
fn plain(
    gradient: &Tensor,
    weight: &Tensor,
    [height, width]: [usize; 2],
    params: Conv2dParams,
) -> Vec<(f64, f64)> {
    let Conv2dParams { stride, padding } = params;
    let (batch, out_channels, out_height, out_width) = gradient.dims4().unwrap();
    let (_, channels, kernel_height, kernel_width) = weight.dims4().unwrap();
    let (gradient, weight) = (values(gradient), values(weight));
    let taps = channels * kernel_height * kernel_width;
    let inside = |place: usize, side: usize| place.checked_sub(padding).filter(|place| *place < side);
    let mut sums = vec![(0f64, 0f64); batch * channels * height * width];
    for (place, gradient) in gradient.into_iter().enumerate() {
        let (plane, row, column) =
            (place / (out_height * out_width), place / out_width % out_height, place % out_width);
        let (picture, feature) = (plane / out_channels, plane % out_channels);
        for (tap, weight) in weight[feature * taps..][..taps].iter().enumerate() {
            let channel = tap / (kernel_height * kernel_width);
            let y = inside(row * stride + tap / kernel_width % kernel_height, height);
            let x = inside(column * stride + tap % kernel_width, width);
            if let (Some(y), Some(x)) = (y, x) {
                let sum = &mut sums[((picture * channels + channel) * height + y) * width + x];
                sum.0 += gradient * weight;
                sum.1 += (gradient * weight).abs();
            }
        }
    }
    sums
}

/// `picture` is `(batch, channels, height, width)`. A kernel that does not fit is left out.
fn check(picture: [usize; 4], out_channels: usize, kernel: [usize; 2], params: Conv2dParams) -> Result<()> {
    let [batch, channels, height, width] = picture;
    let out = [out_side(height, kernel[0], params), out_side(width, kernel[1], params)];
    let [Some(out_height), Some(out_width)] = out else { return Ok(()) };
    for dtype in DTYPES {
        let weight = numbers(&[out_channels, channels, kernel[0], kernel[1]], 1).to_dtype(dtype)?;
        let gradient = numbers(&[batch, out_channels, out_height, out_width], 2).to_dtype(dtype)?;
        let (weight, gradient) = (as_view(&weight), as_view(&gradient));
        let sums = plain(&gradient, &weight, [height, width], params);
        let largest = sums.iter().fold(0.0, |largest: f64, (_, scale)| largest.max(*scale));
        let expected: Vec<_> = sums.into_iter().map(|(sum, _)| (sum, largest)).collect();
        let x = Var::from_tensor(&numbers(&picture, 3).to_dtype(dtype)?)?;
        for level in levels() {
            let output = PackedWeight::pack_at(level, &weight)?.conv2d(x.as_tensor(), None, params)?;
            let gradients = (output * &gradient)?.sum_all()?.backward()?;
            let found = gradients.get(&x).unwrap();
            assert_eq!((found.dims(), found.dtype()), (&picture[..], dtype));
            let name = format!("{level:?}, {dtype:?}, {picture:?} by {:?}, {params:?}", weight.dims());
            assert_sums(&name, found, &expected, BOUND);
        }
    }
    Ok(())
}

#[test]
fn inputs_of_convolutions_at_odd_sizes() -> Result<()> {
    // Side, stride, padding; the last ones are padded by more than their kernel reaches.
    let kernels = [
        (1, 1, 0),
        (1, 2, 0),
        (1, 3, 1),
        (2, 1, 0),
        (2, 2, 1),
        (3, 1, 1),
        (3, 2, 1),
        (3, 3, 1),
        (3, 1, 0),
        (3, 2, 0),
        (3, 3, 2),
        (5, 3, 2),
        (1, 1, 2),
        (3, 2, 3),
    ];
    for (height, width) in [(1, 1), (1, 3), (3, 17), (33, 1), (17, 31)] {
        for (side, stride, padding) in kernels {
            for (batch, channels, out_channels) in [(1, 1, 1), (2, 3, 17), (3, 17, 3), (1, 33, 31)] {
                let params = Conv2dParams { stride, padding };
                check([batch, channels, height, width], out_channels, [side, side], params)?;
            }
        }
    }
    Ok(())
}

#[test]
fn kernels_need_not_be_square() -> Result<()> {
    for stride in 1..=3 {
        for padding in 0..=2 {
            check([2, 17, 9, 7], 13, [2, 4], Conv2dParams { stride, padding })?;
            check([1, 3, 8, 11], 9, [5, 1], Conv2dParams { stride, padding })?;
        }
    }
    Ok(())
}
