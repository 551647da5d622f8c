#![doc = include_str!("../README.md")]

pub mod attention;
pub mod autoencoder_kl;
pub mod clip;
mod config;
pub mod embeddings;
mod error;
pub mod layers;
mod resampling;
mod resnet;
mod safety_checker;
mod text_cache;
pub mod transformer_2d;
pub mod unet_2d_condition;

pub use autoencoder_kl::{
    AutoencoderKL, AutoencoderKLConfig, BatchSlicing, DiagonalGaussianDistribution, Tiling,
};
pub use clip::{
    ClipTextConfig, ClipTextModel, ClipTextModelOutput, ClipTextModelWithProjection, ClipTextOutput,
    ClipVisionConfig, ClipVisionModel, ClipVisionOutput, EosTokenId,
};
pub use error::{Error, Result};
pub use resampling::{Downsample2D, Upsample2D};
pub use resnet::{ResnetBlock2D, ResnetConfig, TimeScaleShift};
pub use safety_checker::{SafetyCheckerConfig, SafetyFindings, StableDiffusionSafetyChecker};
pub use text_cache::TextCache;
pub use unet_2d_condition::{
    ControlResiduals, TextTime, UNet2DConditionConfig, UNet2DConditionModel, UNetConditions,
};
