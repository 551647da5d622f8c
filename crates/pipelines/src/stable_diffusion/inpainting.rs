//! Inpainting (diffusers' `pipelines/stable_diffusion/pipeline_stable_diffusion_inpaint.py` and `pipelines/stable_diffusion_xl/`'s).

use candle_core::Tensor;
use candle_diffusers_schedulers::NoiseSource;
use image::{GrayImage, RgbImage};

use super::image_to_image::check_strength;
use super::{StableDiffusionPipeline, StableDiffusionPipelineOutput, TextToImage};
use crate::denoise::{Denoising, Kept, StepCallback, denoise};
use crate::error::{Result, argument};
use crate::image_processor::{
    Filter, Region, from_masks, from_pictures, normalize, overlay, resize_and_fill, resized,
};
use crate::latents::{encode_each, repeat_all, scale_initial_latents};

/// What to paint into a part of a picture. Models that were trained for it (their UNets take 9 channels) see the rest of the picture; with others
/// (4 channels) the rest is put back after each step.
#[derive(Clone, Debug)]
pub struct Inpainting {
    /// What the result shows, and all else that text to image is told. Pictures and masks are resized to its `width` and `height`, or to the
    /// model's own size, as in diffusers. Its `latents` are not used.
    pub text: TextToImage,
    /// The picture, or as many as there will be.
    pub pictures: Vec<RgbImage>,
    /// What is painted is white, at least half; one mask, or as many as there will be pictures. Soft edges ([`blur`](crate::blur())) matter where
    /// the original is laid over the result.
    pub masks: Vec<GrayImage>,
    /// How much of the schedule is gone through, 0 to 1: at 1 what is painted begins as noise, below as the picture with noise.
    pub strength: f64,
    /// Cuts the mask's part out with so many pixels around it, paints that in the full size, and puts it back: for small parts of one picture with one
    /// mask.
    pub padding_mask_crop: Option<u32>,
    /// Gives the original's pixels back exactly where the mask is black: results have the size of the picture. Otherwise what goes
    /// through the VAE changes a little everywhere. With `padding_mask_crop` that is always so.
    pub keep_unmasked: bool,
}

impl StableDiffusionPipeline {
    /// Paints a part of pictures anew.
    ///
    /// # Errors
    /// When the request cannot be met. What can be told from the request and the models' configs is told before the first model runs.
    pub fn inpaint(
        &mut self,
        request: &Inpainting,
        noise: &mut dyn NoiseSource,
        on_step_end: &mut StepCallback,
    ) -> Result<StableDiffusionPipelineOutput> {
        let latents = self.inpaint_latents(request, noise, on_step_end)?;
        self.inpainted_pictures(request, &latents)
    }

    /// The pictures of latents as [`inpaint_latents`](Self::inpaint_latents) has left them, with the original around what was painted where the request
    /// says so.
    ///
    /// # Errors
    /// When the shape does not fit, or the request could not be met.
    pub fn inpainted_pictures(
        &self,
        request: &Inpainting,
        latents: &Tensor,
    ) -> Result<StableDiffusionPipelineOutput> {
        let region = self.check_inpainting(request)?.region;
        let mut output = self.pictures(latents)?;
        if request.keep_unmasked || region.is_some() {
            for (index, painted) in output.images.iter_mut().enumerate() {
                let original = &request.pictures[index % request.pictures.len()];
                let mask = &request.masks[index % request.masks.len()];
                *painted = overlay(original, mask, painted, region)?;
            }
        }
        Ok(output)
    }

    /// Like [`inpaint`](Self::inpaint), with the latents `(batch, channels, height / factor, width / factor)` as the last step left them.
    ///
    /// # Errors
    /// Those of [`inpaint`](Self::inpaint).
    pub fn inpaint_latents(
        &mut self,
        request: &Inpainting,
        noise: &mut dyn NoiseSource,
        on_step_end: &mut StepCallback,
    ) -> Result<Tensor> {
        let place = self.check_inpainting(request)?;
        let Inpainting { text, strength, .. } = request;
        let (pictures, mask) = place.fit(request)?;
        self.set_schedule(&text.schedule)?;
        let first = self.first_step(&text.schedule, *strength, None)?;
        let steps = self.steps(first, text)?;
        let prompt_embeds = self.encode_request(text)?;
        let batch = text.batch_size();
        let channels = self.vae.config().latent_channels;
        let is_trained_for_it = self.unet.config().in_channels != channels;
        let from_noise = *strength >= 1.0;

        // In diffusers' order: the picture, the noise, the masked picture.
        let latents = match is_trained_for_it && from_noise {
            true => None,
            false => Some(self.encode_for_inpainting(&pictures, batch, noise)?),
        };
        let factor = self.vae.config().vae_scale_factor();
        let (height, width) = (place.height / factor, place.width / factor);
        let drawn = noise.randn(&[batch, channels, height, width], self.dtype, &self.device)?;
        let masked = pictures.broadcast_mul(&mask.affine(-1.0, 1.0)?)?;
        let masked = self.encode_for_inpainting(&masked, batch, noise)?;
        // Every factor-th pixel of the mask, as in diffusers.
        let mask = repeat_all(&mask.upsample_nearest2d(height, width)?, batch)?;
        let mask = mask.to_device(&self.device)?.to_dtype(self.dtype)?;

        self.scheduler.set_begin_index(first);
        let start = match (&latents, self.scheduler.timesteps().get(first)) {
            (Some(latents), Some(timestep)) if !from_noise => {
                self.scheduler.add_noise(latents, &drawn, &[*timestep])?
            }
            _ => scale_initial_latents(&drawn, self.scheduler.as_ref())?,
        };
        let kept = match latents {
            Some(latents) if !is_trained_for_it => Kept::Restored { mask, latents, noise: drawn },
            _ => Kept::Seen(Tensor::cat(&[&mask, &masked], 1)?),
        };
        let size = (place.height, place.width);
        let numbers = text.micro_conditions.image_to_image(size, self.requires_aesthetics_score);
        let denoising = self.denoising(text, steps, prompt_embeds, numbers)?;
        denoise(start, Denoising { kept: Some(kept), ..denoising }, noise, on_step_end)
    }

