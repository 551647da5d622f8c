//! Text to image with Stable Diffusion 1.x, 2.x and XL (diffusers' `pipelines/stable_diffusion/pipeline_stable_diffusion.py` and
//! `pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl.py`).

mod control_net;
mod image_to_image;
mod inpainting;
mod instruct_pix2pix;
mod load;
mod load_scheduler;
mod load_text_encoders;
mod lora;
mod micro_conditions;
mod output;
mod refiner;
mod request;
mod task;
mod text_encoders;
mod textual_inversion;

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use candle_diffusers_loaders::lora::LoraAdapters;
use candle_diffusers_models::{AutoencoderKL, UNet2DConditionModel};
use candle_diffusers_schedulers::{
    NoiseSource, Scheduler, StepOptions, TorchGenerator, scheduler_with_overrides,
};
use serde_json::{Map, Value};

pub use control_net::check_controlnet;
pub use image_to_image::{ImageToImage, InitImage};
pub use inpainting::Inpainting;
pub use instruct_pix2pix::InstructPix2Pix;

pub use load::Replacements;
pub use load_scheduler::load_pipeline_scheduler;
pub use micro_conditions::MicroConditions;
pub use output::StableDiffusionPipelineOutput;
pub use refiner::{SharedParts, check_refiner};
pub use request::{Schedule, TextToImage};
pub use task::{Task, task};
pub use text_encoders::{ClipEncoder, ProjectedClipEncoder, TextEncoders, XlEncoders};

use micro_conditions::time_ids;

use crate::denoise::{Denoising, Guidance, StepCallback, denoise};
use crate::error::{Result, argument};
use crate::image_processor::denormalize;
use crate::latents::{decode_latents, prepare_latents, scale_initial_latents};
use crate::memory::{check_memory, working_memory};
use crate::prompt_embeds::PromptEmbeds;
use crate::safety_checker::SafetyChecker;
use crate::timesteps::steps_until;

/// The models that paint from a text, and the stages in which they do: [`encode_prompt`](Self::encode_prompt),
/// [`prepare_latents`](Self::prepare_latents), [`denoise`](crate::denoise()) and [`decode_latents`](Self::decode_latents).
///
/// It paints with Stable Diffusion 1, 2 and XL and XL's refiner: they differ in how they read prompts ([`TextEncoders`]) and in what they are
/// told besides ([`MicroConditions`]). The models are public, so that they can be shared with a pipeline of one's own.
pub struct StableDiffusionPipeline {
    /// Words to embeddings.
    pub text_encoders: TextEncoders,
    /// Predicts the noise in latents.
    pub unet: UNet2DConditionModel,
    /// Between latents and pictures.
    pub vae: AutoencoderKL,
    /// Makes pictures black that are not to be shown; pictures are not checked without one.
    pub safety_checker: Option<SafetyChecker>,
    /// The LoRAs on the UNet and the text encoders.
    pub loras: LoraAdapters,
    scheduler: Box<dyn Scheduler>,
    /// What another scheduler is made from.
    scheduler_config: Value,
    /// Latent height and width where a request names none.
    pub sample_size: Option<(usize, usize)>,
    /// Whether the model is told how beautiful a picture is, as Stable Diffusion XL's refiner.
    pub requires_aesthetics_score: bool,
    /// Whether a model that edits pictures sees their latents times the VAE's `scaling_factor`, as CosXL's.
    pub is_cosxl_edit: bool,
    /// Where the models are.
    pub device: Device,
    /// In which dtype they compute.
    pub dtype: DType,
}

/// One torch CPU generator a picture, seeded `seed`, `seed + 1`, and so on: picture i of a batch is then the picture that
/// seed `seed + i` gives alone.
pub fn seeded_generators(seed: u64, count: usize) -> Vec<TorchGenerator> {
    (0..count as u64).map(|i| TorchGenerator::new(seed.wrapping_add(i))).collect()
}

