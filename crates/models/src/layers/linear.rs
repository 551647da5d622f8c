use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::error::Result;

/// `y = x W^T + b`, with the state-dict keys `weight` `(out_features, in_features)` and `bias` `(out_features)`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// A layer with a bias.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(in_features: usize, out_features: usize, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get((out_features, in_features), "weight")?;
        let bias = Some(vb.get(out_features, "bias")?);
        Ok(Self { weight, bias })
    }

    /// A layer without a bias.
    ///
    /// # Errors
    /// When the weight is missing or wrongly shaped.
    pub fn without_bias(in_features: usize, out_features: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get((out_features, in_features), "weight")?, bias: None })
    }

    /// `(..., in_features)` to `(..., out_features)`.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(candle_diffusers_kernels::linear(x, &self.weight, self.bias.as_ref())?)
    }
}
