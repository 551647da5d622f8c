//! Attention at odd sizes against plain float64, at every level that the processor has.

#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor, Var};
use candle_diffusers_test_support::values;

#[cfg(target_arch = "x86_64")]
use super::arithmetic::Pairs;
use super::arithmetic::{Arithmetic, Single};
use super::vector::{Four, Vector};
use super::*;

/// Numbers from -2 to 2 that look random.
fn numbers(shape: &[usize], seed: u64) -> Tensor {
    (candle_diffusers_test_support::numbers(shape, seed) * 2.0).unwrap()
}

/// The plain definition. A query that every key is masked for gets zeros.
fn reference([query, key, value]: [&Tensor; 3], heads: usize, scale: f64, mask: Option<&Tensor>) -> Vec<f64> {
    let (batch, queries, width) = query.dims3().unwrap();
    let (keys, dim) = (key.dim(1).unwrap(), width / heads);
    let (query, key, value) = (values(query), values(key), values(value));
    let mask = mask
        .map(|mask| values(&mask.broadcast_as((batch, heads, queries, keys)).unwrap().contiguous().unwrap()));
    let mut result = vec![0f64; batch * queries * width];
    for (item, head, token) in (0..batch)
        .flat_map(|item| (0..heads).map(move |head| (item, head)))
        .flat_map(|(item, head)| (0..queries).map(move |token| (item, head, token)))
    {
        let place = |tokens: usize, token: usize| (item * tokens + token) * width + head * dim;
        let at = place(queries, token);
        let scores: Vec<f64> = (0..keys)
            .map(|other| {
                let other_at = place(keys, other);
                let product: f64 = (0..dim).map(|i| query[at + i] * key[other_at + i]).sum();
                let mask = mask
                    .as_ref()
                    .map_or(0.0, |mask| mask[((item * heads + head) * queries + token) * keys + other]);
                product * scale + mask
            })
            .collect();
        let greatest = scores.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - greatest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for feature in 0..dim {
            let mixed: f64 =
                (0..keys).map(|other| weights[other] * value[place(keys, other) + feature]).sum();
            result[at + feature] = if sum == 0.0 { 0.0 } else { mixed / sum };
        }
    }
    result
}

fn kernels(dtype: DType) -> impl Iterator<Item = (Level, Kernel)> {
    // A plain model stands for tiles where there are none.
    let is_tested = |level: &Level| level.is_available() || *level == Level::Amx;
    let levels = Level::ALL.into_iter().filter(is_tested);
    levels.map(move |level| (level, Kernel::choose(level, dtype == DType::BF16)))
}

fn check(name: &str, factors: [&Tensor; 3], heads: usize, scale: f64, mask: Option<&Tensor>) {
    let expected = reference(factors, heads, scale, mask);
    let (batch, queries, _) = factors[0].dims3().unwrap();
    let mask =
        mask.map(|mask| mask.broadcast_as((batch, heads, queries, factors[1].dim(1).unwrap())).unwrap());
    let bound = match factors[2].dtype() {
        // Scores of this size are rounded to some 1e-6.
        DType::F32 => 3e-5,
        DType::F16 => 1e-3,
        _ => 8e-3,
    };
    for (level, kernel) in kernels(factors[2].dtype()) {
        let (found, _) = fused::fused(kernel, factors, heads, scale, mask.as_ref()).unwrap();
        assert_eq!((found.dims(), found.dtype()), (factors[0].dims(), factors[2].dtype()));
        for (found, expected) in values(&found).into_iter().zip(&expected) {
            let difference = (found - expected).abs();
            assert!(
                difference < bound * expected.abs().max(1.0),
                "{name}, {level:?}: {found}, not {expected}"
            );
        }
    }
}

#[test]
fn odd_sizes() {
    for (index, (batch, queries, keys, heads, dim)) in [
        (1, 1, 1, 1, 1),
        (1, 3, 17, 1, 3),
        (2, 17, 3, 2, 33),
        (3, 31, 33, 2, 17),
        (1, 33, 77, 8, 40),
        (2, 64, 129, 1, 64),
        (1, 100, 300, 2, 80),
        (1, 140, 257, 1, 160),
        (1, 31, 128, 1, 515),
        (1, 1, 1000, 3, 31),
    ]
    .into_iter()
    .enumerate()
    {
        let seed = 3 * index as u64;
        let query = numbers(&[batch, queries, heads * dim], seed);
        let key = numbers(&[batch, keys, heads * dim], seed + 1);
        let value = numbers(&[batch, keys, heads * dim], seed + 2);
        let scale = (dim as f64).powf(-0.5);
        let name = format!("{:?} {:?} {heads}", query.dims(), key.dims());
        check(&name, [&query, &key, &value], heads, scale, None);
        check(&name, [&query, &key, &value], heads, 3.0 * scale, None);
        for dtype in [DType::F16, DType::BF16] {
            let half = [&query, &key, &value].map(|tensor| tensor.to_dtype(dtype).unwrap());
            check(&format!("{name} {dtype:?}"), half.each_ref(), heads, scale, None);
        }
    }
}

