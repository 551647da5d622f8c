//! LoRA files: adapters of a model's layers, in whichever of the layouts they are shared.

mod adapted_layer;
mod adapter_config;
mod assemble;
mod calculate;
mod cloneofsimo;
mod component_folders;
mod error;
mod family;
mod file;
mod known_models;
mod layout;
mod names;
mod part;
mod scalar;
mod write;

pub use adapted_layer::{AdaptedLayer, LokrFactor, LoraComponent, LoraWeights, TensorRef};
pub use calculate::{ComputedLora, ExtractOptions, WeightedLora, extract_lora, merge_loras, resize_lora};
pub use error::LoraError;
pub use file::LoraFile;
pub use layout::LoraLayout;
pub use write::LoraFormat;
