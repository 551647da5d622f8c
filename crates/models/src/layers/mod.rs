//! The layers with weights: linear, convolution, normalisation, embedding. Each is built from a `VarBuilder` whose prefix
//! is the layer's name in diffusers' state dict. Linear layers and convolutions can be listed and changed from outside: see [`Layers`].

mod activation;
mod adapter;
mod conv2d;
mod embedding;
mod layer;
mod linear;
mod list;
mod norm;
mod weight;

pub use activation::Activation;
pub use adapter::LayerAdapter;
pub use conv2d::Conv2d;
pub use embedding::Embedding;
pub use layer::{Layer, Operation};
pub use linear::Linear;
pub use list::{LayerList, Layers};
pub use norm::{GroupNorm, LayerNorm};
