//! The layers with weights: linear, convolution, normalisation, embedding. Each is built from a `VarBuilder` whose prefix
//! is the layer's name in diffusers' state dict.

mod activation;
mod conv2d;
mod embedding;
mod linear;
mod norm;

pub use activation::Activation;
pub use conv2d::Conv2d;
pub use embedding::Embedding;
pub use linear::Linear;
pub use norm::{GroupNorm, LayerNorm};
