//! Sums and changed channels at odd sizes against plain float64: at every level that the machine has, and their gradients at the one in use.

use candle_core::{DType, Result, Tensor, Var};

use super::*;
use crate::cpu::testing::{as_view, assert_near, assert_sums, bound, doubles, levels, numbers};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// The last one is several tasks.
const SHAPES: &[&[usize]] = &[
    &[1, 1],
    &[1, 1, 1, 1],
    &[2, 3, 1, 1],
    &[3, 17],
    &[1, 31, 3],
    &[3, 1, 33, 17],
    &[2, 33, 31, 1],
    &[1, 2, 150, 151],
];

fn view(shape: &[usize], seed: u64, dtype: DType) -> Result<Tensor> {
    Ok(as_view(&numbers(shape, seed).to_dtype(dtype)?))
}

#[test]
fn sums_at_odd_sizes() -> Result<()> {
    for &shape in SHAPES {
        for dtype in DTYPES {
            let (a, b) = (view(shape, 1, dtype)?, view(shape, 2, dtype)?);
            let expected: Vec<f64> = doubles(&a).iter().zip(doubles(&b)).map(|(a, b)| a + b).collect();
            let name = format!("{shape:?} of {dtype:?}");
            for level in levels() {
                let sum = add_numbers_at(level, &a, &b)?;
                assert_eq!((sum.dims(), sum.dtype()), (shape, dtype));
                assert_near(&format!("{level:?}, {name}"), &sum, &expected, bound(dtype));
                let increased = a.force_contiguous()?;
                increased.inplace_op2(&b.force_contiguous()?, &AddInPlace { level })?;
                assert_near(&format!("{level:?}, {name}, in place"), &increased, &expected, bound(dtype));
            }
            assert_near(&name, &add(&a, &b)?, &expected, bound(dtype));
        }
    }
    Ok(())
}

#[test]
fn channels_are_changed_at_odd_sizes() -> Result<()> {
    for &shape in SHAPES {
        let length: usize = shape[2..].iter().product();
        for dtype in DTYPES {
            let x = view(shape, 1, dtype)?;
            let (scale, shift) = (view(&shape[..2], 2, dtype)?, view(&shape[..2], 3, dtype)?);
            let (scales, shifts) = (doubles(&scale), doubles(&shift));
            let change = |scale_of: &dyn Fn(usize) -> f64| -> Vec<f64> {
                let numbers = doubles(&x).into_iter().enumerate();
                numbers.map(|(at, x)| x * scale_of(at / length) + shifts[at / length]).collect()
            };
            let (added, scaled) = (change(&|_| 1.0), change(&|channel| 1.0 + scales[channel]));
            for level in levels() {
                let name = format!("{level:?}, {shape:?} of {dtype:?}");
                let result = change_channels(level, &x, None, &shift)?;
                assert_eq!((result.dims(), result.dtype()), (shape, dtype));
                assert_near(&name, &result, &added, bound(dtype));
                let result = change_channels(level, &x, Some(&scale), &shift)?;
                assert_eq!((result.dims(), result.dtype()), (shape, dtype));
                assert_near(&format!("{name}, scaled"), &result, &scaled, bound(dtype));
            }
            let name = format!("{shape:?} of {dtype:?}");
            assert_near(&name, &add_per_channel(&x, &shift)?, &added, bound(dtype));
            let result = scale_shift_per_channel(&x, &scale, &shift)?;
            assert_near(&format!("{name}, scaled"), &result, &scaled, bound(dtype));
        }
    }
    Ok(())
}

/// What a function's inputs get where its output gets `direction`.
fn gradients(
    inputs: &[Tensor],
    direction: &Tensor,
    function: impl Fn(&[Var]) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let inputs = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let found = (function(&inputs)? * direction)?.sum_all()?.backward()?;
    Ok(inputs.iter().map(|input| found.get(input).unwrap().clone()).collect())
}

/// The sums of each `length` numbers, and those of the absolute numbers.
fn sums_of(numbers: &[f64], length: usize) -> Vec<(f64, f64)> {
    let sum = |numbers: &[f64]| {
        (numbers.iter().sum::<f64>(), numbers.iter().map(|number| number.abs()).sum::<f64>())
    };
    numbers.chunks(length).map(sum).collect()
}

#[test]
fn gradients_at_odd_sizes() -> Result<()> {
    for &shape in SHAPES {
        let length: usize = shape[2..].iter().product();
        for dtype in DTYPES {
            let (x, other, direction) =
                (view(shape, 1, dtype)?, view(shape, 2, dtype)?, view(shape, 3, dtype)?);
            let (scale, shift) = (view(&shape[..2], 4, dtype)?, view(&shape[..2], 5, dtype)?);
            let (scales, numbers) = (doubles(&scale), doubles(&direction));
            let [same, summed] = [1, length].map(|length| sums_of(&numbers, length));
            let scaled: Vec<f64> =
                numbers.iter().enumerate().map(|(at, number)| number * (1.0 + scales[at / length])).collect();
            let products: Vec<f64> = numbers.iter().zip(doubles(&x)).map(|(number, x)| number * x).collect();

            // In half precision products are rounded before they are summed.
            let check = |name: &str, found: &[Tensor], expected: &[&[(f64, f64)]]| {
                for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
                    assert_eq!(found.dtype(), dtype);
                    let name = format!("{name}, {shape:?} of {dtype:?}, input {index}");
                    assert_sums(&name, found, expected, bound(dtype));
                }
            };
            let found = gradients(&[x.clone(), other], &direction, |vars| add(&vars[0], &vars[1]))?;
            check("add", &found, &[&same, &same]);
            let inputs = [x.clone(), shift.clone()];
            let found = gradients(&inputs, &direction, |vars| add_per_channel(&vars[0], &vars[1]))?;
            check("add_per_channel", &found, &[&same, &summed]);
            let found = gradients(&[x, scale, shift], &direction, |vars| {
                scale_shift_per_channel(&vars[0], &vars[1], &vars[2])
            })?;
            let (scaled, products) = (sums_of(&scaled, 1), sums_of(&products, length));
            check("scale_shift_per_channel", &found, &[&scaled, &products, &summed]);
        }
    }
    Ok(())
}
