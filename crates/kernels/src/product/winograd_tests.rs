//! Winograd's filtering at every level that the machine has, against plain float64.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::conv2d::{Input, Method, conv2d_by, conv2d_normed, normalizes};
use super::geometry::Scale;
use super::multiply::After;
use super::packed::Numbers;
use super::tests::{bits, levels, numbers, plain_conv2d, values};
use super::winograd::Winograd;
use super::winograd_transforms::{Added, Pictures, Planes, Transforms};
use super::{Level, PackedWeight};
use crate::{Conv2dParams, GroupNormSilu};

const WINOGRAD: [Method; 2] = [Method::Winograd { outputs: 2 }, Method::Winograd { outputs: 4 }];
const SAME_SIZE: Conv2dParams = Conv2dParams { stride: 1, padding: 1 };

/// The root mean square and the greatest error, as parts of the root mean square of the sums in float64.
fn relative_errors(actual: &Tensor, expected: &[(f64, f64)]) -> (f64, f64) {
    let count = expected.len() as f64;
    let size = (expected.iter().map(|(sum, _)| sum * sum).sum::<f64>() / count).sqrt();
    let errors: Vec<f64> =
        values(actual).iter().zip(expected).map(|(actual, (sum, _))| (actual - sum).abs() / size).collect();
    let mean_square = errors.iter().map(|error| error * error).sum::<f64>() / count;
    (mean_square.sqrt(), errors.into_iter().fold(0.0, f64::max))
}

#[test]
fn winograd_at_odd_sizes() {
    let pictures = [(1, 1), (1, 3), (3, 17), (31, 1), (4, 4), (5, 6), (8, 8), (2, 130), (17, 33)];
    for (height, width) in pictures {
        for (batch, channels, out_channels) in [(1, 1, 1), (2, 3, 17), (3, 33, 31), (1, 258, 49)] {
            let x = numbers(&[batch, channels, height, width], 1);
            let weight = numbers(&[out_channels, channels, 3, 3], 2);
            let bias = numbers(&[out_channels], 3);
            let bias = (out_channels > 1).then_some(&bias);
            let expected = plain_conv2d(&x, &weight, bias, SAME_SIZE);
            for level in levels() {
                let packed = PackedWeight::pack_at(level, &weight).unwrap();
                for method in WINOGRAD {
                    let result =
                        conv2d_by(Some(method), Input::plain(&x), &packed, bias, SAME_SIZE, After::Nothing)
                            .unwrap();
                    let (_, worst) = relative_errors(&result, &expected);
                    let name = format!("{level:?}, {method:?}, {:?} by {:?}", x.dims(), weight.dims());
                    assert!(worst < 2e-5, "{name}: {worst:.1e}");
                }
            }
        }
    }
}

/// Normally distributed numbers at the channels of real models. `cargo test --release -- --nocapture errors_of` prints what the README says.
#[test]
fn errors_of_winograd_at_real_depths() -> Result<()> {
    for channels in [128, 320, 1280] {
        let x = Tensor::randn(0f32, 1.0, (1, channels, 8, 12), &Device::Cpu)?;
        let weight = Tensor::randn(0f32, 1.0, (12, channels, 3, 3), &Device::Cpu)?;
        let expected = plain_conv2d(&x, &weight, None, SAME_SIZE);
        for level in levels() {
            let packed = PackedWeight::pack_at(level, &weight)?;
            for (method, most) in [(Method::Direct, 4e-7), (WINOGRAD[0], 8e-7), (WINOGRAD[1], 2.5e-6)] {
                let result =
                    conv2d_by(Some(method), Input::plain(&x), &packed, None, SAME_SIZE, After::Nothing)?;
                let (mean, worst) = relative_errors(&result, &expected);
                println!("{level:?}, {channels} channels, {method:?}: {mean:.1e}, at most {worst:.1e}");
                assert!(mean < most && worst < 10.0 * most, "{method:?}: {mean:.1e}, at most {worst:.1e}");
            }
        }
    }
    Ok(())
}

