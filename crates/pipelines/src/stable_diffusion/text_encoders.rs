//! Prompts to embeddings, with one CLIP text encoder (Stable Diffusion 1 and 2) or two (Stable Diffusion XL).

use candle_core::{Device, Tensor};
use candle_diffusers_loaders::ClipTokenizer;
use candle_diffusers_loaders::lora::LoraModels;
use candle_diffusers_models::{ClipTextModel, ClipTextModelWithProjection, UNet2DConditionModel};

use super::TextToImage;
use crate::error::{Result, argument};
use crate::prompt::{encode_prompt, token_ids};
use crate::prompt_embeds::{PooledPromptEmbeds, PromptEmbeds};

/// What a model reads prompts with.
#[derive(Clone, Debug)]
pub enum TextEncoders {
    /// Stable Diffusion 1 and 2.
    Clip(Box<ClipEncoder>),
    /// Stable Diffusion XL and its refiner.
    Xl(Box<XlEncoders>),
}

/// A CLIP text encoder and the tokenizer that belongs to it.
#[derive(Clone, Debug)]
pub struct ClipEncoder {
    /// Words to token ids.
    pub tokenizer: ClipTokenizer,
    /// Token ids to embeddings.
    pub text_encoder: ClipTextModel,
}

/// A CLIP text encoder with a projection and the tokenizer that belongs to it.
#[derive(Clone, Debug)]
pub struct ProjectedClipEncoder {
    /// Words to token ids.
    pub tokenizer: ClipTokenizer,
    /// Token ids to embeddings.
    pub text_encoder: ClipTextModelWithProjection,
}

/// The text encoders of Stable Diffusion XL. What they make of each token stands side by side; the second's pooled output goes beside it.
#[derive(Clone, Debug)]
pub struct XlEncoders {
    /// The first, which the refiner lacks.
    pub first: Option<ClipEncoder>,
    /// The second.
    pub second: ProjectedClipEncoder,
    /// Whether no negative prompt means embeddings of zeros, not those of an empty text.
    pub force_zeros_for_empty_prompt: bool,
}

impl TextEncoders {
    /// The embeddings of the request's prompts, and of its negative prompts where guidance is `classifier_free`; one for each prompt.
    ///
    /// As in diffusers, `clip_skip` does not apply to negative prompts.
    ///
    /// # Errors
    /// When there are not as many of one kind of prompts as of the others, or there are texts for a text encoder that the model lacks.
    pub fn encode(
        &self,
        request: &TextToImage,
        classifier_free: bool,
        device: &Device,
    ) -> Result<PromptEmbeds> {
        self.check(request)?;
        match self {
            Self::Clip(clip) => clip.encode(request, classifier_free, device),
            Self::Xl(encoders) => encoders.encode(request, classifier_free, device),
        }
    }

    /// Whether the model has what the request has texts for.
    pub(super) fn check(&self, request: &TextToImage) -> Result<()> {
        if self.reads_second_prompts() {
            return Ok(());
        }
        let given = [("prompts_2", &request.prompts_2), ("negative_prompts_2", &request.negative_prompts_2)];
        match given.into_iter().find(|(_, texts)| !texts.is_empty()) {
            Some((name, _)) => {
                argument(name, "are given, but the model has one text encoder; leave them out")
            }
            None => Ok(()),
        }
    }

    /// Whether a second text may go to a second text encoder.
    fn reads_second_prompts(&self) -> bool {
        matches!(self, Self::Xl(encoders) if encoders.first.is_some())
    }

    /// How many values are made of each token.
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Clip(clip) => clip.text_encoder.hidden_size(),
            Self::Xl(encoders) => {
                let first = encoders.first.as_ref().map_or(0, |first| first.text_encoder.hidden_size());
                first + encoders.second.text_encoder.text_model().hidden_size()
            }
        }
    }

    /// The only one, or Stable Diffusion XL's first.
    pub(super) fn first_mut(&mut self) -> Option<&mut ClipEncoder> {
        match self {
            Self::Clip(clip) => Some(clip),
            Self::Xl(encoders) => encoders.first.as_mut(),
        }
    }

    /// For training: whether the text encoders compute with [gradient checkpointing](candle_diffusers_models::gradient_checkpointing).
    pub fn set_gradient_checkpointing(&mut self, gradient_checkpointing: bool) {
        if let Some(first) = self.first_mut() {
            first.text_encoder.set_gradient_checkpointing(gradient_checkpointing);
        }
        if let Self::Xl(encoders) = self {
            encoders.second.text_encoder.text_model_mut().set_gradient_checkpointing(gradient_checkpointing);
        }
    }

    /// The models that LoRAs change.
    pub fn lora_models<'a>(&'a self, unet: &'a UNet2DConditionModel) -> LoraModels<'a> {
        let mut models = LoraModels { unet: Some(unet), ..Default::default() };
        match self {
            Self::Clip(clip) => models.text_encoder = Some(&clip.text_encoder),
            Self::Xl(encoders) => {
                models.text_encoder_2 = Some(&encoders.second.text_encoder);
                if let Some(first) = &encoders.first {
                    models.text_encoder = Some(&first.text_encoder);
                }
            }
        }
        models
    }
}

