//! DoRA (<https://arxiv.org/abs/2402.09353>): a weight's rows keep lengths of their own, and the LoRA turns them.

use candle_core::{DType, Tensor, Var};
use candle_diffusers_models::layers::{Layer, Operation};

use crate::error::Result;

/// The length of each output channel's part of the changed weight, as PEFT trains it.
#[derive(Debug)]
pub(super) struct Magnitude {
    /// `(out_channels)`, in float32.
    pub(super) lengths: Var,
    /// The layer's own, which the layer itself may have packed.
    weight: Tensor,
}

impl Magnitude {
    /// The lengths that the layer's own weight has.
    pub(super) fn new(layer: &Layer) -> Result<Self> {
        let weight = layer.weight().detach();
        let lengths = lengths(&weight.to_dtype(DType::F32)?)?;
        Ok(Self { lengths: Var::from_tensor(&lengths)?, weight })
    }

    /// `output` with `(f - 1) * own + f * change` added, where f is what the lengths are over those of `weight + delta`, which get no gradient (section 4.3 of the
    /// paper). `change` is what the LoRA adds to the output and `delta` to the weight; `own` is what the weight makes of the input without the bias, which is
    /// another input than `output` is of where some of it is left out (`dropped`).
    pub(super) fn forward(
        &self,
        layer: &Layer,
        dropped: Option<&Tensor>,
        output: &Tensor,
        change: &Tensor,
        delta: &Tensor,
    ) -> candle_diffusers_models::Result<Tensor> {
        let by_channel = |values: &Tensor| -> candle_core::Result<Tensor> {
            let values = values.to_dtype(output.dtype())?;
            match layer.operation() {
                Operation::Conv2d(_) => values.reshape((1, (), 1, 1)),
                Operation::Linear => Ok(values),
            }
        };
        let own = match (dropped, layer.bias()) {
            (Some(input), _) => layer.operation().forward(input, &self.weight, None)?,
            (None, Some(bias)) => output.broadcast_sub(&by_channel(&bias)?)?,
            (None, None) => output.clone(),
        };
        let changed = (self.weight.to_dtype(DType::F32)? + delta)?;
        let factors = self.lengths.div(&lengths(&changed)?)?;
        let more = own.broadcast_mul(&by_channel(&(&factors - 1.0)?)?)?;
        Ok(((output + more)? + change.broadcast_mul(&by_channel(&factors)?)?)?)
    }
}

/// The lengths of the rows of a weight, `(out_channels)`.
fn lengths(weight: &Tensor) -> candle_core::Result<Tensor> {
    weight.flatten_from(1)?.sqr()?.sum(1)?.sqrt()
}
