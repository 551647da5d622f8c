use candle_core::{DType, Result, Tensor};

use super::cpu::{self, GroupNorm, Nothing};
use super::moments::{MomentsOf, PIECE};
use super::{GroupNormSilu, add_group_norm_silu, group_norm, group_norm_silu, layer_norm};
use crate::activation::Silu;
use crate::cpu::run_at;
use crate::cpu::testing::{as_view, assert_near, bound, doubles, levels, numbers};
use crate::elementwise::floats;

/// Normalises runs of `count` numbers, the channels of which have `length` numbers.
fn plain(x: &Tensor, count: usize, length: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> Vec<f64> {
    let (values, weight, bias) = (doubles(x), doubles(weight), doubles(bias));
    let mut result = Vec::new();
    for (run, values) in values.chunks(count).enumerate() {
        let mean = values.iter().sum::<f64>() / count as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count as f64;
        for (index, value) in values.iter().enumerate() {
            let channel = (run * count + index) / length % weight.len();
            result.push((value - mean) / (variance + eps).sqrt() * weight[channel] + bias[channel]);
        }
    }
    result
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

#[test]
fn group_norm_at_odd_sizes() -> Result<()> {
    for level in levels() {
        for (batch, groups, in_group) in [(1, 1, 1), (2, 3, 1), (3, 1, 5), (2, 32, 2), (1, 2, 17)] {
            for rest in [&[1][..], &[3], &[17], &[31, 33], &[70, 71]] {
                let channels = groups * in_group;
                let x = numbers(&[&[batch, channels], rest].concat(), 1);
                let (weight, bias) = (numbers(&[channels], 2), numbers(&[channels], 3));
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    let x = as_view(&x.to_dtype(dtype)?);
                    let length: usize = rest.iter().product();
                    let expected = plain(&x, in_group * length, length, &weight, &bias, 1e-5);
                    let name = format!("{level:?}, {:?} in {groups} groups of {dtype:?}", x.dims());
                    let (weight, bias) = (weight.to_vec1()?, bias.to_vec1()?);
                    let norm = GroupNorm { x: &x, added: None, groups, weight, bias, eps: 1e-5 };
                    let result = norm.compute(level, Nothing)?;
                    assert_eq!((result.dims(), result.dtype()), (x.dims(), dtype));
                    // Where all numbers of a group are equal, but for their last bits, the division makes much of those.
                    assert_near(&name, &result, &expected, 2.0 * bound(dtype));
                    let expected: Vec<f64> = expected.into_iter().map(silu).collect();
                    assert_near(&name, &norm.compute(level, Silu)?, &expected, 2.0 * bound(dtype));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn layer_norm_at_odd_sizes() -> Result<()> {
    for level in levels() {
        for shape in
            [&[1, 1][..], &[3, 1, 3], &[2, 17, 31], &[33], &[3, 33], &[1, 64], &[700, 100], &[2, 9001]]
        {
            let width = shape[shape.len() - 1];
            let (weight, bias) = (numbers(&[width], 2), numbers(&[width], 3));
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let x = as_view(&numbers(shape, 1).to_dtype(dtype)?);
                let result =
                    cpu::layer_norm(level, &x, &weight.to_vec1::<f32>()?, &bias.to_vec1::<f32>()?, 1e-5)?;
                let expected = plain(&x, width, 1, &weight, &bias, 1e-5);
                assert_eq!((result.dims(), result.dtype()), (shape, dtype));
                assert_near(&format!("{level:?}, {shape:?} of {dtype:?}"), &result, &expected, bound(dtype));
            }
        }
    }
    Ok(())
}

#[test]
fn a_large_mean_takes_nothing_from_the_digits() -> Result<()> {
    for level in levels() {
        for offset in [1e3, -1e4] {
            let x = numbers(&[2, 8, 50, 50], 1).affine(1.0, offset)?;
            let (weight, bias) = (numbers(&[8], 2), numbers(&[8], 3));
            let expected = plain(&x, 4 * 2500, 2500, &weight, &bias, 1e-6);
            let (weight, bias) = (weight.to_vec1()?, bias.to_vec1()?);
            let norm = GroupNorm { x: &x, added: None, groups: 2, weight, bias, eps: 1e-6 };
            assert_near(&format!("{level:?}, groups"), &norm.compute(level, Nothing)?, &expected, 1e-6);

            let (weight, bias) = (numbers(&[50], 2), numbers(&[50], 3));
            let expected = plain(&x, 50, 1, &weight, &bias, 1e-6);
            let normed =
                cpu::layer_norm(level, &x, &weight.to_vec1::<f32>()?, &bias.to_vec1::<f32>()?, 1e-6)?;
            assert_near(&format!("{level:?}, rows"), &normed, &expected, 1e-6);
        }
    }
    Ok(())
}

#[test]
fn all_levels_sum_to_the_same_bits() -> Result<()> {
    for length in [1, 15, 63, 64, 65, PIECE, 3 * PIECE + 77] {
        let values = numbers(&[length], 1).affine(1.0, 3.0)?.to_vec1::<f32>()?;
        let moments: Vec<_> =
            levels().map(|level| run_at(level, MomentsOf(&values)).mean.to_bits()).collect();
        assert!(moments.iter().all(|mean| *mean == moments[0]), "{length}");
    }
    Ok(())
}

#[test]
fn the_time_embedding_is_added_before() -> Result<()> {
    for (batch, groups, in_group) in [(1, 1, 1), (2, 3, 1), (3, 1, 17), (1, 31, 3), (3, 4, 3)] {
        let channels = groups * in_group;
        let (weight, bias) = (numbers(&[channels], 2), numbers(&[channels], 3));
        for rest in [&[1, 1][..], &[3], &[17, 31], &[33, 5]] {
            let shape = [&[batch, channels], rest].concat();
            let length: usize = rest.iter().product();
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let x = as_view(&numbers(&shape, 1).to_dtype(dtype)?);
                let time = as_view(&numbers(&[batch, channels], 4).affine(3.0, 0.0)?.to_dtype(dtype)?);
                let in_doubles = time.to_dtype(DType::F64)?.reshape((batch, channels, 1))?;
                let sum = x.to_dtype(DType::F64)?.reshape((batch, channels, length))?;
                let sum = sum.broadcast_add(&in_doubles)?;
                let expected = plain(&sum, in_group * length, length, &weight, &bias, 1e-5);
                let expected: Vec<f64> = expected.into_iter().map(silu).collect();
                let name = format!("{shape:?} in {groups} groups of {dtype:?}");
                for level in levels() {
                    let (weight, bias) = (weight.to_vec1()?, bias.to_vec1()?);
                    let norm =
                        GroupNorm { x: &x, added: Some(floats(&time)?), groups, weight, bias, eps: 1e-5 };
                    let result = norm.compute(level, Silu)?;
                    assert_near(&format!("{level:?}, {name}"), &result, &expected, 2.0 * bound(dtype));
                }
                let result = add_group_norm_silu(&x, &time, groups, &weight, &bias, 1e-5)?;
                assert_eq!((result.dims(), result.dtype()), (&shape[..], dtype));
                assert_near(&name, &result, &expected, 2.0 * bound(dtype));
            }
        }
    }
    Ok(())
}

#[test]
fn few_groups_give_the_bits_of_many() -> Result<()> {
    // One item has so few groups that the threads share each; the batch has enough for all.
    let x = numbers(&[40, 2, 60, 60], 1);
    let (weight, bias) = (numbers(&[2], 2), numbers(&[2], 3));
    let together = group_norm(&x, 1, &weight, &bias, 1e-5)?;
    for item in [0, 39] {
        let alone = group_norm(&x.narrow(0, item, 1)?, 1, &weight, &bias, 1e-5)?;
        let same = together.narrow(0, item, 1)?;
        assert_eq!(alone.flatten_all()?.to_vec1::<f32>()?, same.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(())
}

#[test]
fn nothing_to_normalise_and_misuse() -> Result<()> {
    let (weight, bias) = (numbers(&[4], 1), numbers(&[4], 2));
    for shape in [&[0, 4, 3][..], &[2, 4, 0]] {
        assert_eq!(group_norm(&numbers(shape, 1), 2, &weight, &bias, 1e-5)?.dims(), shape);
    }
    assert_eq!(layer_norm(&numbers(&[0, 4], 1), &weight, &bias, 1e-5)?.dims(), [0, 4]);
    let none = numbers(&[0], 1);
    assert!(layer_norm(&numbers(&[], 1), &none, &none, 1e-5).is_err());
    let none = numbers(&[0], 1);
    assert_eq!(layer_norm(&numbers(&[3, 0], 1), &none, &none, 1e-5)?.dims(), [3, 0]);
    assert!(layer_norm(&numbers(&[3, 5], 1), &weight, &bias, 1e-5).is_err());
    assert!(group_norm(&numbers(&[3, 8, 2], 1), 2, &weight, &bias, 1e-5).is_err());
    let problem = add_group_norm_silu(&numbers(&[3, 4, 2], 1), &numbers(&[2, 4], 1), 2, &weight, &bias, 1e-5);
    let problem = problem.unwrap_err().to_string();
    assert!(problem.contains("a vector of [2, 4]") && problem.contains("of [3, 4, 2]"), "{problem}");
    Ok(())
}

#[test]
fn parameters_of_another_shape_are_errors_with_both() -> Result<()> {
    let (x, vectors, fitting) = (numbers(&[3, 4, 2], 1), numbers(&[3, 4], 2), numbers(&[4], 3));
    for shape in [&[1][..], &[4, 1], &[]] {
        let other = numbers(shape, 4);
        for (name, weight, bias) in [("weight", &other, &fitting), ("bias", &fitting, &other)] {
            // By this crate's code, and by candle's operations.
            for dtype in [DType::F32, DType::F64] {
                let (x, vectors) = (x.to_dtype(dtype)?, vectors.to_dtype(dtype)?);
                let read_through = GroupNormSilu { vectors: None, groups: 2, weight, bias, eps: 1e-5 };
                let problems = [
                    ("group_norm", group_norm(&x, 2, weight, bias, 1e-5).err()),
                    ("group_norm_silu", group_norm_silu(&x, 2, weight, bias, 1e-5).err()),
                    ("group_norm_silu", read_through.channels(&x).err()),
                    ("add_group_norm_silu", add_group_norm_silu(&x, &vectors, 2, weight, bias, 1e-5).err()),
                    ("layer_norm", layer_norm(&x.transpose(1, 2)?, weight, bias, 1e-5).err()),
                ];
                for (operation, problem) in problems {
                    let problem = problem.unwrap().to_string();
                    let expected = format!("{operation}: the {name} is {shape:?}, expected [4]");
                    assert!(problem.contains(&expected), "{problem}");
                }
            }
        }
    }
    Ok(())
}