impl ClipEncoder {
    fn encode(&self, request: &TextToImage, classifier_free: bool, device: &Device) -> Result<PromptEmbeds> {
        let encode = |prompts: &[String], clip_skip| {
            encode_prompt(&self.tokenizer, &self.text_encoder, prompts, clip_skip, device)
        };
        let negative =
            classifier_free.then(|| encode(&request.negative_prompts_per_prompt()?, None)).transpose()?;
        Ok(PromptEmbeds { prompt: encode(&request.prompts, request.clip_skip)?, negative, pooled: None })
    }
}

impl XlEncoders {
    fn encode(&self, request: &TextToImage, classifier_free: bool, device: &Device) -> Result<PromptEmbeds> {
        let prompts_2 = request.prompts_2_per_prompt()?;
        let (prompt, pooled) =
            self.encode_texts(&request.prompts, &prompts_2, request.clip_skip.unwrap_or(0), device)?;
        let zeros = self.force_zeros_for_empty_prompt && request.negative_prompts.is_empty();
        let (negative, negative_pooled) = match (classifier_free, zeros) {
            (false, _) => (None, None),
            (true, true) => {
                if !request.negative_prompts_2.is_empty() {
                    tracing::warn!(
                        "the second negative prompt has no effect without a negative prompt, as in diffusers: this model takes zeros then"
                    );
                }
                (Some(prompt.zeros_like()?), Some(pooled.zeros_like()?))
            }
            (true, false) => {
                let [negatives, negatives_2] =
                    [request.negative_prompts_per_prompt()?, request.negative_prompts_2_per_prompt()?];
                let (negative, pooled) = self.encode_texts(&negatives, &negatives_2, 0, device)?;
                (Some(negative), Some(pooled))
            }
        };
        let pooled = PooledPromptEmbeds { prompt: pooled, negative: negative_pooled };
        Ok(PromptEmbeds { prompt, negative, pooled: Some(pooled) })
    }

    /// What both encoders make of the texts, `(texts, tokens, hidden_size + hidden_size_2)`, and the pooled output,
    /// `(texts, projection_dim)`. Where there is one encoder, it is given the first texts.
    fn encode_texts(
        &self,
        texts: &[String],
        texts_2: &[String],
        clip_skip: usize,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        let mut embeds = Vec::new();
        let texts_2 = match &self.first {
            Some(ClipEncoder { tokenizer, text_encoder }) => {
                let ids = token_ids(tokenizer, texts, device)?;
                let layers = layers_to_run(text_encoder, clip_skip)?;
                embeds.push(text_encoder.hidden_state(&ids, layers)?);
                texts_2
            }
            None => texts,
        };
        let ProjectedClipEncoder { tokenizer, text_encoder } = &self.second;
        let layers = layers_to_run(text_encoder.text_model(), clip_skip)?;
        let output = text_encoder.forward(&token_ids(tokenizer, texts_2, device)?)?;
        embeds.push(output.hidden_states[layers].clone());
        Ok((Tensor::cat(&embeds, 2)?, output.text_embeds))
    }
}

/// All but the last layer, and without `clip_skip` more.
fn layers_to_run(text_encoder: &ClipTextModel, clip_skip: usize) -> Result<usize> {
    let layers = text_encoder.num_hidden_layers();
    match layers.checked_sub(1).and_then(|layers| layers.checked_sub(clip_skip)) {
        Some(layers) => Ok(layers),
        None => {
            let problem = format!(
                "is {clip_skip}, but a text encoder has only {layers} layers, of which Stable Diffusion XL leaves out the last anyway"
            );
            argument("clip_skip", problem)
        }
    }
}
