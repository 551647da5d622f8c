//! Every level that the machine has, at odd sizes, against plain float64.

use candle_core::{DType, Result, Tensor};
pub(super) use candle_diffusers_test_support::{numbers, values};

use super::panels::DEPTH;
use super::{Level, PackedWeight};
use crate::{Activation, Conv2dParams};

/// Of the largest sum of absolute products: each of a few hundred to a few thousand float32 additions rounds by 6e-8 at most.
pub(super) const BOUND: f64 = 1e-6;

/// Those that the machine has, and those that tests compute in plain code where it does not.
pub(super) fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_available() || matches!(level, Level::Neon | Level::Amx))
}

pub(super) fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Compares with sums of products and the sums of the absolute products.
fn assert_sums(name: &str, actual: &Tensor, expected: &[(f64, f64)]) {
    let actual = values(actual);
    assert_eq!(actual.len(), expected.len(), "{name}");
    for (index, (actual, (sum, scale))) in actual.iter().zip(expected).enumerate() {
        assert!((actual - sum).abs() <= BOUND * scale, "{name}, number {index}: {actual}, expected {sum}");
    }
}

pub(super) fn plain_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Vec<(f64, f64)> {
    let (features, depth) = weight.dims2().unwrap();
    let (x, weight, bias) = (values(x), values(weight), bias.map(values));
    let mut sums = Vec::new();
    for row in 0..x.len() / depth {
        for feature in 0..features {
            let first = bias.as_ref().map_or(0.0, |bias| bias[feature]);
            let products = (0..depth).map(|k| x[row * depth + k] * weight[feature * depth + k]);
            sums.push(products.fold((first, first.abs()), |(sum, scale), p| (sum + p, scale + p.abs())));
        }
    }
    sums
}

pub(super) fn plain_conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    params: Conv2dParams,
) -> Vec<(f64, f64)> {
    let Conv2dParams { stride, padding } = params;
    let (batch, channels, height, width) = x.dims4().unwrap();
    let (out_channels, _, kernel_height, kernel_width) = weight.dims4().unwrap();
    let (x, weight, bias) = (values(x), values(weight), bias.map(values));
    let out = |side: usize, kernel: usize| (side + 2 * padding - kernel) / stride + 1;
    let mut sums = Vec::new();
    for picture in 0..batch {
        for out_channel in 0..out_channels {
            for index in 0..out(height, kernel_height) * out(width, kernel_width) {
                let (out_y, out_x) = (index / out(width, kernel_width), index % out(width, kernel_width));
                let first = bias.as_ref().map_or(0.0, |bias| bias[out_channel]);
                let (mut sum, mut scale) = (first, first.abs());
                for tap in 0..channels * kernel_height * kernel_width {
                    let channel = tap / (kernel_height * kernel_width);
                    let y = out_y * stride + tap / kernel_width % kernel_height;
                    let x_position = out_x * stride + tap % kernel_width;
                    let inside =
                        |position: usize, side: usize| position >= padding && position - padding < side;
                    if inside(y, height) && inside(x_position, width) {
                        let row = (picture * channels + channel) * height + y - padding;
                        let product = x[row * width + x_position - padding]
                            * weight[out_channel * channels * kernel_height * kernel_width + tap];
                        sum += product;
                        scale += product.abs();
                    }
                }
                sums.push((sum, scale));
            }
        }
    }
    sums
}

#[test]
fn linear_at_odd_sizes() {
    for level in levels() {
        for rows in [1, 3, 17, 31, 33] {
            for features in [1, 3, 12, 17, 32, 33, 65] {
                for depth in [1, 3, 17, 31, 33, DEPTH + 1, 5 * DEPTH + 17] {
                    let (x, weight) = (numbers(&[rows, depth], 1), numbers(&[features, depth], 2));
                    let bias = numbers(&[features], 3);
                    let packed = PackedWeight::pack_at(level, &weight).unwrap();
                    for bias in [None, Some(&bias)] {
                        let name = format!("{level:?}, {rows} x {depth} x {features}");
                        let result = packed.linear(&x, bias).unwrap();
                        assert_eq!(result.dims(), [rows, features]);
                        assert_sums(&name, &result, &plain_linear(&x, &weight, bias));
                    }
                }
            }
        }
    }
}

