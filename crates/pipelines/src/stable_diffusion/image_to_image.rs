//! Image to image (diffusers' `pipelines/stable_diffusion/pipeline_stable_diffusion_img2img.py`; SDEdit, Meng et al., 2021).

use candle_core::Tensor;
use candle_diffusers_models::AutoencoderKL;
use candle_diffusers_schedulers::NoiseSource;
use image::RgbImage;

use super::request::check_share;
use super::{Schedule, StableDiffusionPipeline, StableDiffusionPipelineOutput, TextEncoders, TextToImage};
use crate::denoise::{Denoising, StepCallback, denoise};
use crate::error::{Result, argument};
use crate::image_processor::{from_pictures, normalize, resize};
use crate::latents::{encode_pictures, repeat_all};
use crate::timesteps::{first_step, first_step_from};

/// What to paint from what. The picture gets noise as at one of the schedule's steps, and is denoised from there.
#[derive(Clone, Debug)]
pub struct ImageToImage {
    /// What the result shows, and all else that text to image is told. Pictures are resized to its `width` and `height`; without them each
    /// side becomes the next lower multiple of the VAE's factor, as in diffusers. Its `latents` are not used.
    pub text: TextToImage,
    /// What to begin with.
    pub image: InitImage,
    /// How much of the schedule is gone through, 0 to 1: near 0 the picture stays as it is, at 1 little of it is left.
    pub strength: f64,
    /// Where another model has stopped ([`TextToImage::denoising_end`]), for this one to go on from there, more than 0 and less than 1. The image
    /// is as it left it, so that no noise is added, and strength has no meaning.
    pub denoising_start: Option<f64>,
}

/// The pictures that [`ImageToImage`] begins with: one, or as many as there will be.
#[derive(Clone, Debug)]
pub enum InitImage {
    /// Pictures of one size.
    Pictures(Vec<RgbImage>),
    /// Latents, `(pictures, channels, height / factor, width / factor)`, times the VAE's `scaling_factor`.
    Latents(Tensor),
}

impl StableDiffusionPipeline {
    /// Paints pictures from pictures, as [`generate`](Self::generate) does from nothing.
    ///
    /// # Errors
    /// When the request cannot be met. What can be told from the request and the models' configs is told before the first model runs.
    pub fn image_to_image(
        &mut self,
        request: &ImageToImage,
        noise: &mut dyn NoiseSource,
        on_step_end: &mut StepCallback,
    ) -> Result<StableDiffusionPipelineOutput> {
        let latents = self.image_to_image_latents(request, noise, on_step_end)?;
        self.pictures(&latents)
    }

    /// Like [`image_to_image`](Self::image_to_image), with the latents `(batch, channels, height / factor, width / factor)` as the last
    /// step left them.
    ///
    /// # Errors
    /// Those of [`image_to_image`](Self::image_to_image).
    pub fn image_to_image_latents(
        &mut self,
        request: &ImageToImage,
        noise: &mut dyn NoiseSource,
        on_step_end: &mut StepCallback,
    ) -> Result<Tensor> {
        let ImageToImage { text, image, .. } = request;
        self.check(text)?;
        check_part(request.strength, request.denoising_start, text)?;
        if text.latents.is_some() {
            return argument("latents", "are given, but image to image begins with an image");
        }
        let channels = self.vae.config().latent_channels;
        if self.unet.config().in_channels != channels {
            let problem = format!(
                "takes {} channels, expected {channels}: a model for inpainting or for editing by instructions paints otherwise",
                self.unet.config().in_channels
            );
            return argument("unet", problem);
        }
        let batch = text.batch_size();
        let image = self.fit_image(image, text, batch)?;
        self.set_schedule(&text.schedule)?;
        let first = self.first_step(&text.schedule, request.strength, request.denoising_start)?;
        let steps = self.steps(first, text)?;
        let prompt_embeds = self.encode_request(text)?;
        let image = self.encode_image(image, batch, noise)?;
        self.scheduler.set_begin_index(steps.start);
        let timestep = self.scheduler.timesteps().get(steps.start).copied();
        let latents = match (request.denoising_start, timestep) {
            (None, Some(timestep)) => {
                let start = noise.randn(image.dims(), self.dtype, &self.device)?;
                self.scheduler.add_noise(&image, &start, &[timestep])?
            }
            _ => image,
        };
        let factor = self.vae.config().vae_scale_factor();
        let (_, _, height, width) = latents.dims4()?;
        let size = (height * factor, width * factor);
        let numbers = text.micro_conditions.image_to_image(size, self.requires_aesthetics_score);
        let control = self.steering(text, width * factor, height * factor)?;
        let denoising = self.denoising(text, steps, prompt_embeds, numbers)?;
        denoise(latents, Denoising { control, ..denoising }, noise, on_step_end)
    }

