//! Activations: functions of each number.

#[cfg(test)]
mod gradient_tests;
#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;

use candle_core::{D, Device, Result, Tensor};
use rayon::prelude::*;

use crate::Level;
use crate::cpu::{
    self, Chunk, Float, Instructions, LANES, OnPart, Pointwise, TASK, Work, by_float, fill, load_tail,
    run_at, values,
};
use crate::exponential::exp;
use crate::gradient::record;

/// A function of each number that a product is followed by ([`PackedWeight::linear_activated`](crate::PackedWeight::linear_activated)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// [`silu`].
    Silu,
    /// [`gelu`].
    Gelu,
    /// [`quick_gelu`].
    QuickGelu,
}

impl Activation {
    /// Of any shape.
    ///
    /// # Errors
    /// Those of the device.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Silu => silu(x),
            Self::Gelu => gelu(x),
            Self::QuickGelu => quick_gelu(x),
        }
    }

    /// Of numbers that lie beside each other, in their place.
    #[inline(always)]
    pub(crate) fn apply(self, numbers: &mut [f32]) {
        match self {
            Self::Silu => in_place(Silu, numbers),
            Self::Gelu => in_place(Gelu, numbers),
            Self::QuickGelu => in_place(QuickGelu, numbers),
        }
    }
}

#[inline(always)]
pub(crate) fn in_place(function: impl Pointwise<1>, numbers: &mut [f32]) {
    let (chunks, tail) = numbers.as_chunks_mut::<LANES>();
    for chunk in chunks {
        *chunk = function.apply([*chunk]);
    }
    if !tail.is_empty() {
        let result = function.apply([load_tail(tail)]);
        tail.copy_from_slice(&result[..tail.len()]);
    }
}

/// `x * sigmoid(x)`, also called swish; any shape.
///
/// # Errors
/// Those of the device.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    if cpu::computes(&[x]) { each(x, Silu) } else { x.silu() }
}

/// The exact GELU, `x * (1 + erf(x / sqrt 2)) / 2` (Hendrycks and Gimpel, 2016); any shape.
///
/// # Errors
/// Those of the device.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if cpu::computes(&[x]) { each(x, Gelu) } else { x.gelu_erf() }
}

/// OpenAI CLIP's approximation of GELU, `x * sigmoid(1.702 x)`; any shape.
///
/// # Errors
/// Those of the device.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    if cpu::computes(&[x]) {
        return each(x, QuickGelu);
    }
    // The same as silu(1.702 x) / 1.702, and silu's gradient stays finite where exp(-1.702 x) would not.
    x.affine(1.702, 0.0)?.silu()?.affine(1.0 / 1.702, 0.0)
}

/// The gated GELU of a transformer's feed-forward (Shazeer, 2020): the last dimension is cut in two halves, value and gate,
/// and the result is `value * gelu(gate)`.
///
/// `x` is `(..., 2 * features)`, the result `(..., features)`.
///
/// # Errors
/// When the last dimension is odd.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if !width.is_multiple_of(2) {
        candle_core::bail!("geglu: the last dimension of {:?} is odd and has no two halves", x.dims());
    }
    if cpu::computes(&[x]) {
        let level = Level::current()?;
        let kept = x.detach();
        let output = geglu_at(level, &kept)?;
        return record("geglu", output, &[Some(x)], move |gradient| {
            Ok(vec![Some(geglu_gradient_at(level, &kept, gradient)?)])
        });
    }
    let value = x.narrow(D::Minus1, 0, width / 2)?;
    let gate = x.narrow(D::Minus1, width / 2, width / 2)?;
    value.mul(&gate.contiguous()?.gelu_erf()?)
}

fn each(x: &Tensor, function: impl Slope) -> Result<Tensor> {
    let level = Level::current()?;
    let kept = x.detach();
    let output = each_at(level, &kept, function)?;
    record("activation", output, &[Some(x)], move |gradient| {
        Ok(vec![Some(slopes_at(level, &kept, gradient, function)?)])
    })
}

/// `gradient` times the function's slope at `x`.
fn slopes_at(level: Level, x: &Tensor, gradient: &Tensor, function: impl Slope) -> Result<Tensor> {
    let (x, gradient) = (x.contiguous()?, gradient.contiguous()?);
    by_float!(x.dtype(), T => {
        let (x_values, gradient_values) = (values::<T>(&x)?, values::<T>(&gradient)?);
        let output = cpu::map_two(level, [x_values.get()?, gradient_values.get()?], TimesSlope(function))?;
        Tensor::from_vec(output, x.shape(), &Device::Cpu)
    })
}

