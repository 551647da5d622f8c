//! CLIP's text encoder (Radford et al., 2021), as transformers' `models/clip/modeling_clip.py` has it: what turns a prompt's
//! token ids into the `encoder_hidden_states` of a UNet.
//!
//! Parameter paths begin with `text_model.`, as in the files of nearly every Stable Diffusion repository. Files written by
//! transformers 5 leave this prefix away for [`ClipTextModel`]; whoever opens the file adds it.

mod config;
mod layer;
mod model;
mod token_embedding;

pub use config::{ClipTextConfig, EosTokenId};
pub use model::{ClipTextModel, ClipTextModelOutput, ClipTextModelWithProjection, ClipTextOutput};
