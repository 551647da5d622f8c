use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use super::multiply::{Activations, multiply};
use super::packed::{PackedWeight, Side};
use super::panels::transpose_rows;
use super::{bias_values, with_values};

pub(super) fn linear(x: &Tensor, weight: &PackedWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    if weight.side() != Side::Right || shape.len() < 2 || shape.last() != Some(&weight.depth()) {
        candle_core::bail!("linear: the weight is {:?}, but the input is {shape:?}", weight.shape().dims());
    }
    let (depth, features) = (weight.depth(), weight.features());
    let bias = bias_values("linear", x, bias, features)?;
    shape.pop();
    let items = shape.iter().product::<usize>();
    shape.push(features);
    let mut output = vec![0f32; items * features];
    with_values(&x.to_dtype(DType::F32)?, |values| {
        multiply(weight, &Rows { values, items, depth, features }, bias.as_deref(), &mut output);
        Ok(())
    })?;
    Tensor::from_vec(output, shape, &Device::Cpu)?.to_dtype(x.dtype())
}

/// The rows of a matrix `(items, depth)`; the output is `(items, features)`.
struct Rows<'a> {
    values: &'a [f32],
    items: usize,
    depth: usize,
    features: usize,
}

impl Activations for Rows<'_> {
    fn items(&self) -> usize {
        self.items
    }

    fn pack(&self, items: Range<usize>, depths: Range<usize>, width: usize, panel: &mut [f32]) {
        let length = depths.len();
        let rows = items.map(|item| &self.values[item * self.depth..][depths.clone()]);
        transpose_rows(rows, width, length, panel);
    }

    fn place(&self, feature: usize, item: usize) -> usize {
        item * self.features + feature
    }

    fn stride(&self) -> usize {
        self.features
    }

    fn adjoin(&self, _: &Range<usize>) -> bool {
        true
    }
}