fn each_at(level: Level, x: &Tensor, function: impl Pointwise<1>) -> Result<Tensor> {
    let x = x.contiguous()?;
    by_float!(x.dtype(), T => {
        let output = cpu::map(level, values::<T>(&x)?.get()?, function)?;
        Tensor::from_vec(output, x.shape(), &Device::Cpu)
    })
}

fn geglu_at(level: Level, x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let mut shape = x.dims().to_vec();
    let width = shape.pop().unwrap_or(0) / 2;
    shape.push(width);
    by_float!(x.dtype(), T => {
        let x_values = values::<T>(&x)?;
        let values = x_values.get()?;
        let write = |output: &mut [MaybeUninit<T>]| {
            if width == 0 {
                return;
            }
            let rows = output.par_chunks_mut(width).zip(values.par_chunks(2 * width));
            rows.with_min_len(TASK.div_ceil(2 * width)).for_each(|(output, row)| {
                let (value, gate) = row.split_at(width);
                run_at(level, OnPart { inputs: [value, gate], output, function: Geglu });
            });
        };
        // SAFETY: the rows are the whole output, and `OnPart` writes all that it is given.
        let output = unsafe { fill(values.len() / 2, write)? };
        Tensor::from_vec(output, shape, &Device::Cpu)
    })
}

/// The gradient of [`geglu`]'s input.
fn geglu_gradient_at(level: Level, x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let (x, gradient) = (x.contiguous()?, gradient.contiguous()?);
    let width = x.dim(D::Minus1)? / 2;
    by_float!(x.dtype(), T => {
        let (x_values, gradient_values) = (values::<T>(&x)?, values::<T>(&gradient)?);
        let (values, gradients) = (x_values.get()?, gradient_values.get()?);
        let write = |output: &mut [MaybeUninit<T>]| {
            if width == 0 {
                return;
            }
            let rows = output.par_chunks_mut(2 * width).zip(values.par_chunks(2 * width));
            let rows = rows.zip(gradients.par_chunks(width)).with_min_len(TASK.div_ceil(2 * width));
            rows.for_each(|((output, row), gradient)| {
                let (value, gate) = row.split_at(width);
                let (for_value, for_gate) = output.split_at_mut(width);
                run_at(level, GegluGradient { value, gate, gradient, for_value, for_gate });
            });
        };
        // SAFETY: the rows are the whole output, and `GegluGradient` writes all that it is given.
        let output = unsafe { fill(values.len(), write)? };
        Tensor::from_vec(output, x.shape(), &Device::Cpu)
    })
}

/// A function that has a slope.
pub(crate) trait Slope: Pointwise<1> + Send + 'static {
    /// Its derivative; `#[inline(always)]`.
    fn slope(self, x: Chunk) -> Chunk;
}

#[derive(Clone, Copy)]
struct TimesSlope<F>(F);