impl StableDiffusionPipeline {
    /// Paints pictures.
    ///
    /// Noise comes from `noise`: one generator for all pictures, or a `Vec` of one for each ([`seeded_generators`]).
    /// `on_step_end` is called after each step ([`StepCallback`]; `&mut |_| Ok(ControlFlow::Continue(()))` does nothing).
    ///
    /// # Errors
    /// When the request cannot be met. What can be told from the request and the models' configs is told before the first model runs.
    pub fn generate(
        &mut self,
        request: &TextToImage,
        noise: &mut dyn NoiseSource,
        on_step_end: &mut StepCallback,
    ) -> Result<StableDiffusionPipelineOutput> {
        let latents = self.generate_latents(request, noise, on_step_end)?;
        self.pictures(&latents)
    }

    /// Like [`generate`](Self::generate), with the pictures as one tensor `(batch, 3, height, width)`, values from 0 to 1.
    ///
    /// # Errors
    /// Those of [`generate`](Self::generate).
    pub fn generate_tensor(
        &mut self,
        request: &TextToImage,
        noise: &mut dyn NoiseSource,
        on_step_end: &mut StepCallback,
    ) -> Result<StableDiffusionPipelineOutput<Tensor>> {
        let latents = self.generate_latents(request, noise, on_step_end)?;
        self.finish(&latents)
    }

    /// Like [`generate`](Self::generate), with the latents `(batch, channels, height / factor, width / factor)` as the last step left them.
    ///
    /// # Errors
    /// Those of [`generate`](Self::generate).
    pub fn generate_latents(
        &mut self,
        request: &TextToImage,
        noise: &mut dyn NoiseSource,
        on_step_end: &mut StepCallback,
    ) -> Result<Tensor> {
        self.check(request)?;
        if self.requires_aesthetics_score {
            return argument("image", "is missing: this model is a refiner, which paints from a picture");
        }
        let (found, expected) = (self.unet.config().in_channels, self.vae.config().latent_channels);
        if found != expected {
            let problem = format!(
                "takes {found} channels, expected {expected}: it was trained for inpainting or editing, and needs a picture"
            );
            return argument("unet", problem);
        }
        let (width, height) = self.picture_size(request)?;
        self.set_schedule(&request.schedule)?;
        let steps = self.steps(0, request)?;
        let prompt_embeds = self.encode_request(request)?;
        let latents = match &request.latents {
            Some(latents) => {
                scale_initial_latents(&latents.to_device(&self.device)?, self.scheduler.as_ref())?
            }
            None => self.prepare_latents(prompt_embeds.prompt.dim(0)?, width, height, noise)?,
        };
        let numbers = request.micro_conditions.text_to_image((height, width));
        let control = self.steering(request, width, height)?;
        let denoising = self.denoising(request, steps, prompt_embeds, numbers)?;
        denoise(latents, Denoising { control, ..denoising }, noise, on_step_end)
    }

    /// What can be told of a request before any work.
    fn check(&self, request: &TextToImage) -> Result<()> {
        request.check()?;
        self.text_encoders.check(request)?;
        let is_xl = matches!(self.text_encoders, TextEncoders::Xl(_));
        if !is_xl && request.micro_conditions != MicroConditions::default() {
            let problem =
                "are given (sizes, crops or scores), but only Stable Diffusion XL takes them; leave them out";
            return argument("micro_conditions", problem);
        }
        self.check_controls(request)?;
        match &request.prompt_embeds {
            Some(embeds) if is_xl && embeds.pooled.is_none() => argument(
                "pooled_prompt_embeds",
                "are missing: Stable Diffusion XL takes them with prompt_embeds",
            ),
            _ => Ok(()),
        }
    }

    fn set_schedule(&mut self, schedule: &Schedule) -> Result<()> {
        match schedule {
            Schedule::Steps(steps) => self.scheduler.set_timesteps(*steps)?,
            Schedule::Timesteps(timesteps) => self.scheduler.set_custom_timesteps(timesteps)?,
            Schedule::Sigmas(sigmas) => self.scheduler.set_custom_sigmas(sigmas)?,
        }
        Ok(())
    }

