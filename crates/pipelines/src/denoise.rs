//! The loop that turns noise into a picture's latents.

use std::ops::{ControlFlow, Range};

use candle_core::Tensor;
use candle_diffusers_models::UNet2DConditionModel;
use candle_diffusers_schedulers::{NoiseSource, Scheduler, StepOptions};

use crate::control::{Place, Steering};
use crate::error::{Result, argument};
use crate::guidance::{classifier_free_guidance, instruct_pix2pix_guidance};
use crate::predictor::Predictor;
use crate::prompt_embeds::PromptEmbeds;
use crate::told::Asked;

/// How [`denoise`] guides.
#[derive(Clone, Debug)]
pub struct Guidance {
    /// How far away from the negative prompt; 1 or less turns guidance off.
    pub scale: f64,
    /// How far the spread of the guided prediction is brought back (0 to 1).
    pub rescale: f64,
    /// Of a model that edits a picture: how closely that is followed. The UNet is asked three times a step then; less than 1 turns guidance off.
    pub image_scale: Option<f64>,
}

impl Guidance {
    /// Whether the UNet is asked for the negative prompt too: not where guidance is off, and not where the model takes the scale as an input.
    pub fn is_classifier_free(&self, unet: &UNet2DConditionModel) -> bool {
        let follows_picture = self.image_scale.is_none_or(|scale| scale >= 1.0);
        self.scale > 1.0 && follows_picture && unet.config().time_cond_proj_dim.is_none()
    }

    pub(crate) fn asked(&self, unet: &UNet2DConditionModel) -> Asked {
        match self.image_scale {
            _ if !self.is_classifier_free(unet) => Asked::Prompt,
            None => Asked::NegativeAndPrompt,
            Some(_) => Asked::PromptAndTwiceNegative,
        }
    }

    /// What becomes of the UNet's predictions of what it was asked for.
    pub(crate) fn guide(&self, asked: Asked, model_output: Tensor) -> Result<Tensor> {
        match self.image_scale {
            _ if asked == Asked::Prompt => Ok(model_output),
            None => classifier_free_guidance(&model_output, self.scale, self.rescale),
            Some(image_scale) => {
                instruct_pix2pix_guidance(&model_output, self.scale, image_scale, self.rescale)
            }
        }
    }
}

/// The end of one step, as a callback sees it. What it changes, the next step takes.
#[derive(Debug)]
pub struct StepEnd<'a> {
    /// Steps done before this one.
    pub index: usize,
    /// Steps in all. Some schedulers take more than were asked for.
    pub total: usize,
    /// The timestep that this step took.
    pub timestep: f64,
    /// `(batch, channels, height, width)`.
    pub latents: &'a mut Tensor,
    /// The text that the next steps see.
    pub prompt_embeds: &'a mut PromptEmbeds,
}

/// What a callback may say at the end of a step: go on, or stop and make the picture of what there is.
pub type StepCallback<'a> = dyn FnMut(StepEnd<'_>) -> Result<ControlFlow<()>> + 'a;

/// Numbers that Stable Diffusion XL is told of each picture: sizes, cuts and perhaps a score.
#[derive(Clone, Debug)]
pub struct TimeIds {
    /// `(batch, numbers)`.
    pub prompt: Tensor,
    /// The same for the negative prompts.
    pub negative: Tensor,
}

/// What [`denoise`] goes through the steps with.
pub struct Denoising<'a> {
    /// Predicts the noise.
    pub unet: &'a UNet2DConditionModel,
    /// Takes the steps that it is set to.
    pub scheduler: &'a mut dyn Scheduler,
    /// Which of the scheduler's timesteps: image to image leaves out the first ones, a base before its refiner the last ones.
    pub steps: Range<usize>,
    /// What the picture shows.
    pub prompt_embeds: PromptEmbeds,
    /// What Stable Diffusion XL is told besides, with the pooled embeddings.
    pub time_ids: Option<TimeIds>,
    /// How closely the prompt is followed.
    pub guidance: Guidance,
    /// What the scheduler may be told.
    pub step_options: StepOptions,
    /// What of a picture shall stay, where only a part of it is painted.
    pub kept: Option<Kept>,
    /// The ControlNets that steer, with their pictures.
    pub control: Option<Steering>,
}

