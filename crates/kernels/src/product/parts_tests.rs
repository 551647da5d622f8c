//! Products of float32's parts, with weights of each dtype that is stored, against plain float64.

use candle_core::{DType, Device, Result, Tensor};

use super::geometry::{Geometry, Scale};
use super::multiply::After;
use super::packed::Numbers;
use super::panels::DEPTH;
use super::tests::{BOUND, bits, levels, numbers, plain_conv2d, plain_linear, values};
use super::{Float32MatmulPrecision, Level, PackedWeight, conv2d, linear};
use crate::Conv2dParams;

use Float32MatmulPrecision::{High, Highest, Medium};

/// How wrong results may be, of the largest sum of absolute products.
const BOUNDS: [(Float32MatmulPrecision, f64); 3] =
    [(Medium, 1.0 / 128.0), (High, 1.0 / 32_768.0), (Highest, BOUND)];

fn levels_of_parts() -> impl Iterator<Item = Level> {
    levels().filter(|level| *level >= Level::Avx512Bf16 && Level::Avx512Bf16.is_available())
}

fn linear_at(precision: Float32MatmulPrecision, x: &Tensor, weight: &PackedWeight) -> Result<Tensor> {
    let after = After::Nothing;
    match weight.numbers() {
        Numbers::F32(kernel, panels) => linear::float32(precision, x, kernel, panels, None, after),
        Numbers::F16(kernel, panels) => linear::float32(precision, x, kernel, panels, None, after),
        Numbers::Bf16(kernel, panels) => linear::float32(precision, x, kernel, panels, None, after),
        Numbers::Bf16Pairs(..) => candle_core::bail!("expected a weight for float32"),
    }
}

fn conv2d_at(
    precision: Float32MatmulPrecision,
    x: &Tensor,
    weight: &PackedWeight,
    params: Conv2dParams,
) -> Result<Tensor> {
    let (x, after) = ((x, Geometry::new(x, Scale::One, weight, params)?), After::Nothing);
    match weight.numbers() {
        Numbers::F32(kernel, panels) => conv2d::float32(precision, x.0, x.1, kernel, panels, None, after),
        Numbers::F16(kernel, panels) => conv2d::float32(precision, x.0, x.1, kernel, panels, None, after),
        Numbers::Bf16(kernel, panels) => conv2d::float32(precision, x.0, x.1, kernel, panels, None, after),
        Numbers::Bf16Pairs(..) => candle_core::bail!("expected a weight for float32"),
    }
}

/// A weight as it is packed of a file of a dtype, and its numbers.
fn stored(level: Level, weight: &Tensor, dtype: DType) -> Result<(PackedWeight, Tensor)> {
    let weight = weight.to_dtype(dtype)?;
    let mut bytes = Vec::new();
    weight.write_bytes(&mut bytes)?;
    let packed = PackedWeight::pack_bytes_at(level, &bytes, dtype, weight.dims(), DType::F32)?;
    Ok((packed, weight.to_dtype(DType::F32)?))
}

fn assert_near(name: &str, result: &Tensor, expected: &[(f64, f64)], bound: f64) {
    let result = values(result);
    assert_eq!(result.len(), expected.len(), "{name}");
    for (actual, (sum, scale)) in result.iter().zip(expected) {
        assert!((actual - sum).abs() <= bound * scale, "{name}: {actual}, {sum}");
    }
}

#[test]
fn linear_at_odd_sizes() -> Result<()> {
    for (level, dtype) in levels_of_parts().flat_map(|level| DTYPES.map(|dtype| (level, dtype))) {
        for rows in [1, 3, 17, 31, 33, 257] {
            for features in [1, 3, 17, 33, 65] {
                for depth in [32, 96, DEPTH + 32, 2 * DEPTH + 64] {
                    let (x, weight) = (numbers(&[rows, depth], 1), numbers(&[features, depth], 2));
                    let (packed, weight) = stored(level, &weight, dtype)?;
                    let expected = plain_linear(&x, &weight, None);
                    for (precision, bound) in BOUNDS {
                        let name =
                            format!("{level:?}, {dtype:?}, {precision:?}, {rows} x {depth} x {features}");
                        let result = linear_at(precision, &x, &packed)?;
                        assert_eq!(result.dims(), [rows, features]);
                        assert_near(&name, &result, &expected, bound);
                        // The bits of an item are those it has alone.
                        let last = linear_at(precision, &x.narrow(0, rows - 1, 1)?, &packed)?;
                        assert!(bits(&last) == bits(&result.narrow(0, rows - 1, 1)?), "{name}");
                    }
                }
            }
        }
    }
    Ok(())
}

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

