use std::mem::MaybeUninit;
use std::ops::Range;

use candle_core::{DType, Result, Tensor};
use half::{bf16, f16};

use super::level::Level;
use super::microkernel::{MatrixRows, Microkernel};
use super::multiply::{Activations, After, Factor, multiply};
use super::packed::{Numbers, PackedWeight, Side};
use super::panels::{Element, Source, transpose_rows};
use super::parts::{InFewParts, InParts, Parts, parts_at};
use super::precision::{Float32MatmulPrecision, float32_matmul_precision};
use super::weight_panels::{Stored, WeightPanels};
use super::{bias_values, to_tensor, with_addend, with_values};
use crate::cpu::{Float, fill};

pub(super) fn linear(
    x: &Tensor,
    weight: &PackedWeight,
    bias: Option<&Tensor>,
    after: After<'_, Tensor>,
) -> Result<Tensor> {
    let shape = x.dims();
    if weight.side() != Side::Right || shape.len() < 2 || shape.last() != Some(&weight.depth()) {
        candle_core::bail!("linear: the weight is {:?}, but the input is {shape:?}", weight.shape().dims());
    }
    let bias = bias_values("linear", x, weight, bias)?;
    let bias = bias.as_deref();
    // Half precision may be computed with in float32.
    let is_float = weight.dtype() == DType::F32;
    let precision = float32_matmul_precision()?;
    match weight.numbers() {
        Numbers::F32(kernel, panels) => float32(precision, x, kernel, panels, bias, after),
        Numbers::F16(kernel, panels) if is_float => float32(precision, x, kernel, panels, bias, after),
        Numbers::F16(kernel, panels) => compute::<f16, _, _>(x, kernel, panels, bias, after),
        Numbers::Bf16(kernel, panels) if is_float => float32(precision, x, kernel, panels, bias, after),
        Numbers::Bf16(kernel, panels) => compute::<bf16, _, _>(x, kernel, panels, bias, after),
        Numbers::Bf16Pairs(kernel, panels) => compute::<bf16, _, _>(x, kernel, panels, bias, after),
    }
}

fn compute<S: Float + Source<E>, E: Source<E>, T: Stored<E>>(
    x: &Tensor,
    kernel: &Microkernel<E>,
    panels: &WeightPanels<T>,
    bias: Option<&[f32]>,
    after: After<'_, Tensor>,
) -> Result<Tensor> {
    with_rows(x, panels, after, |rows: &Rows<'_, S>, after, output| {
        multiply(&Factor { kernel, side: Side::Right, panels, bias }, rows, after, output);
    })
}

/// Float32 at a precision.
pub(super) fn float32<T: InFewParts>(
    precision: Float32MatmulPrecision,
    x: &Tensor,
    kernel: &Microkernel,
    panels: &WeightPanels<T>,
    bias: Option<&[f32]>,
    after: After<'_, Tensor>,
) -> Result<Tensor> {
    match parts_at(kernel.level, precision, panels.steps()) {
        Some(1) => compute_in_parts::<1, _>(x, kernel.level, panels, bias, after),
        Some(2) => compute_in_parts::<2, _>(x, kernel.level, panels, bias, after),
        Some(_) => compute_in_parts::<3, _>(x, kernel.level, panels, bias, after),
        None => compute::<f32, _, _>(x, kernel, panels, bias, after),
    }
}

/// Float32 by products of its parts.
fn compute_in_parts<const PARTS: usize, T: InFewParts + Stored<Parts<PARTS>>>(
    x: &Tensor,
    level: Level,
    panels: &WeightPanels<T>,
    bias: Option<&[f32]>,
    after: After<'_, Tensor>,
) -> Result<Tensor> {
    let Some((kernel, [order, _])) = Microkernel::<Parts<PARTS>>::in_parts(level, Side::Right, T::PARTS)
    else {
        candle_core::bail!("linear: {} multiplies no parts of float32", level.name());
    };
    with_rows(x, panels, after, |rows: &Rows<'_, f32>, after, output| {
        let factor = Factor { kernel: &kernel, side: Side::Right, panels, bias };
        multiply(&factor, &InParts { activations: rows, order }, after, output);
    })
}

/// Calls `multiply` with the input's rows and room for the output, which it writes.
fn with_rows<S: Float, T: Element>(
    x: &Tensor,
    panels: &WeightPanels<T>,
    after: After<'_, Tensor>,
    multiply: impl FnOnce(&Rows<'_, S>, After<'_, [S]>, &mut [MaybeUninit<S>]),
) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let depth = shape.pop().unwrap_or_default();
    let (items, features) = (shape.iter().product::<usize>(), panels.features() / after.halves());
    shape.push(features);
    with_values(x, |values: &[S]| {
        let rows = Rows { values, items, depth, features };
        with_addend("linear", after, &shape, |after| {
            // SAFETY: a product writes all of its output.
            let output = unsafe { fill(items * features, |output| multiply(&rows, after, output))? };
            Ok(to_tensor(output, &shape))
        })
    })
}

/// The rows of a matrix `(items, depth)`; the output is `(items, features)`.
struct Rows<'a, S> {
    values: &'a [S],
    items: usize,
    depth: usize,
    features: usize,
}

impl<S: Source<E>, E: Element> Activations<E> for Rows<'_, S> {
    type Number = S;

    fn items(&self) -> usize {
        self.items
    }

    fn rows(&self, items: Range<usize>, steps: Range<usize>) -> Option<MatrixRows<'_, S>> {
        let whole_steps = self.depth.is_multiple_of(S::PER_STEP);
        (S::IS_AS_STEPS && whole_steps).then(|| {
            let first = items.start * self.depth + steps.start * S::PER_STEP;
            MatrixRows::new(&self.values[first..], self.depth)
        })
    }

    fn pack(&self, items: Range<usize>, steps: Range<usize>, width: usize, panel: &mut [E]) {
        let depths = steps.start * S::PER_STEP..self.depth.min(steps.end * S::PER_STEP);
        let rows = items.map(|item| &self.values[item * self.depth..][depths.clone()]);
        transpose_rows(rows, width, panel);
    }

    fn place(&self, feature: usize, item: usize) -> usize {
        item * self.features + feature
    }

    fn adjoin(&self, _: &Range<usize>) -> bool {
        false
    }
}
