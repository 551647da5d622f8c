//! Pictures from noise alone, or from noise and a class: diffusers' `DDPMPipeline`, `DDIMPipeline` and `LDMPipeline`, which differ in their
//! scheduler and in whether an autoencoder follows.

mod load;
mod request;

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use candle_diffusers_models::{ClassEmbedType, UNet2DModel, VQModel};
use candle_diffusers_schedulers::{NoiseSource, Scheduler, StepOptions, scheduler_with_overrides};
use image::RgbImage;
use serde_json::{Map, Value};

pub use request::Unconditional;

use crate::error::{Result, argument};
use crate::image_processor::{denormalize, to_pictures};
use crate::latents::{is_finite, prepare_latents};
use crate::memory::{check_memory, unconditional_memory};
use crate::stable_diffusion::Schedule;

/// The models that paint without a text, and the stages in which they do.
///
/// ```no_run
/// use std::ops::ControlFlow;
///
/// use candle_diffusers_loaders::{LoadOptions, Repository};
/// use candle_diffusers_pipelines::{Schedule, Unconditional, UnconditionalPipeline, seeded_generators};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let repository = Repository::folder("ddpm-celebahq-256")?;
/// let mut pipeline = UnconditionalPipeline::load(&repository, &LoadOptions::default())?;
/// pipeline.set_scheduler("DDIMScheduler", &Default::default())?;
/// let request = Unconditional { schedule: Some(Schedule::Steps(50)), ..Default::default() };
/// let pictures =
///     pipeline.generate(&request, &mut seeded_generators(0, 1), &mut |_| Ok(ControlFlow::Continue(())))?;
/// pictures[0].save("face.png")?;
/// # Ok(())
/// # }
/// ```
pub struct UnconditionalPipeline {
    /// Predicts the noise in pictures, or in latents.
    pub unet: UNet2DModel,
    /// Latents to pictures, where the UNet does not see pictures themselves.
    pub vqvae: Option<VQModel>,
    scheduler: Box<dyn Scheduler>,
    /// What another scheduler is made from.
    scheduler_config: Value,
    default_steps: usize,
    /// Where the models are.
    pub device: Device,
    /// In which dtype they compute.
    pub dtype: DType,
}

/// The end of one step, as a callback sees it. What it changes, the next step takes.
#[derive(Debug)]
pub struct UnconditionalStepEnd<'a> {
    /// Steps done before this one.
    pub index: usize,
    /// Steps in all.
    pub total: usize,
    /// The timestep that this step took.
    pub timestep: f64,
    /// `(batch, channels, height, width)`: pictures from -1 to 1, or latents.
    pub sample: &'a mut Tensor,
}

/// What a callback may say at the end of a step: go on, or stop and make the picture of what there is.
pub type UnconditionalCallback<'a> = dyn FnMut(UnconditionalStepEnd<'_>) -> Result<ControlFlow<()>> + 'a;

impl UnconditionalPipeline {
    /// Paints pictures. Noise comes from `noise`: one generator for all, or a `Vec` of one for each
    /// ([`seeded_generators`](crate::seeded_generators)).
    ///
    /// # Errors
    /// When the request cannot be met; what can be told from it and the configs is told before the model runs.
    pub fn generate(
        &mut self,
        request: &Unconditional,
        noise: &mut dyn NoiseSource,
        on_step_end: &mut UnconditionalCallback,
    ) -> Result<Vec<RgbImage>> {
        let images = self.generate_tensor(request, noise, on_step_end)?;
        match images.dim(1)? {
            // Grey.
            1 => to_pictures(&images.repeat((1, 3, 1, 1))?),
            _ => to_pictures(&images),
        }
    }

    /// Like [`generate`](Self::generate), with the pictures as one tensor `(batch, channels, height, width)`, values from 0 to 1.
    ///
    /// # Errors
    /// Those of [`generate`](Self::generate).
    pub fn generate_tensor(
        &mut self,
        request: &Unconditional,
        noise: &mut dyn NoiseSource,
        on_step_end: &mut UnconditionalCallback,
    ) -> Result<Tensor> {
        request.check()?;
        self.check_classes(request)?;
        let shape = self.sample_shape(request)?;
        match request.schedule.clone().unwrap_or(Schedule::Steps(self.default_steps)) {
            Schedule::Steps(steps) => self.scheduler.set_timesteps(steps)?,
            Schedule::Timesteps(timesteps) => self.scheduler.set_custom_timesteps(&timesteps)?,
            Schedule::Sigmas(sigmas) => self.scheduler.set_custom_sigmas(&sigmas)?,
        }
        let sample = prepare_latents(shape, self.scheduler.as_ref(), noise, self.dtype, &self.device)?;
        let sample = self.denoise(sample, request, noise, on_step_end)?;
        let images = self.decode(&sample)?;
        if !is_finite(&images)? {
            tracing::warn!(
                "computed in {}, values of the pictures are infinite or not numbers: the model needs a wider type",
                self.dtype.as_str()
            );
        }
        denormalize(&images)
    }