#[test]
fn views_are_read_by_their_strides() {
    let all = numbers(&[3, 50, 3 * 48], 1);
    let part = |index: usize| all.narrow(2, index * 48, 48).unwrap().narrow(0, 1, 2).unwrap();
    check("parts of one projection", [&part(0), &part(1), &part(2)], 3, 0.25, None);
    let (columns, keys) =
        (numbers(&[1, 48, 50], 2), numbers(&[1, 1, 48], 3).broadcast_as((1, 20, 48)).unwrap());
    let query = columns.transpose(1, 2).unwrap();
    check("transposed queries, one key for all", [&query, &keys, &keys], 3, 0.25, None);
    check("tokens in reverse order of strides", [&query, &query, &query], 4, 0.25, None);
}

#[test]
fn masks_of_any_strides() {
    let (batch, heads, queries, keys) = (2, 3, 37, 140);
    let query = numbers(&[batch, queries, heads * 24], 1);
    let (key, value) = (numbers(&[batch, keys, heads * 24], 2), numbers(&[batch, keys, heads * 24], 3));
    for dims in [[2, 3, 37, 140], [1, 1, 37, 140], [2, 1, 1, 140], [1, 3, 37, 1], [1, 1, 1, 1]] {
        let mask = numbers(&dims, 4);
        check(&format!("mask {dims:?}"), [&query, &key, &value], heads, 0.2, Some(&mask));
    }
    let transposed = numbers(&[1, 1, keys, queries], 5).transpose(2, 3).unwrap();
    check("a transposed mask", [&query, &key, &value], heads, 0.2, Some(&transposed));
    for hidden in [f32::NEG_INFINITY, f32::MIN, -1e4] {
        let causal: Vec<f32> =
            (0..queries * keys).map(|at| if at % keys > at / keys { hidden } else { 0.0 }).collect();
        let causal = Tensor::from_vec(causal, (1, 1, queries, keys), &Device::Cpu).unwrap();
        check(&format!("causal {hidden}"), [&query, &key, &value], heads, 0.2, Some(&causal));
        // The first 130 keys: a whole block, and some of the next.
        let start: Vec<f32> = (0..keys).map(|key| if key < 130 { hidden } else { 0.0 }).collect();
        let start = Tensor::from_vec(start, (1, 1, 1, keys), &Device::Cpu).unwrap();
        check(&format!("the start hidden by {hidden}"), [&query, &key, &value], heads, 0.2, Some(&start));
        let half = [&query, &key, &value].map(|tensor| tensor.to_dtype(DType::BF16).unwrap());
        check(
            &format!("the start hidden in bfloat16 by {hidden}"),
            half.each_ref(),
            heads,
            0.2,
            Some(&start),
        );
    }
}

#[test]
fn a_boolean_mask_hides_keys() -> Result<()> {
    let (query, keys) = (numbers(&[2, 37, 48], 1), numbers(&[2, 140, 48], 2));
    let shown = Tensor::arange(0u32, 140, &Device::Cpu)?.ne(5u32)?.reshape((1, 1, 1, 140))?;
    let added: Vec<f32> = (0..140).map(|key| if key == 5 { f32::NEG_INFINITY } else { 0.0 }).collect();
    let added = Tensor::from_vec(added, (1, 1, 1, 140), &Device::Cpu)?;
    assert_eq!(shown.dtype(), DType::U8);
    for dtype in [DType::F32, DType::F64] {
        let (query, keys) = (query.to_dtype(dtype)?, keys.to_dtype(dtype)?);
        let by = |mask: &Tensor| attention(&query, &keys, &keys, 2, 0.3, Some(mask));
        assert_eq!(values(&by(&shown)?), values(&by(&added)?));
        assert!(by(&shown.to_dtype(DType::U32)?).is_err());
    }
    Ok(())
}

