//! Parity with the reference library, a folder each: see CONTRIBUTING.md.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

mod autoencoder_kl;
mod blocks;
mod clip_text;
mod unet_2d_condition;
mod unet_blocks;
