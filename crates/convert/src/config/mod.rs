//! The `config.json` of each model: written from its structure, and read to get the structure.

mod clip;
mod controlnet;
mod fields;
mod unet;
mod vae;

pub(crate) use clip::{clip_from_config, clip_to_config};
pub(crate) use controlnet::{controlnet_from_config, controlnet_to_config};
pub(crate) use fields::Fields;
pub(crate) use unet::{Settings, unet_from_config, unet_to_config};
pub(crate) use vae::{vae_from_config, vae_to_config};

/// The version of diffusers whose fields the configs have.
pub(crate) const DIFFUSERS_VERSION: &str = "0.42.1";

/// How many heads attention has over so many channels: heads of `head_width` where they fit, else the widest that do.
///
/// The flag says whether `head_width` fits.
pub(crate) fn heads_of_width(channels: usize, head_width: usize) -> (usize, bool) {
    let head_width = head_width.max(1);
    if channels > 0 && channels.is_multiple_of(head_width) {
        return (channels / head_width, true);
    }
    let narrower = [64, 32, 16, 8, 4, 2];
    let fits = narrower.into_iter().find(|width| *width < head_width && channels.is_multiple_of(*width));
    (channels / fits.unwrap_or(1), false)
}
