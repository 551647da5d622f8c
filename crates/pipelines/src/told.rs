//! What a model is told of a batch's pictures: texts, and Stable Diffusion XL's numbers.

use candle_core::Tensor;
use candle_diffusers_models::{TextCache, TextTime, UNetConditions};

use crate::denoise::TimeIds;
use crate::error::Result;
use crate::prompt_embeds::PromptEmbeds;

/// One row for each that a model is asked for.
pub(crate) struct Told {
    /// `(rows, tokens, hidden_size)`.
    pub(crate) text: Tensor,
    /// `(rows, projection_dim)`.
    pooled: Option<Tensor>,
    /// `(rows, numbers)`.
    time_ids: Option<Tensor>,
}

impl Told {
    /// Of the prompts; with `classifier_free` guidance of the negative prompts, then the prompts.
    pub(crate) fn new(
        prompt_embeds: &PromptEmbeds,
        time_ids: Option<&TimeIds>,
        classifier_free: bool,
    ) -> Result<Self> {
        let time_ids = match time_ids {
            Some(TimeIds { prompt, negative }) if classifier_free => {
                Some(Tensor::cat(&[negative, prompt], 0)?)
            }
            time_ids => time_ids.map(|time_ids| time_ids.prompt.clone()),
        };
        let text = prompt_embeds.text(classifier_free)?;
        Ok(Self { text, pooled: prompt_embeds.pooled_text(classifier_free)?, time_ids })
    }

    /// As a model takes it besides the text, whose keys and values are kept in `text_cache`.
    pub(crate) fn conditions<'a>(&'a self, text_cache: &'a TextCache) -> UNetConditions<'a> {
        let added = self.pooled.as_ref().zip(self.time_ids.as_ref());
        UNetConditions {
            added: added.map(|(text_embeds, time_ids)| TextTime { text_embeds, time_ids }),
            text_cache: Some(text_cache),
            ..Default::default()
        }
    }
}
