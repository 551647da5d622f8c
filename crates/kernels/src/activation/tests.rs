use candle_core::{D, DType, Device, Result, Tensor};

use super::*;
use crate::cpu::testing::{as_view, assert_near, bound, doubles, levels, numbers};

/// x times the normal distribution up to it, from the sum and the continued fraction of Abramowitz and Stegun, 26.2.10 and 26.2.14.
pub(super) fn plain_gelu(x: f64) -> f64 {
    let distance = x.abs();
    let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let tail = if distance < 3.0 {
        let (mut term, mut sum) = (distance, distance);
        for index in 1..100 {
            term *= distance * distance / f64::from(2 * index + 1);
            sum += term;
        }
        0.5 - density * sum
    } else {
        let fraction =
            (1..200).rev().fold(distance, |fraction, index| distance + f64::from(index) / fraction);
        density / fraction
    };
    x.max(0.0) - distance * tail
}

fn plain_silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// Every sign, from the smallest numbers to 100.
fn many() -> Vec<f32> {
    (0..200_000).map(|index| (index - 100_000) as f32 * 1e-3 + (index % 7) as f32 * 1e-5).collect()
}

fn worst(level: Level, function: impl Pointwise<1>, plain: fn(f64) -> f64) -> f64 {
    let values = many();
    let results = cpu::map(level, &values, function).unwrap();
    let errors = values.iter().zip(results).map(|(value, result)| {
        let expected = plain(f64::from(*value));
        (f64::from(result) - expected).abs() / expected.abs().max(1.0)
    });
    errors.fold(0.0, f64::max)
}

#[test]
fn errors_are_those_of_float32() {
    for level in levels() {
        let gelu = worst(level, Gelu, plain_gelu);
        let silu = worst(level, Silu, plain_silu);
        let quick = worst(level, QuickGelu, |x| x / (1.0 + (-f64::from(1.702f32) * x).exp()));
        println!("{level:?}: gelu {gelu:.2e}, silu {silu:.2e}, quick_gelu {quick:.2e}");
        assert!(gelu < 2e-7 && silu < 2e-7 && quick < 2e-7, "{level:?}: {gelu:e} {silu:e} {quick:e}");
    }
}

#[test]
fn far_from_zero_and_no_numbers() {
    let x = [f32::INFINITY, 1e30, -1e30, f32::NEG_INFINITY, f32::NAN, -0.0, f32::MIN_POSITIVE];
    for level in levels() {
        let gelu = cpu::map(level, &x, Gelu).unwrap();
        assert_eq!(gelu[..4], [f32::INFINITY, 1e30, 0.0, 0.0], "{level:?}");
        assert!(gelu[4].is_nan() && gelu[5] == 0.0);
        let silu = cpu::map(level, &x, Silu).unwrap();
        assert_eq!(silu[..3], [f32::INFINITY, 1e30, 0.0], "{level:?}");
        // -infinity times a sigmoid of zero, as in torch.
        assert!(silu[3].is_nan() && silu[4].is_nan() && silu[5] == 0.0);
    }
}

#[test]
fn any_size_dtype_and_view() -> Result<()> {
    for level in levels() {
        for shape in [&[1][..], &[3], &[17], &[2, 31], &[3, 33, 5], &[2, 100, 100]] {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let x = as_view(&numbers(shape, 1).affine(5.0, 0.0)?.to_dtype(dtype)?);
                let name = format!("{level:?}, {shape:?} of {dtype:?}");
                let result = each_at(level, &x, Silu)?;
                assert_eq!((result.dims(), result.dtype()), (shape, dtype));
                let expected: Vec<f64> = doubles(&x).into_iter().map(plain_silu).collect();
                assert_near(&name, &result, &expected, bound(dtype));
            }
        }
    }
    Ok(())
}

#[test]
fn geglu_takes_the_halves_of_each_row() -> Result<()> {
    for level in levels() {
        for shape in [&[2][..], &[3, 6], &[1, 17, 34], &[3, 31, 66], &[200, 256]] {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let x = as_view(&numbers(shape, 1).affine(3.0, 0.0)?.to_dtype(dtype)?);
                let width = shape[shape.len() - 1] / 2;
                let expected: Vec<f64> = doubles(&x)
                    .chunks(2 * width)
                    .flat_map(|row| {
                        (0..width).map(|i| row[i] * plain_gelu(row[width + i])).collect::<Vec<_>>()
                    })
                    .collect();
                let result = geglu_at(level, &x)?;
                assert_eq!(result.dim(D::Minus1)?, width);
                assert_near(&format!("{level:?}, {shape:?} of {dtype:?}"), &result, &expected, bound(dtype));
            }
        }
    }
    Ok(())
}

#[test]
fn nothing_stays_nothing() -> Result<()> {
    for shape in [&[0][..], &[3, 0], &[0, 4]] {
        let x = Tensor::zeros(shape, DType::F32, &Device::Cpu)?;
        assert_eq!(silu(&x)?.dims(), shape);
        assert_eq!(gelu(&x)?.elem_count(), 0);
        assert_eq!(geglu(&x)?.elem_count(), 0);
    }
    assert_eq!(silu(&Tensor::new(0f32, &Device::Cpu)?)?.to_scalar::<f32>()?, 0.0);
    Ok(())
}
