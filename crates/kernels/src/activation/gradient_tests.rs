//! Slopes of activations at every level that the machine has, at odd sizes, against plain float64.

use candle_core::{DType, Result};

use super::tests::plain_gelu;
use super::{Gelu, QuickGelu, Silu, Slope, geglu_gradient_at, slopes_at};
use crate::cpu::testing::{as_view, assert_near, bound, doubles, levels, numbers};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// The slope of `x / (1 + exp(-scale x))`.
fn slope_of_sigmoid(x: f64, scale: f64) -> f64 {
    let sigmoid = 1.0 / (1.0 + (-scale * x).exp());
    sigmoid * (1.0 + scale * x * (1.0 - sigmoid))
}

/// The normal distribution up to `x`, and `x` times its density.
fn slope_of_gelu(x: f64) -> f64 {
    let below = if x == 0.0 { 0.5 } else { plain_gelu(x) / x };
    below + x * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

fn check_slopes(name: &str, function: impl Slope, slope: impl Fn(f64) -> f64) -> Result<()> {
    // The last one is several tasks.
    for shape in [&[1][..], &[3], &[1, 1, 1, 1], &[17], &[2, 31], &[3, 33, 5], &[2, 100, 100]] {
        for dtype in DTYPES {
            let x = as_view(&numbers(shape, 1).affine(5.0, 0.0)?.to_dtype(dtype)?);
            let gradient = as_view(&numbers(shape, 2).to_dtype(dtype)?);
            let pairs = doubles(&x).into_iter().zip(doubles(&gradient));
            let expected: Vec<f64> = pairs.map(|(x, gradient)| gradient * slope(x)).collect();
            for level in levels() {
                let found = slopes_at(level, &x, &gradient, function)?;
                assert_eq!((found.dims(), found.dtype()), (shape, dtype));
                let name = format!("{name}, {level:?}, {shape:?} of {dtype:?}");
                assert_near(&name, &found, &expected, 2.0 * bound(dtype));
            }
        }
    }
    Ok(())
}

#[test]
fn slopes_at_odd_sizes() -> Result<()> {
    check_slopes("silu", Silu, |x| slope_of_sigmoid(x, 1.0))?;
    check_slopes("quick_gelu", QuickGelu, |x| slope_of_sigmoid(x, f64::from(1.702f32)))?;
    check_slopes("gelu", Gelu, slope_of_gelu)
}

#[test]
fn gated_gelu_at_odd_sizes() -> Result<()> {
    for shape in [&[2][..], &[1, 1, 2], &[3, 6], &[1, 17, 34], &[3, 31, 66], &[200, 256]] {
        let width = shape[shape.len() - 1] / 2;
        let half = [&shape[..shape.len() - 1], &[width]].concat();
        for dtype in DTYPES {
            let x = as_view(&numbers(shape, 1).affine(3.0, 0.0)?.to_dtype(dtype)?);
            let gradient = as_view(&numbers(&half, 2).to_dtype(dtype)?);
            let mut expected = Vec::new();
            for (row, gradient) in doubles(&x).chunks(2 * width).zip(doubles(&gradient).chunks(width)) {
                let (value, gate) = row.split_at(width);
                expected.extend((0..width).map(|i| gradient[i] * plain_gelu(gate[i])));
                expected.extend((0..width).map(|i| gradient[i] * value[i] * slope_of_gelu(gate[i])));
            }
            for level in levels() {
                let found = geglu_gradient_at(level, &x, &gradient)?;
                assert_eq!((found.dims(), found.dtype()), (shape, dtype));
                let name = format!("{level:?}, {shape:?} of {dtype:?}");
                assert_near(&name, &found, &expected, 2.0 * bound(dtype));
            }
        }
    }
    Ok(())
}
