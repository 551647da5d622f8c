//! Parity with the reference library, a folder each: see CONTRIBUTING.md.

// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used)]

mod control_net;
mod image_to_image;
mod inpainting;
mod instruct_pix2pix;
mod lora;
mod painted;
mod safety_checker;
mod single_file;
mod stable_diffusion_xl;
mod text_to_image;
mod textual_inversion;
mod unconditional;
