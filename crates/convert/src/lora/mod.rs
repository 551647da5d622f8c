//! LoRA files: adapters of a model's layers, in whichever of the layouts they are shared.

mod adapted_layer;

pub use adapted_layer::{AdaptedLayer, LokrFactor, LoraComponent, LoraWeights, TensorRef};