#[test]
fn conv2d_at_odd_sizes() {
    let pictures = [(1, 1), (1, 3), (3, 1), (3, 17), (17, 3), (31, 33), (33, 31), (8, 8)];
    let kernels = [(1, 1, 0), (3, 1, 1), (3, 2, 1), (2, 1, 0), (1, 2, 0), (3, 1, 0), (5, 3, 2), (1, 1, 2)];
    for level in levels() {
        for (height, width) in pictures {
            for (kernel, stride, padding) in kernels {
                if height.min(width) + 2 * padding < kernel {
                    continue;
                }
                for (batch, channels, out_channels) in [(1, 1, 1), (2, 3, 17), (3, 31, 3), (1, 33, 33)] {
                    let x = numbers(&[batch, channels, height, width], 1);
                    let weight = numbers(&[out_channels, channels, kernel, kernel], 2);
                    let bias = numbers(&[out_channels], 3);
                    let bias = (out_channels > 1).then_some(&bias);
                    let params = Conv2dParams { stride, padding };
                    let name = format!("{level:?}, {:?} by {:?}, {params:?}", x.dims(), weight.dims());
                    let result =
                        PackedWeight::pack_at(level, &weight).unwrap().conv2d(&x, bias, params).unwrap();
                    assert_sums(&name, &result, &plain_conv2d(&x, &weight, bias, params));
                }
            }
        }
    }
}

#[test]
fn kernels_need_not_be_square() {
    for level in levels() {
        let (x, weight) = (numbers(&[2, 135, 9, 7], 1), numbers(&[13, 135, 2, 4], 2));
        let params = Conv2dParams { stride: 2, padding: 1 };
        let result = PackedWeight::pack_at(level, &weight).unwrap().conv2d(&x, None, params).unwrap();
        assert_eq!(result.dims(), [2, 13, 5, 3]);
        assert_sums(&format!("{level:?}"), &result, &plain_conv2d(&x, &weight, None, params));
    }
}

#[test]
fn views_are_read_by_their_strides() -> Result<()> {
    for level in levels() {
        let (wide, weight) = (numbers(&[5, 40, 70], 1), numbers(&[70, 33], 2));
        let x = wide.narrow(2, 3, 33)?.narrow(0, 1, 3)?.narrow(1, 2, 31)?;
        let transposed = weight.t()?.contiguous()?.t()?;
        let result = PackedWeight::pack_at(level, &transposed)?.linear(&x, None)?;
        assert_sums(&format!("{level:?}"), &result, &plain_linear(&x.contiguous()?, &weight, None));

        let params = Conv2dParams { stride: 1, padding: 1 };
        let channels_last = numbers(&[2, 19, 18, 7], 3).permute((0, 3, 1, 2))?.narrow(3, 2, 13)?;
        let weight = numbers(&[9, 20, 3, 3], 4).narrow(1, 5, 7)?;
        let result = PackedWeight::pack_at(level, &weight)?.conv2d(&channels_last, None, params)?;
        assert_sums(&format!("{level:?}"), &result, &plain_conv2d(&channels_last, &weight, None, params));
    }
    Ok(())
}

