//! What a model predicts in one step of the loop: asked for all that guidance needs, steered, and guided.

use candle_core::Tensor;
use candle_diffusers_models::{TextCache, UNet2DConditionModel, UNetConditions};
use candle_diffusers_schedulers::Scheduler;

use crate::control::{Place, Steering};
use crate::denoise::{Guidance, Kept, TimeIds};
use crate::error::Result;
use crate::guidance::guidance_scale_embedding;
use crate::prompt_embeds::PromptEmbeds;
use crate::told::{Asked, Told};

/// A UNet with what stays the same through all steps.
pub(crate) struct Predictor<'a> {
    unet: &'a UNet2DConditionModel,
    guidance: Guidance,
    control: Option<Steering>,
    asked: Asked,
    time_ids: Option<TimeIds>,
    timestep_cond: Option<Tensor>,
    /// Rows for all that is asked, and for the prompts alone.
    told: [Told; 2],
    text_cache: TextCache,
}

impl<'a> Predictor<'a> {
    /// For latents such as these.
    pub(crate) fn new(
        unet: &'a UNet2DConditionModel,
        guidance: Guidance,
        control: Option<Steering>,
        time_ids: Option<TimeIds>,
        prompt_embeds: &PromptEmbeds,
        latents: &Tensor,
    ) -> Result<Self> {
        let asked = guidance.asked(unet);
        let timestep_cond = match unet.config().time_cond_proj_dim {
            Some(dim) => {
                let w = guidance.scale - 1.0;
                Some(guidance_scale_embedding(w, latents.dim(0)?, dim, latents.dtype(), latents.device())?)
            }
            None => None,
        };
        let told = told(prompt_embeds, time_ids.as_ref(), asked)?;
        let text_cache = TextCache::new();
        Ok(Self { unet, guidance, control, asked, time_ids, timestep_cond, told, text_cache })
    }

    /// Tells another text from now on.
    pub(crate) fn tell(&mut self, prompt_embeds: &PromptEmbeds) -> Result<()> {
        self.told = told(prompt_embeds, self.time_ids.as_ref(), self.asked)?;
        Ok(())
    }

    /// The guided prediction, of the shape of the latents.
    pub(crate) fn predict(
        &self,
        latents: &Tensor,
        scheduler: &mut dyn Scheduler,
        kept: Option<&Kept>,
        place: Place,
    ) -> Result<Tensor> {
        let Self { unet, guidance, control, asked, told: [told, told_prompts], text_cache, .. } = self;
        let input = Tensor::cat(&vec![latents; asked.rows()], 0)?;
        let input = scheduler.scale_model_input(&input, place.timestep)?;
        let residuals = match control {
            Some(control) => control.residuals(place, &input, told, told_prompts, text_cache)?,
            None => None,
        };
        let input = match kept {
            Some(kept) => kept.join(input)?,
            None => input,
        };
        let conditions = UNetConditions {
            timestep_cond: self.timestep_cond.as_ref(),
            control: residuals.as_ref().map(|residuals| residuals.residuals()),
            ..told.conditions(text_cache)
        };
        guidance.guide(*asked, unet.forward(&input, &[place.timestep], &told.text, conditions)?)
    }
}

fn told(prompt_embeds: &PromptEmbeds, time_ids: Option<&TimeIds>, asked: Asked) -> Result<[Told; 2]> {
    Ok([Told::new(prompt_embeds, time_ids, asked)?, Told::new(prompt_embeds, time_ids, Asked::Prompt)?])
}