    /// The steps that are taken from the first one on.
    fn steps(&self, first: usize, request: &TextToImage) -> Result<Range<usize>> {
        let scheduler = self.scheduler.as_ref();
        let Some(end) = request.denoising_end else { return Ok(first..scheduler.timesteps().len()) };
        let steps = steps_until(scheduler, first, end);
        if steps.is_empty() {
            let problem = format!(
                "is {end}, which of {} steps leaves none; give more steps or a larger part of them",
                request.schedule.steps()
            );
            return argument("denoising_end", problem);
        }
        Ok(steps)
    }

    /// The text of each picture.
    fn encode_request(&self, request: &TextToImage) -> Result<PromptEmbeds> {
        let prompt_embeds = match &request.prompt_embeds {
            Some(embeds) => embeds.clone(),
            None => self.encode_prompt(request)?,
        };
        prompt_embeds.repeat_each(request.num_images_per_prompt)
    }

    /// What goes through the steps; `numbers` are those of [`MicroConditions`], which only Stable Diffusion XL is told.
    fn denoising(
        &mut self,
        request: &TextToImage,
        steps: Range<usize>,
        prompt_embeds: PromptEmbeds,
        numbers: [Vec<f64>; 2],
    ) -> Result<Denoising<'_>> {
        let batch = prompt_embeds.prompt.dim(0)?;
        let time_ids = match self.text_encoders {
            TextEncoders::Clip(_) => None,
            TextEncoders::Xl(_) => Some(time_ids(numbers, batch, self.dtype, &self.device)?),
        };
        Ok(Denoising {
            guidance: self.guidance(request),
            unet: &self.unet,
            scheduler: self.scheduler.as_mut(),
            steps,
            prompt_embeds,
            time_ids,
            step_options: StepOptions { eta: request.eta, ..Default::default() },
            kept: None,
            control: None,
        })
    }

    /// Whether this is Stable Diffusion XL.
    pub fn is_xl(&self) -> bool {
        matches!(self.text_encoders, TextEncoders::Xl(_))
    }

    /// How a request is guided: as it says, or else as is usual for the model.
    pub fn guidance(&self, request: &TextToImage) -> Guidance {
        let usual = match self.text_encoders {
            TextEncoders::Clip(_) => 7.5,
            TextEncoders::Xl(_) => 5.0,
        };
        Guidance {
            scale: request.guidance_scale.unwrap_or(usual),
            rescale: request.guidance_rescale,
            image_scale: None,
        }
    }

    /// The embeddings of the request's prompts, and of its negative prompts where guidance asks for them; one for each prompt, in the dtype of the pipeline.
    ///
    /// As in diffusers, `clip_skip` does not apply to negative prompts.
    ///
    /// # Errors
    /// When there are not as many of one kind of prompts as of the others, or there are texts for a text encoder that the model lacks.
    pub fn encode_prompt(&self, request: &TextToImage) -> Result<PromptEmbeds> {
        let classifier_free = self.guidance(request).is_classifier_free(&self.unet);
        self.text_encoders.encode(request, classifier_free, &self.device)?.to_dtype(self.dtype)
    }

    /// Noise for `count` pictures of `width` by `height` pixels, `(count, channels, height / factor, width / factor)`, scaled for the
    /// scheduler.
    ///
    /// # Errors
    /// When `noise` has another number of generators than `count`.
    pub fn prepare_latents(
        &self,
        count: usize,
        width: usize,
        height: usize,
        noise: &mut dyn NoiseSource,
    ) -> Result<Tensor> {
        let factor = self.vae.config().vae_scale_factor();
        let shape = [count, self.unet.config().in_channels, height / factor, width / factor];
        prepare_latents(shape, self.scheduler.as_ref(), noise, self.dtype, &self.device)
    }

    /// The pictures of latents as the last step has left them: decoded, and checked where there is a safety checker.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn pictures(&self, latents: &Tensor) -> Result<StableDiffusionPipelineOutput> {
        self.finish(latents)?.into_pictures()
    }

    /// Latents as pictures, `(batch, 3, height, width)` with values about -1 to 1.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn decode_latents(&self, latents: &Tensor) -> Result<Tensor> {
        decode_latents(&self.vae, latents)
    }

    /// Latents as what is shown, values from 0 to 1: decoded, and checked where there is a safety checker.
    fn finish(&self, latents: &Tensor) -> Result<StableDiffusionPipelineOutput<Tensor>> {
        let images = denormalize(&self.decode_latents(latents)?)?;
        let Some(checker) = &self.safety_checker else {
            return Ok(StableDiffusionPipelineOutput { images, nsfw_content_detected: None });
        };
        let (images, flags) = checker.check(&images)?;
        Ok(StableDiffusionPipelineOutput { images, nsfw_content_detected: Some(flags) })
    }

    /// Replaces the scheduler by one of another class with the present one's settings, as diffusers' `from_config` does it.
    ///
    /// `class_name` is diffusers' (`EulerDiscreteScheduler`); `overrides` are config fields that shall differ (`use_karras_sigmas`).
    ///
    /// # Errors
    /// When there is no such scheduler, or a setting does not fit it.
    pub fn set_scheduler(&mut self, class_name: &str, overrides: &Map<String, Value>) -> Result<()> {
        let scheduler = scheduler_with_overrides(class_name, &self.scheduler_config, overrides)?;
        self.replace_scheduler(scheduler);
        Ok(())
    }

    /// Steps from noise to latents.
    pub fn scheduler(&self) -> &dyn Scheduler {
        self.scheduler.as_ref()
    }

    /// Takes another scheduler.
    pub fn replace_scheduler(&mut self, scheduler: Box<dyn Scheduler>) {
        self.scheduler_config = scheduler.config();
        self.scheduler = scheduler;
    }

    /// The pixels of a request's pictures, width and height: as it says, as its latents are, as its first control picture is (the next lower size
    /// that can be painted), or as the model was trained.
    ///
    /// # Errors
    /// When a side is 0, not a multiple of the VAE's factor, or too large for this machine's memory.
    pub fn picture_size(&self, request: &TextToImage) -> Result<(usize, usize)> {
        let factor = self.vae.config().vae_scale_factor();
        let control = request.controls.first().and_then(|control| control.pictures.first());
        let given = match (&request.latents, control) {
            (Some(latents), _) => {
                let (_, _, height, width) = latents.dims4()?;
                Some((height, width))
            }
            (None, Some(picture)) => {
                Some((picture.height() as usize / factor, picture.width() as usize / factor))
            }
            (None, None) => self.sample_size,
        };
        let side = |name, asked: Option<usize>, latent_side: Option<usize>| match asked
            .or(latent_side.map(|side| side * factor))
        {
            Some(side) if side > 0 && side.is_multiple_of(factor) => Ok(side),
            Some(side) => {
                let below = side / factor * factor;
                let nearest = if below == 0 {
                    format!("{factor}")
                } else {
                    format!("{below} or {}", below.saturating_add(factor))
                };
                argument(name, format!("is {side}, expected a multiple of {factor}, such as {nearest}"))
            }
            None => argument(name, "is missing, and the model does not say what size it was trained for"),
        };
        let height = side("height", request.height, given.map(|size| size.0))?;
        let width = side("width", request.width, given.map(|size| size.1))?;
        let batch = request.batch_size();
        let (unet, vae) = ((self.unet.config(), self.dtype), (self.vae.config(), self.vae.dtype()));
        let bytes = working_memory(unet, vae, batch, width, height);
        check_memory(&self.device, bytes, &format!("{batch} picture(s) of {width}x{height} at a time"))?;
        Ok((width, height))
    }
}