#[test]
fn what_an_earlier_mask_held_is_forgotten() -> Result<()> {
    let gradients = |queries: usize, bad: bool| -> Result<Vec<f64>> {
        let [query, key] =
            [numbers(&[1, queries, 8], 1), numbers(&[1, 20, 8], 2)].map(|x| Var::from_tensor(&x).unwrap());
        let mut mask = vec![0f32; queries * 20];
        if bad {
            mask[20 * 20..21 * 20].fill(f32::NAN);
        }
        let mask = Tensor::from_vec(mask, (1, 1, queries, 20), &Device::Cpu)?;
        let output = attention(&query, &key, &key, 1, 0.3, Some(&mask))?;
        let found = output.sqr()?.sum_all()?.backward()?;
        Ok(values(found.get(&key).unwrap()))
    };
    // On one thread, so that both take the same room.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        assert!(gradients(32, true)?.iter().any(|number| number.is_nan()));
        assert!(gradients(17, false)?.iter().all(|number| number.is_finite()));
        Ok(())
    })
}

#[test]
fn a_query_that_is_masked_whole() {
    let x = numbers(&[1, 20, 16], 1);
    let row = |value: f32| {
        let rows: Vec<f32> = (0..400).map(|at| if at / 20 == 7 { value } else { 0.0 }).collect();
        Tensor::from_vec(rows, (1, 1, 20, 20), &Device::Cpu).unwrap()
    };
    check("by negative infinity", [&x, &x, &x], 2, 0.3, Some(&row(f32::NEG_INFINITY)));
    // By the least float it is the mean of the values: the sum with any score is that float again.
    for (_, kernel) in kernels(DType::F32) {
        let found =
            fused::fused(kernel, [&x, &x, &x], 2, 0.3, Some(&row(f32::MIN).repeat((1, 2, 1, 1)).unwrap()));
        let (found, mean) = (values(&found.unwrap().0.narrow(1, 7, 1).unwrap()), values(&x.mean(1).unwrap()));
        assert!(
            found.iter().zip(&mean).all(|(found, mean)| (found - mean).abs() < 1e-6),
            "{found:?} {mean:?}"
        );
    }
}

#[test]
fn a_nan_or_an_infinity_is_not_hidden() {
    let bads = [f32::NAN, f32::INFINITY].into_iter();
    for (bad, dtype) in bads.flat_map(|bad| [(bad, DType::F32), (bad, DType::BF16)]) {
        let mut query = vec![0.5f32; 40 * 8];
        query[3 * 8] = bad;
        let query = Tensor::from_vec(query, (1, 40, 8), &Device::Cpu).unwrap();
        let key = numbers(&[1, 300, 8], 1).abs().unwrap();
        let (query, key) = (query.to_dtype(dtype).unwrap(), key.to_dtype(dtype).unwrap());
        for (level, kernel) in kernels(dtype) {
            let found = values(&fused::fused(kernel, [&query, &key, &key], 1, 0.3, None).unwrap().0);
            for (token, results) in found.chunks(8).enumerate() {
                assert!(
                    results.iter().all(|result| result.is_nan() == (token == 3)),
                    "{level:?} {bad} {token}"
                );
            }
        }
    }
}

#[test]
fn nothing_to_attend_to_and_nothing_to_write() {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
    let x = numbers(&[1, 3, 8], 1);
    let none = zeros(&[1, 0, 8]);
    assert_eq!(values(&attention(&x, &none, &none, 2, 1.0, None).unwrap()), [0.0; 24]);
    assert_eq!(attention(&none, &x, &x, 2, 1.0, None).unwrap().dims(), [1, 0, 8]);
    assert_eq!(attention(&none, &none, &none, 2, 1.0, None).unwrap().dims(), [1, 0, 8]);
    let narrow = zeros(&[2, 5, 0]);
    assert_eq!(attention(&narrow, &narrow, &narrow, 2, 1.0, None).unwrap().dims(), [2, 5, 0]);
}

