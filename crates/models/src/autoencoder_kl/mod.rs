//! The autoencoder of latent diffusion (Rombach et al., 2022), as diffusers' `models/autoencoders/autoencoder_kl.py` and `vae.py`
//! have it: pictures to latents of an eighth of the size, and back.

mod config;
mod decoder;
mod distribution;
mod encoder;
mod mid_block;
mod model;
mod tiling;

pub use config::AutoencoderKLConfig;
pub use decoder::{Decoder, UpDecoderBlock2D};
pub use distribution::DiagonalGaussianDistribution;
pub use encoder::{DownEncoderBlock2D, Encoder};
pub use mid_block::AutoencoderMidBlock2D;
pub use model::{AutoencoderKL, BatchSlicing};
pub use tiling::Tiling;
