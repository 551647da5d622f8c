//! The structure of a model from the names and shapes that its tensors have in the original layout.
//!
//! Whatever is missing is guessed from its neighbours, so that the comparison with the structure's table can list it.

mod clip;
mod controlnet;
mod unet;
mod vae;

pub(crate) use clip::{open_clip, transformers_clip};
pub(crate) use controlnet::controlnet;
pub(crate) use unet::unet;
pub(crate) use vae::vae;
