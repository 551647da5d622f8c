//! Pictures that are painted while training: of the class, and to see how the model changes.

use std::ops::ControlFlow;

use anyhow::{Context, Result, bail};
use candle_core::DType;
use candle_diffusers_models::UNet2DModel;
use candle_diffusers_pipelines::{
    Control, InitImage, Inpainting, InstructPix2Pix, StableDiffusionPipeline, StepEnd, TextToImage,
    Unconditional, UnconditionalPipeline,
};
use candle_diffusers_schedulers::NoiseSource;
use candle_diffusers_training::recipes::UnconditionalDenoising;
use image::{GrayImage, Luma, Rgb, RgbImage};

use super::interrupt;
use super::taught::Taught;

impl Taught {
    /// Paints a prompt as the models are now; `picture` is what steers it, or is edited. None where an interrupt comes before it is done.
    pub(super) fn paint(
        &mut self,
        request: TextToImage,
        picture: Option<&RgbImage>,
        noise: &mut dyn NoiseSource,
    ) -> Result<Option<RgbImage>> {
        let picture = || picture.cloned().context("there is no --validation-image");
        match self {
            Self::StableDiffusion(models, _) | Self::CustomDiffusion(models, _) => {
                paint(models, request, noise)
            }
            Self::ControlNet(models, trained, _) => {
                let controls = vec![Control::new(trained.net.clone(), picture()?)];
                paint(models, TextToImage { controls, ..request }, noise)
            }
            Self::Editing(models, ..) => {
                let image = InitImage::Pictures(vec![picture()?]);
                let request = InstructPix2Pix { text: request, image, image_guidance_scale: 1.5 };
                finished(models.instruct_pix2pix(&request, noise, &mut go_on)?.images)
            }
            Self::Unconditional(..) => bail!("this model paints without a text"),
        }
    }

    /// Paints as the model is now, if it is one that needs no text. None where an interrupt comes before it is done.
    pub(super) fn paint_without_text(
        &self,
        request: &Unconditional,
        noise: &mut dyn NoiseSource,
    ) -> Result<Option<RgbImage>> {
        let Self::Unconditional(unet, _, options) = self else { bail!("this model paints from a text") };
        let scheduler = UnconditionalDenoising::new(unet, options)?.scheduler().config();
        let (unet, device) = (UNet2DModel::clone(unet), unet.device());
        let mut models = UnconditionalPipeline::new(unet, &scheduler, device, DType::F32)?;
        finished(models.generate(request, noise, &mut |_| Ok(unless_interrupted()))?)
    }
}

/// Paints a prompt; a model that paints into pictures is given one that is all mask. None where an interrupt comes before it is done.
pub(super) fn paint(
    models: &mut StableDiffusionPipeline,
    request: TextToImage,
    noise: &mut dyn NoiseSource,
) -> Result<Option<RgbImage>> {
    if models.unet.config().in_channels == models.vae.config().latent_channels {
        return finished(models.generate(&request, noise, &mut go_on)?.images);
    }
    // Both are brought to the size that is painted.
    let request = Inpainting {
        text: request,
        image: InitImage::Pictures(vec![RgbImage::from_pixel(64, 64, Rgb([128; 3]))]),
        masks: vec![GrayImage::from_pixel(64, 64, Luma([255]))],
        strength: 1.0,
        denoising_start: None,
        padding_mask_crop: None,
        keep_unmasked: false,
    };
    finished(models.inpaint(&request, noise, &mut go_on)?.images)
}

fn go_on(_: StepEnd<'_>) -> candle_diffusers_pipelines::Result<ControlFlow<()>> {
    Ok(unless_interrupted())
}

fn unless_interrupted() -> ControlFlow<()> {
    if interrupt::has_come() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// The picture that was painted; an interrupt may have left it unfinished.
fn finished(pictures: Vec<RgbImage>) -> Result<Option<RgbImage>> {
    if interrupt::has_come() {
        return Ok(None);
    }
    pictures.into_iter().next().map(Some).context("the pipeline has painted nothing")
}
