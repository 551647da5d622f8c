//! Parity with the reference library, a folder each: see CONTRIBUTING.md.
mod autoencoder_kl;
mod blocks;
mod clip_text;
mod unet_2d_condition;
mod unet_blocks;