#[test]
fn misuse_is_an_error_with_both_shapes() {
    let (query, key) = (numbers(&[1, 5, 8], 1), numbers(&[1, 6, 8], 2));
    let problem = attention(&query, &key, &numbers(&[1, 7, 8], 3), 2, 1.0, None).unwrap_err().to_string();
    assert!(problem.contains("[1, 6, 8] and [1, 7, 8]"), "{problem}");
    let other = numbers(&[2, 6, 8], 3);
    let problem = attention(&query, &other, &other, 2, 1.0, None).unwrap_err().to_string();
    assert!(problem.contains("[1, 5, 8]") && problem.contains("[2, 6, 8]"), "{problem}");
    let problem = attention(&query, &key, &key, 3, 1.0, None).unwrap_err().to_string();
    assert!(problem.contains("3 heads"), "{problem}");
    assert!(attention(&query, &key, &key, 2, 1.0, Some(&numbers(&[1, 1, 4, 6], 4))).is_err());
}

#[test]
fn the_same_as_by_candles_operations() {
    let (query, key) = (numbers(&[2, 70, 40], 1), numbers(&[2, 150, 40], 2));
    for scale in [0.4, 0.0, -0.4] {
        let composed = values(&composed(&query, &key, &key, 4, scale, None).unwrap());
        let found = values(&attention(&query, &key, &key, 4, scale, None).unwrap());
        assert!(found.iter().zip(&composed).all(|(a, b)| (a - b).abs() < 4e-6), "{scale}");
    }
}

