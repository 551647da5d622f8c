//! What a model is told of a batch's pictures: texts, and Stable Diffusion XL's numbers.

use candle_core::Tensor;
use candle_diffusers_models::{TextCache, TextTime, UNetConditions};

use crate::denoise::TimeIds;
use crate::error::Result;
use crate::prompt_embeds::PromptEmbeds;

/// What a model is asked for in each step, of every picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Its prompt.
    Prompt,
    /// Its negative prompt and its prompt.
    NegativeAndPrompt,
    /// Its prompt, its negative prompt, and that once more, without the picture that is edited.
    PromptAndTwiceNegative,
}

impl Asked {
    /// How many rows a batch becomes of each picture.
    pub(crate) fn rows(self) -> usize {
        match self {
            Self::Prompt => 1,
            Self::NegativeAndPrompt => 2,
            Self::PromptAndTwiceNegative => 3,
        }
    }

    /// The rows of what the prompts and the negative prompts have.
    fn join(self, negative_then_prompt: &Tensor) -> Result<Tensor> {
        let Self::PromptAndTwiceNegative = self else { return Ok(negative_then_prompt.clone()) };
        let batch = negative_then_prompt.dim(0)? / 2;
        let [negative, prompt] = [0, batch].map(|start| negative_then_prompt.narrow(0, start, batch));
        let negative = negative?;
        Ok(Tensor::cat(&[&prompt?, &negative, &negative], 0)?)
    }
}

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
    pub(crate) fn new(
        prompt_embeds: &PromptEmbeds,
        time_ids: Option<&TimeIds>,
        asked: Asked,
    ) -> Result<Self> {
        if asked == Asked::Prompt {
            let time_ids = time_ids.map(|time_ids| time_ids.prompt.clone());
            let text = prompt_embeds.text(false)?;
            return Ok(Self { text, pooled: prompt_embeds.pooled_text(false)?, time_ids });
        }
        let time_ids = match time_ids {
            Some(TimeIds { prompt, negative }) => Some(asked.join(&Tensor::cat(&[negative, prompt], 0)?)?),
            None => None,
        };
        let pooled = prompt_embeds.pooled_text(true)?;
        let pooled = pooled.map(|pooled| asked.join(&pooled)).transpose()?;
        Ok(Self { text: asked.join(&prompt_embeds.text(true)?)?, pooled, time_ids })
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
