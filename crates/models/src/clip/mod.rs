//! CLIP's encoders (Radford et al., 2021), as transformers' `models/clip/modeling_clip.py` has them: that of text turns a prompt's
//! token ids into the `encoder_hidden_states` of a UNet, that of pictures is the eye of the safety checker.
//!
//! Parameter paths begin with `text_model.` and `vision_model.`, as in the files of nearly every Stable Diffusion repository. Files written by
//! transformers 5 leave these prefixes away for [`ClipTextModel`] and [`ClipVisionModel`]; whoever opens the file adds them.

mod config;
mod layer;
mod model;
mod token_embedding;
mod vision;
mod vision_config;

pub(crate) use config::WITHOUT_INFLUENCE;
pub use config::{ClipTextConfig, EosTokenId};
pub use model::{ClipTextModel, ClipTextModelOutput, ClipTextModelWithProjection, ClipTextOutput};
pub use vision::{ClipVisionModel, ClipVisionOutput};
pub use vision_config::ClipVisionConfig;