    /// Takes the steps that the scheduler is set to.
    fn denoise(
        &mut self,
        mut sample: Tensor,
        request: &Unconditional,
        noise: &mut dyn NoiseSource,
        on_step_end: &mut UnconditionalCallback,
    ) -> Result<Tensor> {
        let Self { unet, scheduler, device, .. } = self;
        let class_labels =
            request.class_labels.as_ref().map(|labels| labels.to_device(device)).transpose()?;
        let options = StepOptions {
            eta: request.eta,
            use_clipped_model_output: request.use_clipped_model_output,
            ..Default::default()
        };
        let timesteps = scheduler.timesteps().to_vec();
        let total = timesteps.len();
        for (index, timestep) in timesteps.into_iter().enumerate() {
            let input = scheduler.scale_model_input(&sample, timestep)?;
            let model_output = unet.forward(&input, &[timestep], class_labels.as_ref())?;
            sample = scheduler.step(&model_output, timestep, &sample, noise, &options)?.prev_sample;
            let step = UnconditionalStepEnd { index, total, timestep, sample: &mut sample };
            if on_step_end(step)?.is_break() {
                break;
            }
        }
        Ok(sample)
    }

    /// Values about -1 to 1 of what the last step left.
    fn decode(&self, sample: &Tensor) -> Result<Tensor> {
        let Some(vqvae) = &self.vqvae else { return Ok(sample.clone()) };
        let latents = (sample / vqvae.config().autoencoder.scaling_factor)?;
        // One after the other: that takes no longer and a batch's memory less.
        let picture = |i: usize| -> Result<Tensor> { Ok(vqvae.decode(&latents.narrow(0, i, 1)?)?) };
        Ok(Tensor::cat(&(0..latents.dim(0)?).map(picture).collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// Replaces the scheduler by one of another class with the present one's settings, as diffusers' `from_config` does it.
    ///
    /// # Errors
    /// When there is no such scheduler, or a setting does not fit it.
    pub fn set_scheduler(&mut self, class_name: &str, overrides: &Map<String, Value>) -> Result<()> {
        self.scheduler = scheduler_with_overrides(class_name, &self.scheduler_config, overrides)?;
        self.scheduler_config = self.scheduler.config();
        Ok(())
    }

    /// Steps from noise to pictures.
    pub fn scheduler(&self) -> &dyn Scheduler {
        self.scheduler.as_ref()
    }

    /// How many steps are taken where a request does not say: 1000 in a `DDPMPipeline`, else 50.
    pub fn default_steps(&self) -> usize {
        self.default_steps
    }

    /// Whether the model knows the classes that the request names.
    fn check_classes(&self, request: &Unconditional) -> Result<()> {
        let (Some(labels), Some(ClassEmbedType::Table(count))) =
            (&request.class_labels, self.unet.config().class_embed_type)
        else {
            return Ok(());
        };
        let labels = labels.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        match labels.iter().find(|label| !(0.0..count as f64).contains(*label)) {
            Some(label) => argument(
                "class_labels",
                format!("contain {label}, but the model has {count} classes; expected 0 to {}", count - 1),
            ),
            None => Ok(()),
        }
    }

    /// What the UNet sees: as the request says, or as it was trained.
    fn sample_shape(&self, request: &Unconditional) -> Result<[usize; 4]> {
        let config = self.unet.config();
        let factor = self.vqvae.as_ref().map_or(1, |vqvae| vqvae.config().autoencoder.vae_scale_factor());
        let multiple = config.side_multiple() * factor;
        let side = |name, asked: Option<usize>, trained: Option<usize>| match (asked, trained) {
            (Some(side), _) if side > 0 && side.is_multiple_of(multiple) => Ok(side / factor),
            (Some(side), _) => argument(name, format!("is {side}, expected a multiple of {multiple}")),
            (None, Some(side)) => Ok(side),
            (None, None) => {
                argument(name, "is missing, and the model does not say what size it was trained for")
            }
        };
        let height = side("height", request.height, config.sample_size.map(|size| size.0))?;
        let width = side("width", request.width, config.sample_size.map(|size| size.1))?;
        let batch = request.batch_size;
        let bytes = unconditional_memory(config, self.dtype, batch, width, height);
        let (painted_width, painted_height) = (width.saturating_mul(factor), height.saturating_mul(factor));
        let what = format!("{batch} picture(s) of {painted_width}x{painted_height} at a time");
        check_memory(&self.device, bytes, &what)?;
        Ok([batch, config.in_channels, height, width])
    }
}