/// How a part of a picture is kept while the rest is painted; each tensor is of the whole batch.
#[derive(Clone, Debug)]
pub enum Kept {
    /// By a model that was trained for it and sees more channels than the latents': these, `(batch, channels, height, width)`.
    Seen(Tensor),
    /// By a model that was trained to edit pictures: it sees their latents, `(batch, channels, height, width)`, but zeros where it shall predict
    /// without the picture.
    Edited(Tensor),
    /// By any model: after each step, what the mask leaves out is the picture's again, with the noise of the next step.
    Restored {
        /// 1 where is painted, 0 where the picture stays, `(batch, 1, height, width)`.
        mask: Tensor,
        /// The picture's latents.
        latents: Tensor,
        /// What those get noise from, the same in each step.
        noise: Tensor,
    },
}

impl Kept {
    /// A model's input with what it sees besides.
    pub(crate) fn join(&self, input: Tensor) -> Result<Tensor> {
        let (channels, rows) = match self {
            Self::Restored { .. } => return Ok(input),
            Self::Seen(channels) | Self::Edited(channels) => (channels, input.dim(0)?),
        };
        let mut copies = vec![channels.clone(); rows / channels.dim(0)?.max(1)];
        if let (Self::Edited(_), [_, _, without]) = (self, &mut copies[..]) {
            *without = without.zeros_like()?;
        }
        Ok(Tensor::cat(&[&input, &Tensor::cat(&copies, 0)?], 1)?)
    }

    /// Latents after a step; `next` is the timestep of the next one.
    fn restore(&self, painted: Tensor, scheduler: &dyn Scheduler, next: Option<f64>) -> Result<Tensor> {
        let Self::Restored { mask, latents, noise } = self else { return Ok(painted) };
        let shown = match next {
            Some(timestep) => scheduler.add_noise(latents, noise, &[timestep])?,
            None => latents.clone(),
        };
        Ok((mask.affine(-1.0, 1.0)?.broadcast_mul(&shown)? + mask.broadcast_mul(&painted)?)?)
    }
}

/// Denoises `latents` `(batch, channels, height, width)` over the timesteps of the scheduler, and returns them.
///
/// Each step asks the UNet, guides its prediction, and lets the scheduler step; noise that the scheduler draws comes from
/// `noise`. The UNet's keys and values of the text are computed once ([`TextCache`](candle_diffusers_models::TextCache)), and again after a callback has changed the embeddings.
///
/// # Errors
/// When shapes do not fit, no step is left, or `on_step_end` fails.
pub fn denoise(
    mut latents: Tensor,
    denoising: Denoising,
    noise: &mut dyn NoiseSource,
    on_step_end: &mut StepCallback,
) -> Result<Tensor> {
    let Denoising {
        unet,
        scheduler,
        steps,
        mut prompt_embeds,
        time_ids,
        guidance,
        step_options,
        kept,
        control,
    } = denoising;
    let mut predictor = Predictor::new(unet, guidance, control, time_ids, &prompt_embeds, &latents)?;
    let timesteps = scheduler.timesteps().get(steps.clone()).unwrap_or(&[]).to_vec();
    if timesteps.is_empty() {
        let problem = format!("are {steps:?} of {}, so that none is left", scheduler.timesteps().len());
        return argument("steps", problem);
    }
    let total = scheduler.timesteps().len() - steps.start;
    for (index, &timestep) in timesteps.iter().enumerate() {
        let place = Place { index, total, timestep };
        let model_output = predictor.predict(&latents, scheduler, kept.as_ref(), place)?;
        latents = scheduler.step(&model_output, timestep, &latents, noise, &step_options)?.prev_sample;
        if let Some(kept) = &kept {
            latents = kept.restore(latents, scheduler, timesteps.get(index + 1).copied())?;
        }
        let before = prompt_embeds.clone();
        let step = StepEnd {
            index,
            total: timesteps.len(),
            timestep,
            latents: &mut latents,
            prompt_embeds: &mut prompt_embeds,
        };
        if on_step_end(step)?.is_break() {
            break;
        }
        if !prompt_embeds.is_same(&before) {
            predictor.tell(&prompt_embeds)?;
        }
    }
    Ok(latents)
}