#[test]
fn a_batch_gives_the_bits_of_its_items() -> Result<()> {
    for level in levels() {
        let linear = PackedWeight::pack_at(level, &numbers(&[100, DEPTH + 3], 1))?;
        let x = numbers(&[3, 77, DEPTH + 3], 2);
        let together = linear.linear(&x, None)?;
        // A picture of 25 pixels: the second one's pixels begin within a panel.
        let conv = PackedWeight::pack_at(level, &numbers(&[33, 31, 3, 3], 3))?;
        let params = Conv2dParams { stride: 1, padding: 1 };
        let pictures = numbers(&[3, 31, 5, 5], 4);
        let convolved = conv.conv2d(&pictures, Some(&numbers(&[33], 5)), params)?;
        for item in 0..3 {
            let alone = linear.linear(&x.narrow(0, item, 1)?, None)?;
            assert!(bits(&alone) == bits(&together.narrow(0, item, 1)?), "{level:?}, item {item}");
            let alone = conv.conv2d(&pictures.narrow(0, item, 1)?, Some(&numbers(&[33], 5)), params)?;
            assert!(bits(&alone) == bits(&convolved.narrow(0, item, 1)?), "{level:?}, picture {item}");
        }
        let row = linear.linear(&x.get(1)?.narrow(0, 40, 1)?, None)?;
        assert!(bits(&row) == bits(&together.get(1)?.narrow(0, 40, 1)?), "{level:?}, a row");
    }
    Ok(())
}

#[test]
fn unpacking_gives_the_weight_back() {
    for level in levels() {
        for shape in
            [&[1, 1][..], &[33, DEPTH + 17], &[7, 3, 3, 3], &[320, 40, 3, 3], &[5, 0], &[0, 5], &[0, 3, 1, 1]]
        {
            let weight = numbers(shape, 1);
            let packed = PackedWeight::pack_at(level, &weight).unwrap();
            let unpacked = packed.unpack();
            assert_eq!((packed.shape().dims(), unpacked.dims()), (shape, shape));
            assert!(bits(&unpacked) == bits(&weight), "{level:?}, {shape:?}");
        }
    }
}

#[test]
fn nothing_to_sum_and_nothing_to_write() -> Result<()> {
    let params = Conv2dParams { stride: 1, padding: 0 };
    for level in levels() {
        let bias = numbers(&[3], 1);
        let sums =
            PackedWeight::pack_at(level, &numbers(&[3, 0], 1))?.linear(&numbers(&[2, 0], 1), Some(&bias))?;
        assert_eq!(sums.to_vec2::<f32>()?, [bias.to_vec1::<f32>()?, bias.to_vec1()?]);
        assert_eq!(
            PackedWeight::pack_at(level, &numbers(&[3, 5], 1))?.linear(&numbers(&[0, 5], 1), None)?.dims(),
            [0, 3]
        );
        assert_eq!(
            PackedWeight::pack_at(level, &numbers(&[0, 5], 1))?.linear(&numbers(&[2, 5], 1), None)?.dims(),
            [2, 0]
        );
        let conv = PackedWeight::pack_at(level, &numbers(&[3, 5, 1, 1], 1))?;
        assert_eq!(conv.conv2d(&numbers(&[0, 5, 4, 4], 1), None, params)?.dims(), [0, 3, 4, 4]);
    }
    Ok(())
}

