//! Who is taught.

use anyhow::{Result, bail};
use candle_core::Tensor;
use candle_diffusers_models::UNet2DModel;
use candle_diffusers_pipelines::StableDiffusionPipeline;
use candle_diffusers_training::RandomSource;
use candle_diffusers_training::recipes::{
    ControlNetDenoising, CustomDiffusionDenoising, Denoising, DenoisingOptions, Example,
    InstructPix2PixDenoising, InstructPix2PixOptions, TrainedControlNet, UnconditionalDenoising,
    UnconditionalOptions,
};
use serde_json::Value;

/// The models of a run.
pub(super) enum Taught {
    /// Stable Diffusion, from pictures with captions.
    StableDiffusion(Box<StableDiffusionPipeline>, DenoisingOptions),
    /// The same, by the loss of Custom Diffusion.
    CustomDiffusion(Box<StableDiffusionPipeline>, DenoisingOptions),
    /// A ControlNet beside Stable Diffusion.
    ControlNet(Box<StableDiffusionPipeline>, TrainedControlNet, DenoisingOptions),
    /// Stable Diffusion that edits pictures, and its UNet's config.
    Editing(Box<StableDiffusionPipeline>, Value, InstructPix2PixOptions),
    /// A UNet that paints without a text, and its config.
    Unconditional(Box<UNet2DModel>, Value, UnconditionalOptions),
}

/// What computes the loss of a batch.
pub(super) type Teacher<'a> =
    Box<dyn Fn(&[Example], &mut dyn RandomSource) -> candle_diffusers_training::Result<Tensor> + 'a>;

impl Taught {
    /// For a run that has seen so many pictures.
    pub(super) fn teacher(&self, seen: u64) -> Result<Teacher<'_>> {
        Ok(match self {
            Self::StableDiffusion(models, options) => {
                let denoising = Denoising::new(models, options.clone())?;
                Box::new(move |examples, generator| denoising.loss(examples, generator))
            }
            Self::CustomDiffusion(models, options) => {
                let denoising = CustomDiffusionDenoising::new(models, options.clone())?;
                Box::new(move |examples, generator| denoising.loss(examples, generator))
            }
            Self::ControlNet(models, trained, options) => {
                let denoising = ControlNetDenoising::new(models, &trained.net, options.clone())?;
                Box::new(move |examples, generator| denoising.loss(examples, generator))
            }
            Self::Editing(models, _, options) => {
                let denoising = InstructPix2PixDenoising::new(models, options.clone(), seen as usize)?;
                Box::new(move |examples, generator| denoising.loss(examples, generator))
            }
            Self::Unconditional(unet, _, options) => {
                let (denoising, device) = (UnconditionalDenoising::new(unet, options)?, unet.device());
                Box::new(move |examples, generator| {
                    let pictures: Vec<&Tensor> =
                        examples.iter().map(|example| &example.pixel_values).collect();
                    denoising.loss(&Tensor::stack(&pictures, 0)?.to_device(&device)?, generator)
                })
            }
        })
    }

    /// The models, where they paint from a text.
    pub(super) fn pipeline(&self) -> Option<&StableDiffusionPipeline> {
        match self {
            Self::StableDiffusion(models, _)
            | Self::CustomDiffusion(models, _)
            | Self::ControlNet(models, ..)
            | Self::Editing(models, ..) => Some(models),
            Self::Unconditional(..) => None,
        }
    }

    pub(super) fn stable_diffusion(self) -> Result<StableDiffusionPipeline> {
        match self {
            Self::StableDiffusion(models, _)
            | Self::CustomDiffusion(models, _)
            | Self::ControlNet(models, ..)
            | Self::Editing(models, ..) => Ok(*models),
            Self::Unconditional(..) => bail!("this model paints without a text"),
        }
    }
}
