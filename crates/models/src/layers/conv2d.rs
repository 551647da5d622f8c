use candle_core::Tensor;
use candle_diffusers_kernels::Conv2dParams;
use candle_nn::VarBuilder;

use super::layer::Then;
use super::{Activation, GroupNorm, Layer, LayerList, Layers, Operation};
use crate::error::Result;

/// A 2D convolution with a square kernel, with the state-dict keys `weight` `(out_channels, in_channels, kernel, kernel)` and `bias`
/// `(out_channels)`.
#[derive(Debug)]
pub struct Conv2d {
    layer: Layer,
}

impl Conv2d {
    /// A layer with the given kernel size, stride and zero padding.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(
        in_channels: usize,
        out_channels: usize,
        kernel: usize,
        params: Conv2dParams,
        vb: VarBuilder,
    ) -> Result<Self> {
        let weight = vb.get((out_channels, in_channels, kernel, kernel), "weight")?;
        let bias = vb.get(out_channels, "bias")?;
        Ok(Self { layer: Layer::new(Operation::Conv2d(params), weight, Some(bias)) })
    }

    /// A layer without a bias.
    ///
    /// # Errors
    /// When the weight is missing or wrongly shaped.
    pub fn without_bias(
        in_channels: usize,
        out_channels: usize,
        kernel: usize,
        params: Conv2dParams,
        vb: VarBuilder,
    ) -> Result<Self> {
        let weight = vb.get((out_channels, in_channels, kernel, kernel), "weight")?;
        Ok(Self { layer: Layer::new(Operation::Conv2d(params), weight, None) })
    }

    /// A layer that keeps height and width: stride 1, and half the (odd) kernel as padding.
    ///
    /// # Errors
    /// Those of [`Conv2d::new`].
    pub fn same_size(in_channels: usize, out_channels: usize, kernel: usize, vb: VarBuilder) -> Result<Self> {
        let params = Conv2dParams { stride: 1, padding: (kernel - 1) / 2 };
        Self::new(in_channels, out_channels, kernel, params, vb)
    }

    /// The layer, to look at and to change.
    pub(crate) fn layer(&self) -> &Layer {
        &self.layer
    }

    /// `(batch, in_channels, height, width)` to `(batch, out_channels, height', width')`.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.layer.forward(x)
    }

    /// [`forward`](Self::forward) of `x` upsampled by two (nearest neighbour), which is not stored where it can be read from `x`.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn forward_upsampled(&self, x: &Tensor) -> Result<Tensor> {
        self.layer.forward_upsampled(x)
    }

    /// [`forward`](Self::forward) of `x` with a row of zeros below and a column at the right, besides those of the padding; they are not stored where they need
    /// not be.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn forward_padded_at_end(&self, x: &Tensor) -> Result<Tensor> {
        self.layer.forward_padded_at_end(x)
    }

    /// [`forward`](Self::forward) of `silu(norm(x))`, which is not stored where it can be read through: `vectors`, `(batch, in_channels)`, are added to `x`
    /// before, `addend`, which has the shape of the result, to the result.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn forward_normed(
        &self,
        x: &Tensor,
        norm: &GroupNorm,
        vectors: Option<&Tensor>,
        addend: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.layer.forward_normed(x, norm.in_dtype_of(x)?.then_silu(vectors), addend)
    }

    /// [`forward`](Self::forward), then an activation.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.layer.forward_then(x, Then::Activate(activation.kernel()))
    }

    /// [`forward`](Self::forward) plus `addend`, which has the shape of the result.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn forward_add(&self, x: &Tensor, addend: &Tensor) -> Result<Tensor> {
        self.layer.forward_then(x, Then::Add(addend))
    }
}

impl Clone for Conv2d {
    /// Shares the tensors; what is changed in one is not changed in the other.
    fn clone(&self) -> Self {
        Self { layer: self.layer.detached_copy() }
    }
}

impl Layers for Conv2d {
    fn list_layers(&self, list: &mut LayerList) {
        list.add_layer(&self.layer);
    }
}