#[test]
fn half_precision_is_summed_in_float32_and_rounded_once() -> Result<()> {
    for level in levels() {
        for dtype in [DType::F16, DType::BF16] {
            // Half of a unit in the last place, and what float32 sums may differ by.
            let round = if dtype == DType::F16 { 2f64.powi(-11) } else { 2f64.powi(-8) };
            for (rows, depth, features) in
                [(1, 1, 1), (5, 700, 9), (33, 2 * DEPTH + 1, 65), (13, 5 * DEPTH + 3, 31)]
            {
                let (x, weight) = (
                    numbers(&[rows, depth], 1).to_dtype(dtype)?,
                    numbers(&[features, depth], 2).to_dtype(dtype)?,
                );
                let bias = numbers(&[features], 3).to_dtype(dtype)?;
                let packed = PackedWeight::pack_at(level, &weight)?;
                assert_eq!((packed.dtype(), packed.unpack().dtype()), (dtype, dtype));
                assert_eq!(values(&packed.unpack()), values(&weight));
                let half = packed.linear(&x, Some(&bias))?;
                assert_eq!(half.dtype(), dtype);
                for (found, (sum, scale)) in values(&half).iter().zip(plain_linear(&x, &weight, Some(&bias)))
                {
                    let bound = BOUND * scale + round * sum.abs() * 1.01 + 1e-7;
                    assert!((found - sum).abs() <= bound, "{level:?}, {dtype:?}: {found} and {sum}");
                }
            }
            for (channels, out_channels, side, stride) in
                [(1, 1, 1, 1), (3, 17, 9, 1), (35, 13, 7, 2), (120, 33, 6, 1)]
            {
                let x = numbers(&[2, channels, side, side + 1], 4).to_dtype(dtype)?;
                let weight = numbers(&[out_channels, channels, 3, 3], 5).to_dtype(dtype)?;
                let params = Conv2dParams { stride, padding: 1 };
                let packed = PackedWeight::pack_at(level, &weight)?;
                assert_eq!(values(&packed.unpack()), values(&weight));
                let half = packed.conv2d(&x, None, params)?;
                for (found, (sum, scale)) in values(&half).iter().zip(plain_conv2d(&x, &weight, None, params))
                {
                    let bound = BOUND * scale + round * sum.abs() * 1.01 + 1e-7;
                    assert!((found - sum).abs() <= bound, "{level:?}, {dtype:?}: {found} and {sum}");
                }
            }
        }
    }
    Ok(())
}

