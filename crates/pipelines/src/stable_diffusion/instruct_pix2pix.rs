//! Editing pictures by instructions (diffusers' `pipelines/stable_diffusion/pipeline_stable_diffusion_instruct_pix2pix.py` and
//! `pipelines/stable_diffusion_xl/`'s; Brooks et al., 2022, <https://arxiv.org/abs/2211.09800>).

use candle_core::Tensor;
use candle_diffusers_schedulers::NoiseSource;

use super::{InitImage, StableDiffusionPipeline, StableDiffusionPipelineOutput, TextToImage};
use crate::denoise::{Denoising, Guidance, Kept, StepCallback, denoise};
use crate::error::{Result, argument};
use crate::image_processor::{from_pictures, normalize};
use crate::latents::{encode_distributions, prepare_latents, repeat_all, scale_initial_latents};

/// What to change in which picture. It is painted anew from noise by a model that sees it all the time (its UNet takes 8 channels).
#[derive(Clone, Debug)]
pub struct InstructPix2Pix {
    /// Its prompts say what to change ("make it winter"); all else is as text to image is told, but for ControlNets. Without a size the result has the
    /// picture's (each side the next lower that can be painted), or with Stable Diffusion XL the model's, as in diffusers.
    pub text: TextToImage,
    /// The picture, or as many as there will be; latents are the VAE's, not scaled.
    pub image: InitImage,
    /// How closely the picture is followed, usually 1.5; less than 1 turns all guidance off.
    pub image_guidance_scale: f64,
}

impl StableDiffusionPipeline {
    /// Edits pictures by instructions.
    ///
    /// # Errors
    /// When the request cannot be met. What can be told from the request and the models' configs is told before the first model runs.
    pub fn instruct_pix2pix(
        &mut self,
        request: &InstructPix2Pix,
        noise: &mut dyn NoiseSource,
        on_step_end: &mut StepCallback,
    ) -> Result<StableDiffusionPipelineOutput> {
        let latents = self.instruct_pix2pix_latents(request, noise, on_step_end)?;
        self.pictures(&latents)
    }

    /// Like [`instruct_pix2pix`](Self::instruct_pix2pix), with the latents `(batch, channels, height / factor, width / factor)` as the last step left
    /// them.
    ///
    /// # Errors
    /// Those of [`instruct_pix2pix`](Self::instruct_pix2pix).
    pub fn instruct_pix2pix_latents(
        &mut self,
        request: &InstructPix2Pix,
        noise: &mut dyn NoiseSource,
        on_step_end: &mut StepCallback,
    ) -> Result<Tensor> {
        let InstructPix2Pix { text, image, image_guidance_scale } = request;
        self.check_edit(request)?;
        let batch = text.batch_size();
        let image = match self.is_xl() {
            true => self.fit_image(image, &self.sized(text)?, batch)?,
            false => self.fit_image(image, text, batch)?,
        };
        self.set_schedule(&text.schedule)?;
        let steps = self.steps(0, text)?;
        let prompt_embeds = self.encode_request(text)?;
        let seen = self.encode_edited(image, batch)?;
        let (_, channels, height, width) = seen.dims4()?;
        let start = match &text.latents {
            Some(latents) if latents.dims() != seen.dims() => {
                let problem = format!("are {:?}, but those of the image {:?}", latents.dims(), seen.dims());
                return argument("latents", problem);
            }
            Some(latents) => {
                scale_initial_latents(&latents.to_device(&self.device)?, self.scheduler.as_ref())?
            }
            None => {
                let shape = [batch, channels, height, width];
                prepare_latents(shape, self.scheduler.as_ref(), noise, self.dtype, &self.device)?
            }
        };
        let factor = self.vae.config().vae_scale_factor();
        // The negative prompts are told the same, as in diffusers.
        let [numbers, _] = text.micro_conditions.text_to_image((height * factor, width * factor));
        let guidance = Guidance { image_scale: Some(*image_guidance_scale), ..self.guidance(text) };
        let denoising = self.denoising(text, steps, prompt_embeds, [numbers.clone(), numbers])?;
        let kept = Some(Kept::Edited(seen));
        denoise(start, Denoising { guidance, kept, ..denoising }, noise, on_step_end)
    }

    fn check_edit(&self, request: &InstructPix2Pix) -> Result<()> {
        self.check(&request.text)?;
        let scale = request.image_guidance_scale;
        if !scale.is_finite() {
            return argument("image_guidance_scale", format!("is {scale}, expected a finite number"));
        }
        if !request.text.controls.is_empty() {
            return argument(
                "controls",
                "are given, but ControlNets do not steer a model that edits pictures",
            );
        }
        let (found, expected) = (self.unet.config().in_channels, 2 * self.vae.config().latent_channels);
        if found != expected {
            let problem = format!(
                "takes {found} channels, expected {expected}: it was not trained to edit pictures by instructions"
            );
            return argument("unet", problem);
        }
        Ok(())
    }

    /// The request with the size that the model paints where it names none.
    fn sized(&self, text: &TextToImage) -> Result<TextToImage> {
        let (width, height) = self.picture_size(text)?;
        Ok(TextToImage { width: Some(width), height: Some(height), ..text.clone() })
    }

    /// The image's latents as the UNet sees them, one for each of the batch: the most likely ones, so that nothing is drawn.
    fn encode_edited(&self, image: InitImage, batch: usize) -> Result<Tensor> {
        let latents = match image {
            InitImage::Latents(latents) => latents.to_device(&self.device)?,
            InitImage::Pictures(pictures) => {
                let pictures = from_pictures(&pictures)?.to_device(&self.device)?.to_dtype(self.dtype)?;
                let (pictures, vae) = (normalize(&pictures)?, self.encoding_vae()?);
                let distributions = encode_distributions(&vae, &pictures)?;
                Tensor::cat(&distributions.iter().map(|one| one.mode()).collect::<Vec<_>>(), 0)?
            }
        };
        let latents = match self.is_cosxl_edit {
            true => (latents * self.vae.config().scaling_factor)?,
            false => latents,
        };
        repeat_all(&latents.to_dtype(self.dtype)?, batch)
    }
}