impl<F: Slope> Pointwise<2> for TimesSlope<F> {
    #[inline(always)]
    fn apply(self, [x, gradient]: [Chunk; 2]) -> Chunk {
        let mut slope = self.0.slope(x);
        for lane in 0..LANES {
            slope[lane] *= gradient[lane];
        }
        slope
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Silu;

impl Slope for Silu {
    #[inline(always)]
    fn slope(self, x: Chunk) -> Chunk {
        QuickGelu::slope_scaled(x, 1.0)
    }
}

impl Slope for QuickGelu {
    #[inline(always)]
    fn slope(self, x: Chunk) -> Chunk {
        Self::slope_scaled(x, 1.702)
    }
}

impl Pointwise<1> for Silu {
    #[inline(always)]
    fn apply(self, [x]: [Chunk; 1]) -> Chunk {
        QuickGelu::scaled(x, 1.0)
    }
}

#[derive(Clone, Copy)]
struct QuickGelu;

impl QuickGelu {
    /// `x / (1 + exp(-scale * x))`
    #[inline(always)]
    fn scaled(mut x: Chunk, scale: f32) -> Chunk {
        for x in &mut x {
            *x /= 1.0 + exp::<false>(-scale * *x);
        }
        x
    }

    /// `s (1 + scale x (1 - s))` with `s = 1 / (1 + exp(-scale x))`.
    #[inline(always)]
    fn slope_scaled(mut x: Chunk, scale: f32) -> Chunk {
        for x in &mut x {
            let sigmoid = 1.0 / (1.0 + exp::<false>(-scale * *x));
            *x = sigmoid * (1.0 + scale * *x * (1.0 - sigmoid));
        }
        x
    }
}

impl Pointwise<1> for QuickGelu {
    #[inline(always)]
    fn apply(self, [x]: [Chunk; 1]) -> Chunk {
        Self::scaled(x, 1.702)
    }
}

#[derive(Clone, Copy)]
struct Gelu;

impl Gelu {
    /// [`TAIL`](Self::TAIL) is a polynomial in `1 / (1 + RATE t)`.
    const RATE: f32 = 0.35;

    /// The normal distribution's tail beyond `t >= 0`, divided by `exp(-t^2 / 2)` and by `1 / (1 + RATE t)`: the constant first. Fitted for
    /// the least relative error on 0 to 14.5, which is 3.2e-8.
    const TAIL: [f32; 9] = [
        0.139_621_3,
        0.139_863_52,
        0.119_821_18,
        0.105_552_934,
        -0.023_213_407,
        0.159_321_28,
        -0.255_840_42,
        0.144_031_61,
        -0.029_158_03,
    ];

    /// Beyond it the tail is less than any number.
    const END: f32 = 14.5;

    /// The normal distribution's tail beyond a distance from 0 to END, and `exp(-distance^2 / 2)`.
    #[inline(always)]
    fn tail(distance: f32) -> [f32; 2] {
        let inverse = 1.0 / (1.0 + Self::RATE * distance);
        let [rest @ .., last] = Self::TAIL;
        let tail = rest.into_iter().rev().fold(last, |sum, next| sum * inverse + next);
        let power = exp::<false>(-0.5 * distance * distance);
        [tail * inverse * power, power]
    }
}

impl Slope for Gelu {
    /// The normal distribution up to `x`, and `x` times its density.
    #[inline(always)]
    fn slope(self, mut x: Chunk) -> Chunk {
        /// `1 / sqrt(2 pi)`
        const DENSITY: f32 = 0.398_942_3;
        for x in &mut x {
            let number = *x;
            let distance = if number.abs() < Self::END { number.abs() } else { Self::END };
            let [tail, power] = Self::tail(distance);
            let below = if number < 0.0 { tail } else { 1.0 - tail };
            let slope = below + number.clamp(-Self::END, Self::END) * (DENSITY * power);
            // Beside END a NaN would be lost.
            *x = if number.is_nan() { number } else { slope };
        }
        x
    }
}

/// The gradients of a row's two halves.
struct GegluGradient<'a, T> {
    value: &'a [T],
    gate: &'a [T],
    gradient: &'a [T],
    for_value: &'a mut [MaybeUninit<T>],
    for_gate: &'a mut [MaybeUninit<T>],
}

impl<T: Float> Work for GegluGradient<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self, instructions: impl Instructions) {
        let Self { value, gate, gradient, for_value, for_gate } = self;
        OnPart { inputs: [gate, gradient], output: for_value, function: TimesGelu }.run(instructions);
        OnPart { inputs: [value, gate, gradient], output: for_gate, function: TimesGeluSlope }
            .run(instructions);
    }
}

#[derive(Clone, Copy)]
struct TimesGelu;

impl Pointwise<2> for TimesGelu {
    #[inline(always)]
    fn apply(self, [gate, gradient]: [Chunk; 2]) -> Chunk {
        Geglu.apply([gradient, gate])
    }
}

#[derive(Clone, Copy)]
struct TimesGeluSlope;

impl Pointwise<3> for TimesGeluSlope {
    #[inline(always)]
    fn apply(self, [value, gate, gradient]: [Chunk; 3]) -> Chunk {
        let mut slope = Gelu.slope(gate);
        for lane in 0..LANES {
            slope[lane] *= value[lane] * gradient[lane];
        }
        slope
    }
}

impl Pointwise<1> for Gelu {
    /// `x` times the normal distribution up to it. Of that the tail beyond `|x|` is what is computed: `1 + erf(x / sqrt 2)` would lose all digits
    /// where `x` is far below zero.
    #[inline(always)]
    fn apply(self, [x]: [Chunk; 1]) -> Chunk {
        let mut result = x;
        for result in &mut result {
            let x = *result;
            // A NaN becomes END here, and is one again at the end.
            let distance = if x.abs() < Self::END { x.abs() } else { Self::END };
            let [tail, _] = Self::tail(distance);
            let positive = if x < 0.0 { 0.0 } else { x };
            *result = positive - distance * tail;
        }
        result
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Geglu;

impl Pointwise<2> for Geglu {
    #[inline(always)]
    fn apply(self, [value, gate]: [Chunk; 2]) -> Chunk {
        let mut result = Gelu.apply([gate]);
        for lane in 0..LANES {
            result[lane] *= value[lane];
        }
        result
    }
}
