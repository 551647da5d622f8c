//! Gradients of norms at every level that the machine has, at odd sizes, against plain float64.

use candle_core::{DType, Device, Result, Tensor};

use super::backward::layer_norm_gradients;
use super::cpu::GroupNorm;
use crate::cpu::testing::{as_view, assert_sums, doubles, levels, numbers};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const EPS: f64 = 1e-5;
/// Of the sum of the absolute terms: what float32 may round.
const BOUND: f64 = 1e-5;

/// A sum, and that of the absolute terms, with the gradient itself instead of its product with a slope of at most 1.1.
type Sum = (f64, f64);

struct Gradients {
    x: Vec<Sum>,
    /// A number for each channel.
    weight: Vec<Sum>,
    bias: Vec<Sum>,
    /// A number for each channel of each item.
    added: Vec<Sum>,
}

/// A norm of runs of `count` numbers, the channels of which have `length` numbers.
struct Norm<'a> {
    x: &'a [f64],
    gradient: &'a [f64],
    weight: &'a [f64],
    bias: &'a [f64],
    count: usize,
    length: usize,
}

impl Norm<'_> {
    /// With a function after the norm that has this slope.
    fn gradients(&self, slope: fn(f64) -> f64) -> Gradients {
        let zeros = |count: usize| vec![(0.0, 0.0); count];
        let channels = self.weight.len();
        let mut found = Gradients {
            x: zeros(self.x.len()),
            weight: zeros(channels),
            bias: zeros(channels),
            added: zeros(self.x.len() / self.length),
        };
        for start in (0..self.x.len()).step_by(self.count) {
            self.add_run(start, slope, &mut found);
        }
        found
    }

    fn add_run(&self, start: usize, slope: fn(f64) -> f64, found: &mut Gradients) {
        let places = start..start + self.count;
        let mean = |of: &dyn Fn(usize) -> f64| places.clone().map(of).sum::<f64>() / self.count as f64;
        let center = mean(&|place| self.x[place]);
        let deviation = (mean(&|place| (self.x[place] - center).powi(2)) + EPS).sqrt();
        let channel = |place: usize| place / self.length % self.weight.len();
        let normal = |place: usize| (self.x[place] - center) / deviation;
        let of_output = |place: usize| {
            let output = normal(place) * self.weight[channel(place)] + self.bias[channel(place)];
            (self.gradient[place] * slope(output), self.gradient[place].abs())
        };
        let of_normal = |place: usize| {
            let ((number, size), weight) = (of_output(place), self.weight[channel(place)]);
            (number * weight, size * weight.abs())
        };
        let (mean_number, mean_size) = (mean(&|place| of_normal(place).0), mean(&|place| of_normal(place).1));
        let (mean_product, product_size) = (
            mean(&|place| of_normal(place).0 * normal(place)),
            mean(&|place| of_normal(place).1 * normal(place).abs()),
        );
        for place in places.clone() {
            let (normal, (output, output_size), (number, size)) =
                (normal(place), of_output(place), of_normal(place));
            let of_x = (
                (number - mean_number - normal * mean_product) / deviation,
                (size + mean_size + normal.abs() * product_size) / deviation,
            );
            found.x[place] = of_x;
            add(&mut found.added[place / self.length], of_x);
            add(&mut found.weight[channel(place)], (output * normal, output_size * normal.abs()));
            add(&mut found.bias[channel(place)], (output, output_size));
        }
    }
}

fn add(sum: &mut Sum, (number, size): Sum) {
    sum.0 += number;
    sum.1 += size;
}

fn slope_of_silu(x: f64) -> f64 {
    let sigmoid = 1.0 / (1.0 + (-x).exp());
    sigmoid * (1.0 + x * (1.0 - sigmoid))
}

fn slope_of_nothing(_: f64) -> f64 {
    1.0
}

fn vector(numbers: &[f32]) -> Result<Tensor> {
    Tensor::new(numbers, &Device::Cpu)
}