/// `x * (1 + erf(x / sqrt 2)) / 2` in float64, by erf's series and its continued fraction (Abramowitz and Stegun 7.1.5, 7.1.14).
fn plain_gelu(x: f64) -> f64 {
    let t = x.abs() / 2f64.sqrt();
    let tail = if t < 2.5 {
        let (mut term, mut sum) = (t, t);
        for n in 1..80 {
            term *= -t * t / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        1.0 - sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let fraction = (1..60).rev().fold(t, |fraction, n| t + f64::from(n) / 2.0 / fraction);
        (-t * t).exp() / std::f64::consts::PI.sqrt() / fraction
    };
    if x < 0.0 { x * tail / 2.0 } else { x * (1.0 - tail / 2.0) }
}

#[test]
fn what_comes_after_a_product_is_computed_with_it() -> Result<()> {
    assert!((plain_gelu(1.0) - 0.841_344_746_068_543).abs() < 1e-14);
    assert!((plain_gelu(-4.0) + 4.0 * 3.167_124_183_311_99e-5).abs() < 1e-14);
    let round = |dtype| match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => 2f64.powi(-24),
    };
    for level in levels() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let random = |shape: &[usize], seed| numbers(shape, seed).to_dtype(dtype);
            for (rows, depth, features) in [(1, 1, 1), (12, 64, 32), (31, 33, 65), (33, 5 * DEPTH + 2, 192)] {
                let (x, weight) = (random(&[rows, depth], 1)?, random(&[features, depth], 2)?);
                let (bias, addend) = (random(&[features], 3)?, random(&[rows, features], 4)?);
                let packed = PackedWeight::pack_at(level, &weight)?;
                for bias in [None, Some(&bias)] {
                    let name = format!("{level:?}, {dtype:?}, {rows} x {depth} x {features}");
                    let sums = plain_linear(&x, &weight, bias);
                    let found = values(&packed.linear_add(&x, bias, &addend)?);
                    assert_eq!(found.len(), sums.len());
                    for ((found, (sum, scale)), addend) in found.iter().zip(&sums).zip(values(&addend)) {
                        let expected = sum + addend;
                        let bound = BOUND * (scale + 1.0) + round(dtype) * expected.abs() * 1.01;
                        assert!((found - expected).abs() <= bound, "{name}: {found} and {expected}");
                    }
                    for activation in [Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
                        let found = values(&packed.linear_activated(&x, bias, activation)?);
                        for (found, (sum, scale)) in found.iter().zip(&sums) {
                            let expected = match activation {
                                Activation::Silu => sum / (1.0 + (-sum).exp()),
                                Activation::Gelu => plain_gelu(*sum),
                                Activation::QuickGelu => sum / (1.0 + (-1.702 * sum).exp()),
                            };
                            // No slope is greater than 1.13.
                            let bound = 1.2 * BOUND * (scale + 1.0) + round(dtype) * expected.abs() * 1.01;
                            assert!((found - expected).abs() <= bound, "{name}: {found} and {expected}");
                        }
                    }
                    if features % 2 == 1 {
                        assert!(packed.linear_geglu(&x, bias).is_err());
                        continue;
                    }
                    let half = features / 2;
                    let found = packed.linear_geglu(&x, bias)?;
                    assert_eq!(found.dims(), [rows, half]);
                    // Features of 192 take the way that stores nothing in between, those of 32 the other.
                    for (index, found) in values(&found).iter().enumerate() {
                        let place = index / half * features + index % half;
                        let ((value, value_scale), (gate, gate_scale)) = (sums[place], sums[place + half]);
                        let expected = value * plain_gelu(gate);
                        let error = 2.0 * BOUND * (value_scale * gate.abs() + gate_scale * value.abs() + 1.0);
                        let roundings = if features == 192 { 1.0 } else { 4.0 };
                        let size = expected.abs() + (roundings - 1.0) * (value * gate).abs();
                        let bound = error + roundings * round(dtype) * size * 1.01;
                        assert!((found - expected).abs() <= bound, "{name}: {found} and {expected}");
                    }
                }
            }
            for (channels, out_channels, side, kernel, stride) in
                [(1, 1, 1, 1, 1), (33, 17, 9, 1, 1), (35, 13, 7, 3, 2), (20, 33, 12, 3, 1)]
            {
                let x = random(&[2, channels, side, side + 1], 5)?;
                let weight = random(&[out_channels, channels, kernel, kernel], 6)?;
                let params = Conv2dParams { stride, padding: kernel / 2 };
                let packed = PackedWeight::pack_at(level, &weight)?;
                let plain = packed.conv2d(&x, None, params)?;
                for activation in [Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
                    let found = packed.conv2d_activated(&x, None, params, activation)?;
                    let expected = activation.forward(&plain.to_dtype(DType::F32)?)?;
                    for (found, expected) in values(&found).iter().zip(values(&expected)) {
                        let bound = 3.0 * round(dtype) * (expected.abs() + 0.1) + 1e-6;
                        assert!(
                            (found - expected).abs() <= bound,
                            "{level:?}, {dtype:?}: {found}, {expected}"
                        );
                    }
                }
                let addend = random(plain.dims(), 7)?;
                let found = packed.conv2d_add(&x, None, params, &addend)?;
                assert_eq!(found.dims(), plain.dims());
                for ((found, plain), addend) in values(&found).iter().zip(values(&plain)).zip(values(&addend))
                {
                    let expected = plain + addend;
                    let bound = 3.0 * round(dtype) * (plain.abs() + expected.abs()) + 1e-7;
                    assert!((found - expected).abs() <= bound, "{level:?}, {dtype:?}: {found}, {expected}");
                }
            }
        }
    }
    let packed = PackedWeight::pack(&numbers(&[3, 4], 1))?;
    let problem =
        packed.linear_add(&numbers(&[2, 4], 1), None, &numbers(&[3, 2], 1)).unwrap_err().to_string();
    assert!(
        problem.contains("what is added is [3, 2] of f32") && problem.contains("[2, 3] of f32"),
        "{problem}"
    );
    Ok(())
}

