use candle_core::Tensor;
use candle_diffusers_kernels::{self as kernels, GroupNormSilu};
use candle_nn::VarBuilder;

use super::weight::in_dtype_of;
use super::{LayerList, Layers};
use crate::error::{Error, Result};

/// Group normalisation, with the state-dict keys `weight` and `bias`, each `(channels)`.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// # Errors
    /// When `groups` does not divide `channels`, or a tensor is missing or wrongly shaped.
    pub fn new(groups: usize, channels: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            let problem =
                format!("({groups} groups) does not divide the {channels} channels of {}", vb.prefix());
            return Err(Error::Input { model: "GroupNorm", input: "norm_num_groups", problem });
        }
        Ok(Self { weight: vb.get(channels, "weight")?, bias: vb.get(channels, "bias")?, groups, eps })
    }

    /// `(batch, channels, ...)`, same shape out.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Self { weight, bias, groups, eps } = self.in_dtype_of(x)?;
        Ok(kernels::group_norm(x, groups, &weight, &bias, eps)?)
    }

    /// [`GroupNorm::forward`], then silu.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        let Self { weight, bias, groups, eps } = self.in_dtype_of(x)?;
        Ok(kernels::group_norm_silu(x, groups, &weight, &bias, eps)?)
    }

    /// The same, for `x`.
    pub(super) fn in_dtype_of(&self, x: &Tensor) -> Result<Self> {
        Ok(Self { weight: in_dtype_of(x, &self.weight)?, bias: in_dtype_of(x, &self.bias)?, ..*self })
    }

    /// [`GroupNorm::forward_silu`], perhaps of the sum with `vectors` `(batch, channels)`, for a convolution that reads its input through it
    /// ([`Conv2d::forward_normed`](super::Conv2d::forward_normed)).
    pub(super) fn then_silu<'a>(&'a self, vectors: Option<&'a Tensor>) -> GroupNormSilu<'a> {
        let Self { weight, bias, groups, eps } = self;
        GroupNormSilu { vectors, groups: *groups, weight, bias, eps: *eps }
    }
}

impl Layers for GroupNorm {
    /// It has no layers to change from outside.
    fn list_layers(&self, list: &mut LayerList) {
        list.add_norm(&self.weight, &self.bias);
    }
}

/// Layer normalisation over the last dimension, with the state-dict keys `weight` and `bias`, each `(features)`.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(features: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get(features, "weight")?, bias: vb.get(features, "bias")?, eps })
    }

    /// `(..., features)`, same shape out.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (in_dtype_of(x, &self.weight)?, in_dtype_of(x, &self.bias)?);
        Ok(kernels::layer_norm(x, &weight, &bias, self.eps)?)
    }
}