#[test]
fn convolutions_at_odd_sizes() -> Result<()> {
    let pictures = [(1, 1), (1, 3), (3, 17), (31, 9), (8, 8)];
    for (level, dtype) in levels_of_parts().flat_map(|level| DTYPES.map(|dtype| (level, dtype))) {
        for (height, width) in pictures {
            for (kernel, stride, padding) in [(1, 1, 0), (1, 2, 0), (1, 1, 2), (3, 2, 1), (3, 1, 1)] {
                for (batch, channels, out_channels) in [(1, 32, 1), (2, 96, 17), (3, 32, 33), (1, 64, 96)] {
                    let x = numbers(&[batch, channels, height, width], 1);
                    let weight = numbers(&[out_channels, channels, kernel, kernel], 2);
                    let (packed, weight) = stored(level, &weight, dtype)?;
                    let params = Conv2dParams { stride, padding };
                    let expected = plain_conv2d(&x, &weight, None, params);
                    for (precision, bound) in BOUNDS {
                        let name = format!(
                            "{level:?}, {dtype:?}, {precision:?}, {:?} by {:?}, {params:?}",
                            x.dims(),
                            weight.dims()
                        );
                        assert_near(&name, &conv2d_at(precision, &x, &packed, params)?, &expected, bound);
                    }
                }
            }
        }
    }
    Ok(())
}

/// So that the tests above are of parts, and not of plain float32, which is more accurate than it is asked to be.
#[test]
fn lower_precisions_are_lower() -> Result<()> {
    let (x, weight) = (numbers(&[1, 320, 9, 9], 1), numbers(&[33, 320, 1, 1], 2));
    let params = Conv2dParams { stride: 1, padding: 0 };
    let rows = x.flatten_from(2)?.squeeze(0)?.t()?.contiguous()?;
    for (level, dtype) in levels_of_parts().flat_map(|level| DTYPES.map(|dtype| (level, dtype))) {
        let (packed, weight) = stored(level, &weight, dtype)?;
        let (packed_rows, _) = stored(level, &weight.flatten_from(1)?, dtype)?;
        let expected = plain_conv2d(&x, &weight, None, params);
        let error = |result: &Tensor| {
            let errors = values(result).into_iter().zip(&expected).map(|(a, (b, _))| (a - b).abs());
            errors.fold(0f64, f64::max)
        };
        let by_precision = [Medium, High, Highest].map(|precision| {
            let pixels = conv2d_at(precision, &x, &packed, params).unwrap();
            let rows = linear_at(precision, &rows, &packed_rows).unwrap().t().unwrap();
            assert!((error(&pixels) / error(&rows.contiguous().unwrap()) - 1.0).abs() < 0.5);
            error(&pixels)
        });
        let [medium, high, highest] = by_precision;
        assert!(medium > 100.0 * highest && medium > 20.0 * high, "{level:?}, {dtype:?}: {by_precision:?}");
        if level == Level::Amx {
            assert!(high > 3.0 * highest, "{level:?}, {dtype:?}: {by_precision:?}");
        }
    }
    Ok(())
}

/// `cargo test --release -- --nocapture errors_of_parts` prints what the README says.
#[test]
fn errors_of_parts_of_float32() -> Result<()> {
    let (x, weight) = (
        Tensor::randn(0f32, 1.0, (256, 2880), &Device::Cpu)?,
        Tensor::randn(0f32, 1.0, (64, 2880), &Device::Cpu)?,
    );
    for (level, dtype) in levels_of_parts().flat_map(|level| DTYPES.map(|dtype| (level, dtype))) {
        let (packed, weight) = stored(level, &weight, dtype)?;
        let expected = plain_linear(&x, &weight, None);
        let error = |result: &Tensor| {
            let squares =
                values(result).iter().zip(&expected).map(|(a, (b, _))| (a - b).powi(2)).sum::<f64>();
            (squares / expected.iter().map(|(sum, _)| sum * sum).sum::<f64>()).sqrt()
        };
        let plain = error(&PackedWeight::pack_at(Level::Avx512, &weight)?.linear(&x, None)?);
        println!("{level:?}, weight {dtype:?}: plain float32 {plain:.1e}");
        for (precision, most) in [(Medium, 4e-3), (High, 1e-5), (Highest, 1.2 * plain)] {
            let error = error(&linear_at(precision, &x, &packed)?);
            println!("{level:?}, weight {dtype:?}: {} {error:.1e}", precision.name());
            assert!(error < most, "{level:?}, {dtype:?}, {}: {error:.1e}", precision.name());
        }
    }
    Ok(())
}

/// `cargo test --release -- --ignored --nocapture speed_of_parts` prints times of a thread.
#[test]
#[ignore = "prints times: cargo test --release -- --ignored --nocapture speed_of_parts"]
fn speed_of_parts_of_float32() -> Result<()> {
    for (rows, depth, features) in [(8192, 320, 320), (8192, 320, 2560), (2048, 640, 640), (512, 1280, 1280)]
    {
        let (x, weight) = (numbers(&[rows, depth], 1), numbers(&[features, depth], 2));
        for level in levels_of_parts().filter(|level| level.is_available()) {
            let packed = PackedWeight::pack_at(level, &weight)?;
            let mut best = [f64::INFINITY; 3];
            for _ in 0..9 {
                for ((precision, _), best) in BOUNDS.into_iter().zip(&mut best) {
                    let start = std::time::Instant::now();
                    linear_at(precision, &x, &packed)?;
                    *best = best.min(start.elapsed().as_secs_f64() * 1e3);
                }
            }
            println!("{level:?}, {rows} x {depth} x {features}: medium, high, highest: {best:.2?} ms");
        }
    }
    Ok(())
}
