//! Parity with the reference library, a folder each: see CONTRIBUTING.md.
mod clip_text;
mod unet_2d_condition;
mod unet_blocks;
