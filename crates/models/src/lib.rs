#![doc = include_str!("../README.md")]

pub mod attention;
mod attention_processor;
pub mod autoencoder_kl;
mod class_embedding;
pub mod clip;
mod config;
mod controlnet;
pub mod embeddings;
mod error;
pub mod gradient_checkpointing;
pub mod layers;
mod pixel_attention;
mod resampling;
mod resnet;
mod safety_checker;
mod text_cache;
pub mod transformer_2d;
pub mod unet_2d;
pub mod unet_2d_condition;
mod vq_model;

pub use attention_processor::{AttentionInput, AttentionLayer, AttentionProcessor};
pub use autoencoder_kl::{
    AutoencoderKL, AutoencoderKLConfig, BatchSlicing, DiagonalGaussianDistribution, Tiling,
};
pub use class_embedding::ClassEmbedType;
pub use clip::{
    ClipTextConfig, ClipTextModel, ClipTextModelOutput, ClipTextModelWithProjection, ClipTextOutput,
    ClipVisionConfig, ClipVisionModel, ClipVisionOutput, EosTokenId,
};
pub use controlnet::{ControlNetConfig, ControlNetModel, ControlNetOutput, ControlScale};
pub use error::{Error, Result};
pub use pixel_attention::{PixelAttention, PixelAttentionConfig};
pub use resampling::{Downsample2D, Upsample2D};
pub use resnet::{ResnetBlock2D, ResnetConfig, ResnetSampling, TimeScaleShift};
pub use safety_checker::{SafetyCheckerConfig, SafetyFindings, StableDiffusionSafetyChecker};
pub use text_cache::TextCache;
pub use unet_2d::{UNet2DConfig, UNet2DModel};
pub use unet_2d_condition::{
    ControlResiduals, TextTime, UNet2DConditionConfig, UNet2DConditionModel, UNetConditions,
};
pub use vq_model::{VQModel, VQModelConfig};