#[test]
fn misuse_is_an_error_with_both_shapes() -> Result<()> {
    let params = Conv2dParams { stride: 1, padding: 0 };
    let (linear, conv) =
        (PackedWeight::pack(&numbers(&[3, 4], 1))?, PackedWeight::pack(&numbers(&[3, 4, 3, 3], 1))?);
    let x = numbers(&[2, 5], 1);
    let picture = numbers(&[1, 2, 8, 8], 1);
    let absurd = Conv2dParams { stride: 1, padding: usize::MAX / 4 };
    let problems = [
        (linear.linear(&x, None), "[3, 4], but the input is [2, 5]"),
        (conv.linear(&x, None), "[3, 4, 3, 3], but the input is [2, 5]"),
        (conv.conv2d(&picture, None, params), "[3, 4, 3, 3], but the input is [1, 2, 8, 8]"),
        (linear.conv2d(&picture, None, params), "[3, 4], but the input is [1, 2, 8, 8]"),
        (linear.linear(&numbers(&[2, 4], 1), Some(&x)), "the bias is [2, 5] of f32, expected [3] of f32"),
        (
            conv.conv2d(&numbers(&[1, 4, 2, 2], 1), None, params),
            "2x2 with padding 0 does not fit the kernel, 3x3",
        ),
        (conv.conv2d(&numbers(&[1, 4, 8, 8], 1), None, absurd), "more numbers than can be counted"),
    ];
    for (result, expected) in problems {
        let problem = result.unwrap_err().to_string();
        assert!(problem.contains(expected), "{problem}");
    }
    let problem = linear.linear(&numbers(&[2, 4], 1).to_dtype(DType::BF16)?, None).unwrap_err().to_string();
    assert!(problem.contains("its own dtype, f32") && problem.contains("the input is bf16"), "{problem}");
    let problem = PackedWeight::pack(&numbers(&[3], 1)).unwrap_err().to_string();
    assert!(problem.contains("this one is [3]"), "{problem}");
    Ok(())
}

#[test]
fn numbers_of_a_file_are_packed_as_converted_tensors_are() {
    const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
    for level in levels() {
        for shape in [&[1, 1][..], &[33, 17], &[31, 2 * DEPTH + 3], &[17, 3, 3, 3], &[3, 0]] {
            let weight = numbers(shape, 7);
            for stored in DTYPES {
                let weight = weight.to_dtype(stored).unwrap();
                // Begins at an odd address, one way or the other.
                let mut bytes = vec![0];
                bytes.extend(match stored {
                    DType::F32 => file_bytes(&weight, |value| (value as f32).to_le_bytes()),
                    DType::F16 => file_bytes(&weight, |value| half::f16::from_f64(value).to_le_bytes()),
                    _ => file_bytes(&weight, |value| half::bf16::from_f64(value).to_le_bytes()),
                });
                for dtype in DTYPES {
                    let packed =
                        PackedWeight::pack_bytes_at(level, &bytes[1..], stored, shape, dtype).unwrap();
                    assert_eq!((packed.dtype(), packed.shape().dims()), (dtype, shape));
                    let expected = PackedWeight::pack_at(level, &weight.to_dtype(dtype).unwrap()).unwrap();
                    assert_eq!(
                        values(&packed.unpack()),
                        values(&expected.unpack()),
                        "{level:?} {shape:?} {stored:?} {dtype:?}"
                    );
                }
            }
        }
    }
    for (length, stored, shape, dtype) in [
        (5, DType::F16, &[2, 1][..], DType::F32),
        (4, DType::F16, &[2], DType::F32),
        (4, DType::U32, &[1, 1], DType::F32),
        (4, DType::F32, &[1, 1], DType::F64),
        (0, DType::F32, &[usize::MAX, 3], DType::F32),
    ] {
        assert!(PackedWeight::pack_bytes(&vec![0; length], stored, shape, dtype).is_err());
    }
}