/// Fails where a gradient is farther from that of candle's operations in float64 than `bound` times the largest.
fn check_gradients(dtype: DType, bound: f64, sizes: [usize; 5], is_masked: bool, wanted: [bool; 3]) {
    let [batch, queries, keys, heads, dim] = sizes;
    let lengths = [queries, keys, keys, queries];
    // Values that bfloat16 has, so that both begin with the same ones.
    let numbers = |seed: usize| {
        numbers(&[batch, lengths[seed], heads * dim], seed as u64).to_dtype(DType::BF16).unwrap()
    };
    let of = |dtype: DType| {
        let inputs = [0, 1, 2].map(|seed| Var::from_tensor(&numbers(seed).to_dtype(dtype).unwrap()).unwrap());
        let direction = numbers(3).to_dtype(dtype).unwrap();
        (inputs, direction)
    };
    let mask = is_masked.then(|| {
        let mask = super::tests::numbers(&[1, heads, queries, keys], 9);
        // One key that nobody sees, and a query that sees none.
        let hidden: Vec<f32> = (0..queries * keys)
            .map(|place| if place % keys == 1 || place / keys == 2 { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        let hidden = Tensor::from_vec(hidden, (1, 1, queries, keys), &Device::Cpu).unwrap();
        mask.broadcast_add(&hidden).unwrap()
    });
    let gradients = |function: &dyn Fn([&Tensor; 3]) -> Tensor, inputs: &[Var; 3], direction: &Tensor| {
        let tensors = [0, 1, 2].map(|index| match wanted[index] {
            true => inputs[index].as_tensor().clone(),
            false => inputs[index].as_detached_tensor(),
        });
        let output = function([&tensors[0], &tensors[1], &tensors[2]]);
        let found = (output * direction).unwrap().sum_all().unwrap().backward().unwrap();
        inputs.each_ref().map(|input| found.get(input).cloned())
    };
    let (inputs, direction) = of(DType::F64);
    let plain = |[query, key, value]: [&Tensor; 3]| {
        let softmax = |scores: Tensor| {
            // NaN where all is masked; the mask's row is left out below.
            let scores = scores.clamp(-1e300, 1e300).unwrap();
            softmax_last_dim(&scores).unwrap()
        };
        let split = |x: &Tensor| split_heads(x, heads, DType::F64).unwrap();
        let scores = (split(query) * 0.4).unwrap().matmul(&split(key).t().unwrap()).unwrap();
        let scores = match &mask {
            Some(mask) => scores.broadcast_add(&mask.to_dtype(DType::F64).unwrap()).unwrap(),
            None => scores,
        };
        let mixed = softmax(scores).matmul(&split(value)).unwrap();
        let keeps: Vec<f64> =
            (0..queries).map(|query| if is_masked && query == 2 { 0.0 } else { 1.0 }).collect();
        let keeps = Tensor::from_vec(keeps, (1, queries, 1), &Device::Cpu).unwrap();
        let mixed = mixed.transpose(1, 2).unwrap().reshape((batch, queries, heads * dim)).unwrap();
        mixed.broadcast_mul(&keeps).unwrap()
    };
    let expected = gradients(&plain, &inputs, &direction);
    let (inputs, direction) = of(dtype);
    for (level, kernel) in kernels(dtype) {
        let ours = |inputs: [&Tensor; 3]| {
            let shape = (batch, heads, queries, keys);
            let mask = mask.as_ref().map(|mask| mask.broadcast_as(shape).unwrap());
            record_fused(kernel, inputs, heads, 0.4, mask).unwrap()
        };
        let found = gradients(&ours, &inputs, &direction);
        for (name, (found, expected)) in ["query", "key", "value"].iter().zip(found.iter().zip(&expected)) {
            let (Some(found), Some(expected)) = (found, expected) else {
                assert!(found.is_none() && expected.is_none(), "{name} {sizes:?}");
                continue;
            };
            assert_eq!(found.dtype(), dtype);
            let expected = values(expected);
            let greatest = expected.iter().fold(0f64, |greatest, number| greatest.max(number.abs()));
            for (found, expected) in values(found).into_iter().zip(expected) {
                assert!(
                    (found - expected).abs() <= bound * greatest.max(1.0),
                    "{level:?} {name} {sizes:?}: {found} not {expected}"
                );
            }
        }
    }
}

const ALL: [bool; 3] = [true; 3];

#[test]
fn gradients_at_odd_sizes() {
    for sizes in [
        [1, 1, 1, 1, 1],
        [2, 3, 5, 2, 3],
        [3, 33, 31, 1, 17],
        [1, 17, 77, 2, 40],
        [2, 31, 130, 1, 64],
        [1, 65, 257, 3, 33],
        [1, 40, 9, 1, 160],
    ] {
        for is_masked in [false, sizes[1] > 3] {
            check_gradients(DType::F32, 1e-5, sizes, is_masked, ALL);
            check_gradients(DType::BF16, 2e-2, sizes, is_masked, ALL);
        }
        check_gradients(DType::F16, 2e-3, sizes, false, ALL);
    }
}

#[test]
fn gradients_of_several_parts() {
    check_gradients(DType::F32, 1e-5, [1, 70, 2300, 1, 8], false, ALL);
    check_gradients(DType::F32, 1e-5, [1, 2300, 70, 2, 8], true, ALL);
    check_gradients(DType::BF16, 2e-2, [1, 1100, 2100, 1, 8], false, ALL);
}

#[test]
fn gradients_of_those_that_are_wanted() {
    for wanted in [[true, false, false], [false, true, false], [false, false, true], [false, true, true]] {
        check_gradients(DType::F32, 1e-5, [2, 33, 35, 2, 12], false, wanted);
        check_gradients(DType::BF16, 2e-2, [2, 33, 35, 2, 12], true, wanted);
    }
}

/// [`Vector::exp2`] of any processor: without fused multiply-add, but on aarch64.
fn exp2(polynomial: &[f32], x: f32) -> f32 {
    let mut lanes = [0f32; Four::LANES];
    // SAFETY: any processor has this level, and the pointer is to as many numbers as it has lanes.
    unsafe { Four::splat(x).exp2(polynomial).store(lanes.as_mut_ptr()) };
    lanes[0]
}

/// Numbers from -3/2 to -1/2, from which whole numbers leave all of -1/2 to 1/2.
#[test]
fn errors_of_exp2_are_the_stated_ones() {
    let check = |name: &str, polynomial: &[f32], exact_bound: f64, bound: f64| {
        let [mut exact, mut plain, mut fused] = [0f64; 3];
        let error = |found: f64, x: f32| (found / f64::from(x).exp2() - 1.0).abs();
        for index in 0..=1 << 16 {
            let x = -0.5 - index as f32 / (1 << 16) as f32;
            let r = x + 1.0;
            let doubles = polynomial.iter().map(|number| f64::from(*number));
            let sum = doubles.fold(0.0, |sum, next| sum * f64::from(r) + next);
            exact = exact.max(error(sum * f64::from(r) + 1.0, r));
            plain = plain.max(error(f64::from(exp2(polynomial, x)), x));
            let sum = polynomial.iter().fold(0f32, |sum, next| sum.mul_add(r, *next));
            fused = fused.max(error(f64::from(sum.mul_add(r, 1.0)), r));
        }
        println!("{name}: {exact:.2e}, of four numbers {plain:.2e}, fused {fused:.2e}");
        assert!(exact < exact_bound, "{name}: {exact:e}");
        assert!(plain.max(fused) < bound, "{name}: {plain:e}, fused {fused:e}");
    };
    check("float32", Single::<Four>::EXP2, 1.6e-8, 1.2e-7);
    #[cfg(target_arch = "x86_64")]
    check("bfloat16", Pairs::EXP2, 2.85e-6, 3e-6);
}
