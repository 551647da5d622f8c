//! The models that pipelines are made of, by their folder.

use candle_diffusers_models::{
    AutoencoderKL, AutoencoderKLConfig, ClipTextConfig, ClipTextModel, ClipTextModelWithProjection,
    ControlNetConfig, ControlNetModel, SafetyCheckerConfig, StableDiffusionSafetyChecker,
    UNet2DConditionConfig, UNet2DConditionModel, UNet2DConfig, UNet2DModel, VQModel, VQModelConfig,
};

use crate::{LoadOptions, Repository, Result, load_model};

/// The UNet in `folder` (`unet`) of `repository`.
///
/// # Errors
/// As [`load_model`]; a field of the config that is set and not supported is named.
pub fn load_unet(
    repository: &Repository,
    folder: &str,
    options: &LoadOptions,
) -> Result<UNet2DConditionModel> {
    load_model(repository, folder, options, |config, builder| {
        UNet2DConditionModel::new(&UNet2DConditionConfig::from_json(config)?, builder)
    })
}

/// The VAE in `folder` (`vae`) of `repository`.
///
/// # Errors
/// As [`load_model`]; a field of the config that is set and not supported is named.
pub fn load_vae(repository: &Repository, folder: &str, options: &LoadOptions) -> Result<AutoencoderKL> {
    load_model(repository, folder, options, |config, builder| {
        AutoencoderKL::new(&AutoencoderKLConfig::from_json(config)?, builder)
    })
}

/// The CLIP text encoder in `folder` (`text_encoder`) of `repository`, of the class `CLIPTextModel`.
///
/// # Errors
/// As [`load_model`]; a field of the config that is set and not supported is named.
pub fn load_text_encoder(
    repository: &Repository,
    folder: &str,
    options: &LoadOptions,
) -> Result<ClipTextModel> {
    load_model(repository, folder, options, |config, builder| {
        ClipTextModel::new(&ClipTextConfig::from_json(config)?, builder)
    })
}

/// The CLIP text encoder in `folder` (`text_encoder_2`) of `repository`, of the class `CLIPTextModelWithProjection`.
///
/// # Errors
/// As [`load_model`]; a field of the config that is set and not supported is named.
pub fn load_text_encoder_with_projection(
    repository: &Repository,
    folder: &str,
    options: &LoadOptions,
) -> Result<ClipTextModelWithProjection> {
    load_model(repository, folder, options, |config, builder| {
        ClipTextModelWithProjection::new(&ClipTextConfig::from_json(config)?, builder)
    })
}

/// The ControlNet in `folder` (`""`: they are published alone) of `repository`.
///
/// # Errors
/// As [`load_model`]; a field of the config that is set and not supported is named.
pub fn load_controlnet(
    repository: &Repository,
    folder: &str,
    options: &LoadOptions,
) -> Result<ControlNetModel> {
    load_model(repository, folder, options, |config, builder| {
        ControlNetModel::new(&ControlNetConfig::from_json(config)?, builder)
    })
}

/// The safety checker in `folder` (`safety_checker`) of `repository`.
///
/// # Errors
/// As [`load_model`]; a field of the config that is set and not supported is named.
pub fn load_safety_checker(
    repository: &Repository,
    folder: &str,
    options: &LoadOptions,
) -> Result<StableDiffusionSafetyChecker> {
    load_model(repository, folder, options, |config, builder| {
        StableDiffusionSafetyChecker::new(&SafetyCheckerConfig::from_json(config)?, builder)
    })
}

/// The UNet of unconditional diffusion in `folder` (`unet`) of `repository`.
///
/// # Errors
/// As [`load_model`]; a field of the config that is set and not supported is named.
pub fn load_unet_2d(repository: &Repository, folder: &str, options: &LoadOptions) -> Result<UNet2DModel> {
    load_model(repository, folder, options, |config, builder| {
        UNet2DModel::new(&UNet2DConfig::from_json(config)?, builder)
    })
}

/// The autoencoder in `folder` (`vqvae`) of `repository`.
///
/// # Errors
/// As [`load_model`]; a field of the config that is set and not supported is named.
pub fn load_vq_model(repository: &Repository, folder: &str, options: &LoadOptions) -> Result<VQModel> {
    load_model(repository, folder, options, |config, builder| {
        VQModel::new(&VQModelConfig::from_json(config)?, builder)
    })
}