#[test]
fn half_precision_of_a_file_computes_in_float32_as_float32_does() {
    for level in levels() {
        for stored in [DType::F16, DType::BF16] {
            for (shape, input) in [
                (&[33, 2 * DEPTH + 3][..], &[3, 17, 2 * DEPTH + 3][..]),
                (&[17, 31, 3, 3], &[2, 31, 17, 19]),
                (&[17, 31, 1, 1], &[1, 31, 3, 1]),
            ] {
                let (weight, x) = (numbers(shape, 3).to_dtype(stored).unwrap(), numbers(input, 5));
                let bytes: Vec<u8> = match stored {
                    DType::F16 => file_bytes(&weight, |value| half::f16::from_f64(value).to_le_bytes()),
                    _ => file_bytes(&weight, |value| half::bf16::from_f64(value).to_le_bytes()),
                };
                let packed = PackedWeight::pack_bytes_at(level, &bytes, stored, shape, DType::F32).unwrap();
                let expected = PackedWeight::pack_at(level, &weight.to_dtype(DType::F32).unwrap()).unwrap();
                let product = |weight: &PackedWeight| match shape.len() {
                    2 => weight.linear(&x, None).unwrap(),
                    _ => weight.conv2d(&x, None, Conv2dParams { stride: 1, padding: shape[2] / 2 }).unwrap(),
                };
                assert!(packed.takes(&x, None));
                assert_eq!(
                    bits(&product(&packed)),
                    bits(&product(&expected)),
                    "{level:?} {stored:?} {shape:?}"
                );
                let transposed = |weight: &PackedWeight| weight.with_transposed(PackedWeight::unpack);
                assert_eq!(bits(&transposed(&packed)), bits(&transposed(&expected)));
            }
        }
    }
}

pub(super) fn file_bytes<const SIZE: usize>(tensor: &Tensor, bytes: impl Fn(f64) -> [u8; SIZE]) -> Vec<u8> {
    values(tensor).into_iter().flat_map(bytes).collect()
}

#[test]
fn zeros_at_the_end_are_those_of_a_padded_picture() -> Result<()> {
    for level in levels() {
        for (height, width) in [(1, 1), (2, 3), (8, 8), (17, 33), (9, 64)] {
            for (kernel, stride, padding, end) in
                [(3, 2, 0, 1), (3, 1, 1, 1), (2, 1, 0, 1), (1, 1, 0, 2), (3, 3, 1, 4)]
            {
                for dtype in [DType::F32, DType::BF16] {
                    let params = Conv2dParams { stride, padding };
                    let x = numbers(&[2, 33, height, width], 1).to_dtype(dtype)?;
                    let weight = numbers(&[17, 33, kernel, kernel], 2).to_dtype(dtype)?;
                    let packed = PackedWeight::pack_at(level, &weight)?;
                    let padded = x.pad_with_zeros(2, 0, end)?.pad_with_zeros(3, 0, end)?;
                    if height.min(width) + end + 2 * padding < kernel {
                        assert!(packed.conv2d_padded_at_end(&x, None, params, end).is_err());
                        continue;
                    }
                    let result = packed.conv2d_padded_at_end(&x, None, params, end)?;
                    let name =
                        format!("{level:?}, {dtype:?}, {height}x{width} by {kernel}, {params:?}, {end}");
                    let (result, expected) = (result, packed.conv2d(&padded, None, params)?);
                    assert_eq!(result.dims(), expected.dims(), "{name}");
                    if params != (Conv2dParams { stride: 1, padding: 1 }) {
                        let result = bits(&result.to_dtype(DType::F32)?);
                        assert!(result == bits(&expected.to_dtype(DType::F32)?), "{name}");
                        continue;
                    }
                    // The padded picture may be filtered.
                    let plain = plain_conv2d(
                        &padded.to_dtype(DType::F32)?,
                        &weight.to_dtype(DType::F32)?,
                        None,
                        params,
                    );
                    for (actual, (sum, scale)) in values(&result.to_dtype(DType::F32)?).iter().zip(plain) {
                        let bound = if dtype == DType::F32 { BOUND } else { 1.0 / 128.0 };
                        assert!((actual - sum).abs() <= bound * scale, "{name}: {actual}, expected {sum}");
                    }
                }
            }
        }
    }
    Ok(())
}