/// A group norm of `(batch, channels, ...)`, with numbers added to the channels before it or without.
fn check_group_norm(shape: &[usize], groups: usize, dtype: DType, is_added: bool) -> Result<()> {
    let (batch, channels) = (shape[0], shape[1]);
    let length: usize = shape[2..].iter().product();
    let x = as_view(&numbers(shape, 1).to_dtype(dtype)?);
    let gradient = as_view(&numbers(shape, 2).to_dtype(dtype)?);
    let (weight, bias) = (numbers(&[channels], 3), numbers(&[channels], 4));
    let added = is_added.then(|| numbers(&[batch * channels], 5));
    let mut sums = doubles(&x);
    if let Some(added) = &added {
        let added = doubles(added);
        sums.iter_mut().enumerate().for_each(|(place, x)| *x += added[place / length]);
    }
    let added = added.map(|added| added.to_vec1::<f32>()).transpose()?;
    let norm = Norm {
        x: &sums,
        gradient: &doubles(&gradient),
        weight: &doubles(&weight),
        bias: &doubles(&bias),
        count: channels / groups * length,
        length,
    };
    for is_silu in [false, true] {
        let expected = norm.gradients(if is_silu { slope_of_silu } else { slope_of_nothing });
        for level in levels() {
            let (weight, bias) = (weight.to_vec1()?, bias.to_vec1()?);
            let norm = GroupNorm { x: &x, added: added.clone(), groups, weight, bias, eps: EPS };
            let found = norm.gradients(level, is_silu, &gradient)?;
            assert_eq!((found.x.dims(), found.x.dtype()), (shape, dtype));
            let name = format!(
                "{level:?}, {shape:?} of {dtype:?}, {groups} groups, silu {is_silu}, added {is_added}"
            );
            assert_sums(&format!("{name}, x"), &found.x, &expected.x, BOUND);
            assert_sums(&format!("{name}, weight"), &vector(&found.weight)?, &expected.weight, BOUND);
            assert_sums(&format!("{name}, bias"), &vector(&found.bias)?, &expected.bias, BOUND);
            assert_sums(&format!("{name}, added"), &vector(&found.added)?, &expected.added, BOUND);
        }
    }
    Ok(())
}

#[test]
fn group_norms_at_odd_sizes() -> Result<()> {
    for (batch, groups, in_group) in [(1, 1, 1), (2, 3, 1), (3, 1, 5), (2, 31, 2), (1, 2, 17)] {
        for rest in [&[1, 1][..], &[3], &[17, 1], &[31, 33]] {
            let shape = [&[batch, groups * in_group], rest].concat();
            for dtype in DTYPES {
                check_group_norm(&shape, groups, dtype, false)?;
                check_group_norm(&shape, groups, dtype, true)?;
            }
        }
    }
    // Several pieces a channel.
    check_group_norm(&[1, 2, 71, 67], 1, DType::F32, true)
}

#[test]
fn layer_norms_at_odd_sizes() -> Result<()> {
    // The last one is several tasks.
    for shape in
        [&[1, 1][..], &[3, 1, 3], &[2, 17, 31], &[33], &[3, 33], &[1, 64], &[33, 1], &[2, 9001], &[700, 100]]
    {
        let width = shape[shape.len() - 1];
        let weight = numbers(&[width], 3);
        for dtype in DTYPES {
            let x = as_view(&numbers(shape, 1).to_dtype(dtype)?);
            let gradient = as_view(&numbers(shape, 2).to_dtype(dtype)?);
            let norm = Norm {
                x: &doubles(&x),
                gradient: &doubles(&gradient),
                weight: &doubles(&weight),
                bias: &vec![0.0; width],
                count: width,
                length: 1,
            };
            let expected = norm.gradients(slope_of_nothing);
            let weight = weight.to_vec1::<f32>()?;
            for level in levels() {
                let name = format!("{level:?}, {shape:?} of {dtype:?}");
                let found = layer_norm_gradients(level, &x, &weight, EPS, &gradient, true)?;
                assert_eq!((found.x.dims(), found.x.dtype()), (shape, dtype));
                assert_sums(&format!("{name}, x"), &found.x, &expected.x, BOUND);
                assert_sums(&format!("{name}, weight"), &vector(&found.weight)?, &expected.weight, BOUND);
                assert_sums(&format!("{name}, bias"), &vector(&found.bias)?, &expected.bias, BOUND);
                let without = layer_norm_gradients(level, &x, &weight, EPS, &gradient, false)?;
                assert!(doubles(&without.x) == doubles(&found.x), "{name}");
            }
        }
    }
    Ok(())
}