    /// The first step that is taken: where another model stopped, or by the strength.
    pub(super) fn first_step(
        &self,
        schedule: &Schedule,
        strength: f64,
        denoising_start: Option<f64>,
    ) -> Result<usize> {
        // Some schedulers take more timesteps than were asked for: counted are those that were.
        let steps = schedule.steps();
        if let Some(start) = denoising_start {
            let first = first_step_from(self.scheduler.as_ref(), start);
            if first < self.scheduler.timesteps().len() {
                return Ok(first);
            }
            return argument(
                "denoising_start",
                format!(
                    "is {start}, which of {steps} steps leaves none; give more steps or an earlier start"
                ),
            );
        }
        match first_step(steps, strength) {
            Some(first) => Ok(first),
            None => argument(
                "strength",
                format!(
                    "is {strength}, which of {steps} steps leaves none; expected at least {}",
                    1.0 / steps as f64
                ),
            ),
        }
    }

    /// The image's latents as the UNet sees them, one for each of the batch.
    fn encode_image(&self, image: InitImage, batch: usize, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let pictures = match image {
            InitImage::Latents(latents) => {
                return repeat_all(&latents.to_device(&self.device)?.to_dtype(self.dtype)?, batch);
            }
            InitImage::Pictures(pictures) => {
                normalize(&from_pictures(&pictures)?.to_device(&self.device)?.to_dtype(self.dtype)?)?
            }
        };
        let latents = encode_pictures(&self.encoding_vae()?, &pictures, batch, noise)?;
        Ok(latents.to_dtype(self.dtype)?)
    }

    /// The VAE in the dtype that pictures are encoded in: Stable Diffusion XL's may want float32.
    pub(super) fn encoding_vae(&self) -> Result<AutoencoderKL> {
        let dtype = match self.text_encoders {
            TextEncoders::Clip(_) => self.vae.dtype(),
            TextEncoders::Xl(_) => self.vae.config().encode_dtype(self.dtype),
        };
        // A clone has the same tensors.
        Ok(if dtype == self.vae.dtype() { self.vae.clone() } else { self.vae.to_dtype(dtype)? })
    }

    /// Pictures of the size that will be painted; latents as they are, when they are of this model.
    pub(super) fn fit_image(&self, image: &InitImage, text: &TextToImage, batch: usize) -> Result<InitImage> {
        let factor = self.vae.config().vae_scale_factor();
        let channels = self.vae.config().latent_channels;
        let (count, width, height) = match image {
            InitImage::Pictures(pictures) => {
                let (width, height) = pictures.first().map_or((0, 0), RgbImage::dimensions);
                (pictures.len(), width as usize / factor * factor, height as usize / factor * factor)
            }
            InitImage::Latents(latents) => match *latents.dims() {
                [count, found, height, width] if found == channels => {
                    (count, width * factor, height * factor)
                }
                ref dims => {
                    return argument(
                        "image",
                        format!("is latents {dims:?}, expected (pictures, {channels}, height, width)"),
                    );
                }
            },
        };
        if count == 0 || !batch.is_multiple_of(count) {
            return argument(
                "image",
                format!("is {count} pictures, expected 1, or one for each of the {batch} to paint"),
            );
        }
        if width == 0 || height == 0 {
            return argument(
                "image",
                format!("is smaller than {factor}x{factor} pixels, the least that the model can paint"),
            );
        }
        let sized = TextToImage {
            width: text.width.or(Some(width)),
            height: text.height.or(Some(height)),
            ..text.clone()
        };
        let (painted_width, painted_height) = self.picture_size(&sized)?;
        match image {
            InitImage::Latents(_) if (painted_width, painted_height) != (width, height) => argument(
                "width, height",
                format!(
                    "are {painted_width}x{painted_height}, but the image is latents of {width}x{height} pixels"
                ),
            ),
            InitImage::Latents(latents) => Ok(InitImage::Latents(latents.clone())),
            InitImage::Pictures(pictures) => {
                let fit = |picture| resize(picture, painted_width as u32, painted_height as u32);
                Ok(InitImage::Pictures(pictures.iter().map(fit).collect::<Result<_>>()?))
            }
        }
    }
}

/// Whether the part of the schedule that is gone through is one.
pub(super) fn check_part(strength: f64, denoising_start: Option<f64>, text: &TextToImage) -> Result<()> {
    match (denoising_start, text.denoising_end) {
        (Some(start), Some(end)) if start >= end => argument(
            "denoising_start",
            format!("is {start}, expected less than denoising_end, which is {end}"),
        ),
        (Some(start), _) => check_share("denoising_start", start),
        (None, _) if (0.0..=1.0).contains(&strength) => Ok(()),
        (None, _) => argument("strength", format!("is {strength}, expected 0 to 1")),
    }
}
