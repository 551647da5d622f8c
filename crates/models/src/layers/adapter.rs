use std::fmt::Debug;

use candle_core::Tensor;

use super::Layer;
use crate::error::Result;

/// A change of what one [`Layer`] computes, put there from outside ([`Layer::set_adapter`]): the model does not know of it.
///
/// Gradients flow through an adapter as through any code, so that its tensors can be trained.
pub trait LayerAdapter: Debug + Send + Sync {
    /// The output with the change. `input` is what the layer was given and `output` what it computes without this adapter, bias
    /// included. For linear layers they are `(..., in_features)` and `(..., out_features)`, for convolutions
    /// `(batch, in_channels, height, width)` and `(batch, out_channels, height', width')`.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    fn forward(&self, layer: &Layer, input: &Tensor, output: Tensor) -> Result<Tensor>;
}
