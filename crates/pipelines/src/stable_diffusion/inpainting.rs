//! Inpainting (diffusers' `pipelines/stable_diffusion/pipeline_stable_diffusion_inpaint.py` and `pipelines/stable_diffusion_xl/`'s).

use candle_core::Tensor;
use candle_diffusers_models::AutoencoderKL;
use candle_diffusers_schedulers::NoiseSource;
use image::{GrayImage, ImageBuffer, Pixel, RgbImage};

use super::control_net::guesses;
use super::image_to_image::check_part;
use super::{InitImage, StableDiffusionPipeline, StableDiffusionPipelineOutput, TextToImage};
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
    /// The picture, or as many as there will be; or latents, as another model has left them.
    pub image: InitImage,
    /// What is painted is white, at least half; one mask, or as many as there will be pictures. Soft edges ([`blur`](crate::blur())) matter where
    /// the original is laid over the result.
    pub masks: Vec<GrayImage>,
    /// How much of the schedule is gone through, 0 to 1: at 1 what is painted begins as noise, below as the picture with noise.
    pub strength: f64,
    /// Where another model has stopped ([`TextToImage::denoising_end`]), as [`ImageToImage::denoising_start`](super::ImageToImage::denoising_start).
    pub denoising_start: Option<f64>,
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
                let InitImage::Pictures(pictures) = &request.image else { break };
                let original = &pictures[index % pictures.len()];
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
        let Inpainting { text, strength, denoising_start, .. } = request;
        let (image, mask) = (place.fit_image(&request.image)?, place.fit_masks(&request.masks)?);
        self.set_schedule(&text.schedule)?;
        let first = self.first_step(&text.schedule, *strength, *denoising_start)?;
        let steps = self.steps(first, text)?;
        let prompt_embeds = self.encode_request(text)?;
        let batch = text.batch_size();
        let channels = self.vae.config().latent_channels;
        let is_trained_for_it = self.unet.config().in_channels != channels;
        let from_noise = *strength >= 1.0 && denoising_start.is_none();

        // In diffusers' order: the picture, the noise, the masked picture.
        let vae = self.encoding_vae()?;
        let latents = match is_trained_for_it && from_noise {
            true => None,
            false => Some(self.encode_for_inpainting(&vae, &image, batch, noise)?),
        };
        let factor = self.vae.config().vae_scale_factor();
        let (height, width) = (place.height / factor, place.width / factor);
        let drawn = noise.randn(&[batch, channels, height, width], self.dtype, &self.device)?;
        let masked = match &image {
            Start::Pictures(pictures) => {
                let masked = Start::Pictures(pictures.broadcast_mul(&mask.affine(-1.0, 1.0)?)?);
                Some(self.encode_for_inpainting(&vae, &masked, batch, noise)?)
            }
            // Nobody sees them: models that were trained for it begin with pictures.
            Start::Latents(_) => None,
        };
        // Every factor-th pixel of the mask, as in diffusers.
        let mask = repeat_all(&mask.upsample_nearest2d(height, width)?, batch)?;
        let mask = mask.to_device(&self.device)?.to_dtype(self.dtype)?;

        self.scheduler.set_begin_index(first);
        let start = match (&latents, self.scheduler.timesteps().get(first)) {
            (Some(latents), _) if denoising_start.is_some() => latents.clone(),
            (Some(latents), Some(timestep)) if !from_noise => {
                self.scheduler.add_noise(latents, &drawn, &[*timestep])?
            }
            _ => scale_initial_latents(&drawn, self.scheduler.as_ref())?,
        };
        let kept = match (latents, masked) {
            (_, Some(masked)) if is_trained_for_it => Kept::Seen(Tensor::cat(&[&mask, &masked], 1)?),
            (Some(latents), _) => Kept::Restored { mask, latents, noise: drawn },
            (None, _) => return argument("image", "is missing"),
        };
        let size = (place.height, place.width);
        let numbers = text.micro_conditions.image_to_image(size, self.requires_aesthetics_score);
        // diffusers' pipeline for Stable Diffusion XL alone does not look at what the net is.
        let guess_mode = if self.is_xl() { text.guess_mode } else { guesses(text) };
        let control = self.steering_by(text, guess_mode, |pictures| place.fit(pictures))?;
        let denoising = self.denoising(text, steps, prompt_embeds, numbers)?;
        denoise(start, Denoising { kept: Some(kept), control, ..denoising }, noise, on_step_end)
    }

    /// Latents of the batch: one draw for each picture, or those that are there.
    fn encode_for_inpainting(
        &self,
        vae: &AutoencoderKL,
        image: &Start,
        batch: usize,
        noise: &mut dyn NoiseSource,
    ) -> Result<Tensor> {
        let pictures = match image {
            Start::Latents(latents) => {
                return repeat_all(&latents.to_device(&self.device)?.to_dtype(self.dtype)?, batch);
            }
            Start::Pictures(pictures) => pictures.to_device(&self.device)?.to_dtype(self.dtype)?,
        };
        repeat_all(&encode_each(vae, &pictures, noise)?.to_dtype(self.dtype)?, batch)
    }

    /// What can be told before any work, and where is painted.
    fn check_inpainting(&self, request: &Inpainting) -> Result<Place> {
        let Inpainting { text, image, masks, strength, denoising_start, padding_mask_crop, keep_unmasked } =
            request;
        self.check(text)?;
        check_part(*strength, *denoising_start, text)?;
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
        let pictures = match image {
            InitImage::Pictures(pictures) => &pictures[..],
            InitImage::Latents(latents) => return self.check_latents(latents, request),
        };
        self.check_counts(pictures.len(), request)?;
        if pictures.iter().any(|picture| picture.width() == 0 || picture.height() == 0) {
            return argument("image", "is 0 pixels wide or high");
        }
        let (width, height) = self.painted_size(text, &pictures[0])?;
        let is_laid_over = *keep_unmasked || padding_mask_crop.is_some();
        for index in 0..if is_laid_over { pictures.len().max(masks.len()) } else { 0 } {
            let (picture, mask) = (&pictures[index % pictures.len()], &masks[index % masks.len()]);
            if picture.dimensions() != mask.dimensions() {
                let [(a, b), (c, d)] = [mask.dimensions(), picture.dimensions()];
                return argument("masks", format!("are {a}x{b}, expected the picture's {c}x{d} pixels"));
            }
        }
        let is_cut = padding_mask_crop.is_some();
        let mut controls = text.controls.iter().flat_map(|control| &control.pictures);
        if let Some(other) =
            controls.find(|control| is_cut && control.dimensions() != pictures[0].dimensions())
        {
            let [(a, b), (c, d)] = [other.dimensions(), pictures[0].dimensions()];
            let problem = format!(
                "are {a}x{b}, expected the picture's {c}x{d} pixels: with padding_mask_crop the same part is cut out of both"
            );
            return argument("control.pictures", problem);
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

    /// As the request says, or as the model was trained; with ControlNets as the picture is, as in diffusers.
    fn painted_size(&self, text: &TextToImage, picture: &RgbImage) -> Result<(usize, usize)> {
        if text.controls.is_empty() {
            return self.picture_size(text);
        }
        let factor = self.vae.config().vae_scale_factor();
        let side = |asked: Option<usize>, side: u32| asked.or(Some(side as usize / factor * factor));
        self.picture_size(&TextToImage {
            width: side(text.width, picture.width()),
            height: side(text.height, picture.height()),
            ..text.clone()
        })
    }

    /// The same where another model has left latents.
    fn check_latents(&self, latents: &Tensor, request: &Inpainting) -> Result<Place> {
        let config = self.vae.config();
        if self.unet.config().in_channels != config.latent_channels {
            return argument(
                "image",
                "is latents, but this model was trained for inpainting and sees a picture",
            );
        }
        if request.padding_mask_crop.is_some() || request.keep_unmasked {
            return argument(
                "padding_mask_crop, keep_unmasked",
                "need the picture, but the image is latents",
            );
        }
        let (count, height, width) = match *latents.dims() {
            [count, channels, height, width] if channels == config.latent_channels => (count, height, width),
            ref dims => {
                let expected = config.latent_channels;
                let problem = format!("is latents {dims:?}, expected (pictures, {expected}, height, width)");
                return argument("image", problem);
            }
        };
        self.check_counts(count, request)?;
        let factor = config.vae_scale_factor();
        let sized = TextToImage {
            width: Some(width * factor),
            height: Some(height * factor),
            ..request.text.clone()
        };
        let (width, height) = self.picture_size(&sized)?;
        Ok(Place { width, height, region: None })
    }

    /// Whether there are as many pictures and masks as can be.
    fn check_counts(&self, pictures: usize, request: &Inpainting) -> Result<()> {
        let (batch, masks) = (request.text.batch_size(), request.masks.len());
        for (name, count) in [("image", pictures), ("masks", masks)] {
            if count == 0 || !batch.is_multiple_of(count) {
                let problem = format!("are {count}, expected 1, or one for each of the {batch} to paint");
                return argument(name, problem);
            }
        }
        if pictures > 1 && masks > 1 && pictures != masks {
            return argument("masks", format!("are {masks}, expected 1 or {pictures}, as many as pictures"));
        }
        if request.masks.iter().any(|mask| mask.width() == 0 || mask.height() == 0) {
            return argument("masks", "are 0 pixels wide or high");
        }
        Ok(())
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

/// What is begun with, as the models take it.
enum Start {
    /// `(pictures, 3, height, width)` with values from -1 to 1.
    Pictures(Tensor),
    /// `(pictures, channels, height / factor, width / factor)`.
    Latents(Tensor),
}

impl Place {
    fn fit_image(&self, image: &InitImage) -> Result<Start> {
        match image {
            InitImage::Latents(latents) => Ok(Start::Latents(latents.clone())),
            InitImage::Pictures(pictures) => {
                Ok(Start::Pictures(normalize(&from_pictures(&self.fit(pictures)?)?)?))
            }
        }
    }

    /// `(masks, 1, height, width)`, 0 or 1.
    fn fit_masks(&self, masks: &[GrayImage]) -> Result<Tensor> {
        from_masks(&self.fit(masks)?)
    }

    fn fit<P: Pixel<Subpixel = u8> + 'static>(
        &self,
        pictures: &[ImageBuffer<P, Vec<u8>>],
    ) -> Result<Vec<ImageBuffer<P, Vec<u8>>>> {
        let (width, height) = (self.width as u32, self.height as u32);
        let fit = |picture| match self.region {
            Some(region) => resize_and_fill(&region.cut(picture), width, height),
            None => resized(Filter::Lanczos, picture, width, height),
        };
        pictures.iter().map(fit).collect()
    }
}