#[test]
fn winograd_gives_the_bits_of_a_batchs_items() -> Result<()> {
    for level in levels() {
        for method in WINOGRAD {
            let weight = PackedWeight::pack_at(level, &numbers(&[100, 60, 3, 3], 1))?;
            let (pictures, bias) = (numbers(&[3, 60, 19, 21], 2), numbers(&[100], 3));
            let convolve = |pictures: &Tensor| {
                conv2d_by(
                    Some(method),
                    Input::plain(pictures),
                    &weight,
                    Some(&bias),
                    SAME_SIZE,
                    After::Nothing,
                )
            };
            let together = convolve(&pictures)?;
            for item in 0..3 {
                let alone = convolve(&pictures.narrow(0, item, 1)?)?;
                assert!(bits(&alone) == bits(&together.narrow(0, item, 1)?), "{level:?}, {method:?}, {item}");
            }
            // What shares a panel with a picture's tiles is not even multiplied by zero.
            let mut numbers = pictures.flatten_all()?.to_vec1::<f32>()?;
            numbers[60 * 19 * 21..].fill(f32::NAN);
            let beside_nan = convolve(&Tensor::from_vec(numbers, pictures.dims(), &Device::Cpu)?)?;
            assert!(bits(&beside_nan.narrow(0, 0, 1)?) == bits(&together.narrow(0, 0, 1)?));
        }
    }
    Ok(())
}

/// A picture of several tasks, and several groups of features: whether the weight is transformed whole or group by group.
#[test]
fn a_weight_is_transformed_at_once_or_in_parts() -> Result<()> {
    let (batch, channels, height, width) = (2, 259, 37, 41);
    let (x, weight) = (numbers(&[batch, channels, height, width], 1), numbers(&[110, channels, 3, 3], 2));
    let expected = plain_conv2d(&x, &weight, None, SAME_SIZE);
    let pixels = x.flatten_all()?.to_vec1::<f32>()?;
    for level in levels() {
        let packed = PackedWeight::pack_at(level, &weight)?;
        let Numbers::F32(kernel, panels) = packed.numbers() else { panic!("{:?}", packed.dtype()) };
        for outputs in [2, 4] {
            let compute = |shared_bytes| {
                let planes = Planes { channels, height, width, scale: Scale::One };
                let input = Pictures { values: &pixels[..], planes, normed: None };
                let transforms = Transforms::new(level, outputs);
                let weight = panels;
                let added = Added { bias: None, addend: None, activation: None };
                Winograd { kernel, weight, added, input, batch, transforms, shared_bytes }.compute()
            };
            let in_parts = compute(1)?;
            assert!(in_parts == compute(usize::MAX)?, "{level:?}, {outputs}");
            let result = Tensor::from_vec(in_parts, (batch, 110, height, width), &Device::Cpu)?;
            let (_, worst) = relative_errors(&result, &expected);
            assert!(worst < 2e-5, "{level:?}, {outputs}: {worst:.1e}");
        }
    }
    Ok(())
}