    /// Latents of pictures with values from -1 to 1, one draw for each picture, repeated for the batch.
    fn encode_for_inpainting(
        &self,
        pictures: &Tensor,
        batch: usize,
        noise: &mut dyn NoiseSource,
    ) -> Result<Tensor> {
        let pictures = pictures.to_device(&self.device)?.to_dtype(self.dtype)?;
        repeat_all(&encode_each(&self.encoding_vae()?, &pictures, noise)?.to_dtype(self.dtype)?, batch)
    }

    /// What can be told before any work, and where is painted.
    fn check_inpainting(&self, request: &Inpainting) -> Result<Place> {
        let Inpainting { text, pictures, masks, strength, padding_mask_crop, keep_unmasked } = request;
        self.check(text)?;
        check_strength(*strength)?;
        if text.latents.is_some() {
            return argument("latents", "are given, but inpainting begins with a picture");
        }
        let (found, latents) = (self.unet.config().in_channels, self.vae.config().latent_channels);
        if found != latents && found != 2 * latents + 1 {
            let problem = format!(
                "takes {found} channels, expected {latents} or {}: it was trained for something else than painting and inpainting",
                2 * latents + 1
            );
            return argument("unet", problem);
        }
        let batch = text.batch_size();
        for (name, count) in [("pictures", pictures.len()), ("masks", masks.len())] {
            if count == 0 || !batch.is_multiple_of(count) {
                let problem = format!("are {count}, expected 1, or one for each of the {batch} to paint");
                return argument(name, problem);
            }
        }
        if pictures.len() > 1 && masks.len() > 1 && pictures.len() != masks.len() {
            let problem =
                format!("are {}, expected 1 or {}, as many as pictures", masks.len(), pictures.len());
            return argument("masks", problem);
        }
        let sides = |width: u32, height: u32| width == 0 || height == 0;
        if pictures.iter().any(|picture| sides(picture.width(), picture.height()))
            || masks.iter().any(|mask| sides(mask.width(), mask.height()))
        {
            return argument("pictures, masks", "are 0 pixels wide or high");
        }
        let (width, height) = self.picture_size(text)?;
        let is_laid_over = *keep_unmasked || padding_mask_crop.is_some();
        for index in 0..if is_laid_over { pictures.len().max(masks.len()) } else { 0 } {
            let (picture, mask) = (&pictures[index % pictures.len()], &masks[index % masks.len()]);
            if picture.dimensions() != mask.dimensions() {
                let [(a, b), (c, d)] = [mask.dimensions(), picture.dimensions()];
                return argument("masks", format!("are {a}x{b}, expected the picture's {c}x{d} pixels"));
            }
        }
        let region = match padding_mask_crop {
            Some(_) if pictures.len() > 1 || masks.len() > 1 => {
                return argument("padding_mask_crop", "takes one picture and one mask");
            }
            Some(padding) => Some(Region::around(&masks[0], width as u32, height as u32, *padding)?),
            None => None,
        };
        Ok(Place { width, height, region })
    }
}

/// Where is painted.
struct Place {
    /// What is painted, in pixels.
    width: usize,
    height: usize,
    /// The part of the picture that this is.
    region: Option<Region>,
}

impl Place {
    /// The pictures `(pictures, 3, height, width)` with values from -1 to 1, and the masks `(masks, 1, height, width)`, 0 or 1.
    fn fit(&self, request: &Inpainting) -> Result<(Tensor, Tensor)> {
        let (width, height) = (self.width as u32, self.height as u32);
        let pictures = request.pictures.iter().map(|picture| match self.region {
            Some(region) => resize_and_fill(&region.cut(picture), width, height),
            None => resized(Filter::Lanczos, picture, width, height),
        });
        let masks = request.masks.iter().map(|mask| match self.region {
            Some(region) => resize_and_fill(&region.cut(mask), width, height),
            None => resized(Filter::Lanczos, mask, width, height),
        });
        let pictures = normalize(&from_pictures(&pictures.collect::<Result<Vec<_>>>()?)?)?;
        Ok((pictures, from_masks(&masks.collect::<Result<Vec<_>>>()?)?))
    }
}
