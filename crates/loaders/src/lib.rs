//! From a diffusers folder or hub id to models on a device.

mod component;
mod error;
mod key_names;
mod model_index;
mod repository;
mod state_dict;
mod tokenizer;
mod tokenizer_config;
mod weights;

pub use component::{LoadOptions, load_component, load_scheduler_config};
pub use error::{Error, Result};
pub use model_index::{ComponentClass, KNOWN_PIPELINES, MODEL_INDEX, ModelIndex};
pub use repository::Repository;
pub use state_dict::StateDict;
pub use tokenizer::{ClipTokenizer, Encoded};
pub use weights::{check_variant, find_weights};