#[test]
fn half_precision_is_filtered_in_float32_and_rounded_once() -> Result<()> {
    for dtype in [DType::F16, DType::BF16] {
        // Half of a unit in the last place.
        let round = if dtype == DType::F16 { 2f64.powi(-11) } else { 2f64.powi(-8) };
        for (height, width) in [(1, 3), (4, 4), (5, 17), (8, 66), (31, 33)] {
            let x = numbers(&[2, 33, height, width], 1).to_dtype(dtype)?;
            let weight = numbers(&[49, 33, 3, 3], 2).to_dtype(dtype)?;
            let bias = numbers(&[49], 3).to_dtype(dtype)?;
            let expected = plain_conv2d(&x, &weight, Some(&bias), SAME_SIZE);
            let added = numbers(&[2, 49, height, width], 4).to_dtype(dtype)?;
            let (zeros, addend) = (vec![0.0; expected.len()], values(&added));
            // Tiles compute all products of bfloat16.
            for level in levels().filter(|level| (*level, dtype) != (Level::Amx, DType::BF16)) {
                let packed = PackedWeight::pack_at(level, &weight)?;
                for method in WINOGRAD {
                    for (after, addend) in [(After::Nothing, &zeros), (After::Add(&added), &addend)] {
                        let result = conv2d_by(
                            Some(method),
                            Input::plain(&x),
                            &packed,
                            Some(&bias),
                            SAME_SIZE,
                            after,
                        )?;
                        assert_eq!(result.dtype(), dtype);
                        for ((found, (sum, scale)), addend) in
                            values(&result).iter().zip(&expected).zip(addend)
                        {
                            let sum = sum + addend;
                            let bound = 2e-6 * scale + round * sum.abs() * 1.01 + 1e-7;
                            assert!((found - sum).abs() <= bound, "{level:?}, {method:?}: {found} and {sum}");
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn upsampled_pictures_are_read_where_they_are() -> Result<()> {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for (height, width) in [(1, 1), (1, 3), (3, 2), (5, 17), (4, 33), (9, 67)] {
            let x = numbers(&[2, 9, height, width], 1).to_dtype(dtype)?;
            let larger = crate::upsample_nearest2d(&x)?;
            let weight = numbers(&[7, 9, 3, 3], 2).to_dtype(dtype)?;
            let bias = numbers(&[7], 3).to_dtype(dtype)?;
            for level in levels() {
                let packed = PackedWeight::pack_at(level, &weight)?;
                let is_in_tiles = (level, dtype) == (Level::Amx, DType::BF16);
                let methods = [Method::Direct].into_iter().chain(WINOGRAD);
                for method in methods.filter(|method| *method == Method::Direct || !is_in_tiles) {
                    for stride in [1, 2] {
                        if stride == 2 && method != Method::Direct {
                            continue;
                        }
                        let params = Conv2dParams { stride, padding: 1 };
                        let convolve = |x: &Tensor, scale| {
                            let after = After::Nothing;
                            conv2d_by(
                                Some(method),
                                Input { scale, ..Input::plain(x) },
                                &packed,
                                Some(&bias),
                                params,
                                after,
                            )
                        };
                        let (found, expected) = (convolve(&x, Scale::Two)?, convolve(&larger, Scale::One)?);
                        assert_eq!(found.dims(), expected.dims());
                        assert!(values(&found) == values(&expected), "{level:?}, {method:?}, {dtype:?}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_norm_that_is_read_through_is_the_one_that_is_stored() -> Result<()> {
    let channels = 24;
    for (batch, height, width) in [(1, 64, 64), (2, 65, 67)] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let x = numbers(&[batch, channels, height, width], 1).affine(3.0, 0.5)?.to_dtype(dtype)?;
            let packed = PackedWeight::pack(&numbers(&[17, channels, 3, 3], 2).to_dtype(dtype)?)?;
            let [bias, addend, vectors] = [vec![17], vec![batch, 17, height, width], vec![batch, channels]]
                .map(|shape| numbers(&shape, 3).to_dtype(dtype).unwrap());
            let [scale, shift] = [4, 5].map(|seed| numbers(&[channels], seed).to_dtype(dtype).unwrap());
            for vectors in [None, Some(&vectors)] {
                let norm = GroupNormSilu { vectors, groups: 6, weight: &scale, bias: &shift, eps: 1e-5 };
                for addend in [None, Some(&addend)] {
                    let read = norm.channels(&x)?.unwrap();
                    let after = addend.map_or(After::Nothing, After::Add);
                    let through = conv2d_normed(&x, &read, &packed, Some(&bias), SAME_SIZE, after)?;
                    let stored = norm.apply(&x)?;
                    let stored = match addend {
                        Some(addend) => packed.conv2d_add(&stored, Some(&bias), SAME_SIZE, addend)?,
                        None => packed.conv2d(&stored, Some(&bias), SAME_SIZE)?,
                    };
                    assert_eq!(through.dtype(), dtype);
                    let largest = values(&stored).into_iter().fold(0.0, |a: f64, b| a.max(b.abs()));
                    // Half precision rounds what is stored.
                    let bound = match dtype {
                        DType::F32 => 0.0,
                        DType::F16 => 2e-3,
                        _ => 2e-2,
                    };
                    for (through, stored) in values(&through).into_iter().zip(values(&stored)) {
                        assert!(
                            (through - stored).abs() <= bound * largest,
                            "{dtype:?}: {through}, {stored}"
                        );
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_norm_is_read_through_where_it_would_be_large_and_nothing_is_to_be_differentiated() -> Result<()> {
    let weight = PackedWeight::pack(&numbers(&[9, 8, 3, 3], 1))?;
    let zeros = |height| Tensor::zeros((1, 8, height, 2048), DType::F32, &Device::Cpu);
    assert!(
        normalizes(&zeros(2049)?, &weight, SAME_SIZE)? && !normalizes(&zeros(2048)?, &weight, SAME_SIZE)?
    );
    assert!(!normalizes(&zeros(2049)?, &weight, Conv2dParams { stride: 2, padding: 1 })?);
    let [scale, shift] = [numbers(&[8], 3), numbers(&[8], 4)];
    let norm = GroupNormSilu { vectors: None, groups: 4, weight: &scale, bias: &shift, eps: 1e-5 };
    let through = weight.conv2d_normed(&zeros(2049)?, norm, None, SAME_SIZE, None)?;
    let stored = weight.conv2d(&norm.apply(&zeros(2049)?)?, None, SAME_SIZE)?;
    assert!((through - stored)?.abs()?.max_all()?.to_scalar::<f32>()? == 0.0);

    let x = Var::from_tensor(&numbers(&[1, 8, 20, 20], 2))?;
    let found = weight.conv2d_normed(x.as_tensor(), norm, None, SAME_SIZE, None)?.sum_all()?.backward()?;
    let expected = weight.conv2d(&norm.apply(x.as_tensor())?, None, SAME_SIZE)?.sum_all()?.backward()?;
    assert!(values(found.get(&x).unwrap()) == values(expected.get(&x).unwrap()));
    let wrong = GroupNormSilu { groups: 3, ..norm };
    let problem = weight.conv2d_normed(&x, wrong, None, SAME_SIZE, None).unwrap_err().to_string();
    assert!(problem.contains("3 groups"), "{problem}");
    Ok(())
}

#[test]
fn nothing_to_filter() -> Result<()> {
    let weight = PackedWeight::pack(&numbers(&[5, 9, 3, 3], 1))?;
    for method in WINOGRAD {
        let none = conv2d_by(
            Some(method),
            Input::plain(&numbers(&[0, 9, 20, 20], 2)),
            &weight,
            None,
            SAME_SIZE,
            After::Nothing,
        )?;
        assert_eq!(none.dims(), [0, 5, 20, 20]);
        let no_channels = PackedWeight::pack(&numbers(&[5, 0, 3, 3], 1))?;
        let bias = numbers(&[5], 2);
        let flat = conv2d_by(
            Some(method),
            Input::plain(&numbers(&[1, 0, 7, 7], 2)),
            &no_channels,
            Some(&bias),
            SAME_SIZE,
            After::Nothing,
        )?;
        assert_eq!(flat.get(0)?.flatten(1, 2)?.mean(1)?.dims(), [5]);
        assert_eq!(
            flat.get(0)?.get(4)?.get(6)?.get(6)?.to_scalar::<f32>()?,
            bias.get(4)?.to_scalar::<f32>()?
        );
    }
    Ok(())
}

/// Channels in and out, side of the picture, batch.
const CONVOLUTIONS: [[usize; 4]; 16] = [
    [320, 320, 64, 2],
    [960, 320, 64, 2],
    [640, 640, 32, 2],
    [1920, 640, 32, 2],
    [1280, 1280, 16, 2],
    [2560, 1280, 16, 2],
    [1280, 1280, 8, 2],
    [512, 512, 64, 1],
    [512, 512, 128, 1],
    [256, 256, 256, 1],
    [128, 128, 512, 1],
    [4, 320, 64, 2],
    [320, 4, 64, 2],
    [640, 640, 12, 2],
    [640, 640, 6, 2],
    [640, 640, 4, 2],
];

/// Prints billions of operations a second, those of the direct method, of each method in turn: of all threads by the clock, and of one by the
/// processor's time (on Linux), which other work on the machine changes less. The quickest of `REPETITIONS`.
#[test]
#[ignore = "prints times: cargo test --release -- --ignored --nocapture methods_in_turn"]
fn methods_in_turn() -> Result<()> {
    const REPETITIONS: usize = 7;
    println!("{}: direct, 2x2, 4x4; by the clock, and a thread", Level::current()?.name());
    for [inputs, outputs, side, batch] in CONVOLUTIONS {
        let x = Tensor::randn(0f32, 1.0, (batch, inputs, side, side), &Device::Cpu)?;
        let weight = PackedWeight::pack(&Tensor::randn(0f32, 1.0, (outputs, inputs, 3, 3), &Device::Cpu)?)?;
        let (mut by_clock, mut by_thread) = ([f64::MAX; 3], [f64::MAX; 3]);
        for _ in 0..REPETITIONS {
            for (index, method) in [Method::Direct, WINOGRAD[0], WINOGRAD[1]].into_iter().enumerate() {
                let (start, used) = (Instant::now(), processor_seconds());
                conv2d_by(Some(method), Input::plain(&x), &weight, None, SAME_SIZE, After::Nothing)?;
                by_clock[index] = by_clock[index].min(start.elapsed().as_secs_f64());
                by_thread[index] = by_thread[index].min(processor_seconds() - used);
            }
        }
        let operations = (2 * batch * inputs * outputs * (3 * side).pow(2)) as f64;
        let rates =
            |seconds: [f64; 3]| seconds.map(|seconds| format!("{:6.0}", operations / seconds / 1e9)).concat();
        let name = format!("{inputs} to {outputs}, {side}x{side}, batch {batch}");
        println!("{name:<32}{}   {}", rates(by_clock), rates(by_thread));
    }
    Ok(())
}

/// What all threads have computed so far.
fn processor_seconds() -> f64 {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return f64::NAN };
    let nanoseconds = |thread: std::fs::DirEntry| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    };
    threads.flatten().filter_map(nanoseconds).sum::<f64>() / 1e9
}
