#![doc = include_str!("../README.md")]

mod component;
mod components;
mod error;
#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "hub")]
mod hub_download;
#[cfg(feature = "hub")]
mod hub_id;
mod key_names;
pub mod lora;
mod model_index;
#[cfg(feature = "hub")]
mod open;
mod packed;
#[cfg(feature = "hub")]
mod pipeline_files;
mod repository;
mod same_component;
mod single_file;
mod state_dict;
mod textual_inversion;
mod tokenizer;
mod tokenizer_added;
mod tokenizer_config;
mod weights;

/// How a single-file checkpoint is understood: what its tensors cannot tell.
pub use candle_diffusers_convert::{Heads, PredictionType, ReadOptions};
pub use component::{LoadOptions, load_component, load_model};
pub use components::{
    load_controlnet, load_safety_checker, load_text_encoder, load_text_encoder_with_projection, load_unet,
    load_unet_2d, load_vae, load_vq_model,
};
pub use error::{Error, Result};
#[cfg(feature = "hub")]
pub use hub::{Download, Hub};
#[cfg(feature = "hub")]
pub use hub_id::HubId;
pub use model_index::{ComponentClass, KNOWN_PIPELINES, MODEL_INDEX, ModelIndex};
pub use repository::Repository;
pub use same_component::{has_same_files, is_same_component};
pub use state_dict::StateDict;
pub use textual_inversion::{
    TextEncoderPlace, TextualInversion, TextualInversionError, TokenVectors, load_textual_inversion,
    unload_textual_inversion,
};
pub use tokenizer::{ClipTokenizer, Encoded};
pub use weights::{check_variant, find_weights};
