use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::layer::Then;
use super::{Activation, Layer, LayerList, Layers, Operation};
use crate::error::Result;

/// `y = x W^T + b`, with the state-dict keys `weight` `(out_features, in_features)` and `bias` `(out_features)`.
#[derive(Debug)]
pub struct Linear {
    layer: Layer,
}

impl Linear {
    /// A layer with a bias.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(in_features: usize, out_features: usize, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get((out_features, in_features), "weight")?;
        let bias = Some(vb.get(out_features, "bias")?);
        Ok(Self { layer: Layer::new(Operation::Linear, weight, bias) })
    }

    /// A layer without a bias.
    ///
    /// # Errors
    /// When the weight is missing or wrongly shaped.
    pub fn without_bias(in_features: usize, out_features: usize, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get((out_features, in_features), "weight")?;
        Ok(Self { layer: Layer::new(Operation::Linear, weight, None) })
    }

    /// The layer, to look at and to change.
    pub(crate) fn layer(&self) -> &Layer {
        &self.layer
    }

    /// `(..., in_features)` to `(..., out_features)`.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.layer.forward(x)
    }

    /// [`forward`](Self::forward) plus `addend`, which has the shape of the result.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn forward_add(&self, x: &Tensor, addend: &Tensor) -> Result<Tensor> {
        self.layer.forward_then(x, Then::Add(addend))
    }

    /// [`forward`](Self::forward), then an activation.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.layer.forward_then(x, Then::Activate(activation.kernel()))
    }

    /// [`forward`](Self::forward), then [`geglu`](candle_diffusers_kernels::geglu()): `(..., in_features)` to `(..., out_features / 2)`.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit, or there is an odd number of features.
    pub fn forward_geglu(&self, x: &Tensor) -> Result<Tensor> {
        self.layer.forward_then(x, Then::Geglu)
    }
}

impl Clone for Linear {
    /// Shares the tensors; what is changed in one is not changed in the other.
    fn clone(&self) -> Self {
        Self { layer: self.layer.detached_copy() }
    }
}

impl Layers for Linear {
    fn list_layers(&self, list: &mut LayerList) {
        list.add_layer(&self.layer);
    }
}
