//! From words to what the UNet sees of them.

use std::collections::HashSet;

use candle_core::{Device, Tensor};
use candle_diffusers_loaders::ClipTokenizer;
use candle_diffusers_models::ClipTextModel;

use crate::error::{Result, argument};

/// Text as the UNet sees it.
#[derive(Clone, Debug)]
pub struct PromptEmbeds {
    /// `(batch, tokens, hidden_size)`.
    pub prompt: Tensor,
    /// The same for the negative prompts, which guidance needs.
    pub negative: Option<Tensor>,
}

impl PromptEmbeds {
    /// `(2 * batch, tokens, hidden_size)`: the negative prompts, then the prompts.
    ///
    /// # Errors
    /// When there are no negative prompts, or their shape is another.
    pub fn negative_then_prompt(&self) -> Result<Tensor> {
        let Some(negative) = &self.negative else {
            return argument("negative_prompt_embeds", "are missing, but guidance needs them");
        };
        if negative.dims() != self.prompt.dims() {
            let problem =
                format!("are {:?}, but prompt_embeds are {:?}", negative.dims(), self.prompt.dims());
            return argument("negative_prompt_embeds", problem);
        }
        Ok(Tensor::cat(&[negative, &self.prompt], 0)?)
    }

    /// What the UNet sees with each step: with `classifier_free` guidance [`negative_then_prompt`](Self::negative_then_prompt), else the prompts.
    ///
    /// # Errors
    /// Those of [`negative_then_prompt`](Self::negative_then_prompt).
    pub fn text(&self, classifier_free: bool) -> Result<Tensor> {
        if classifier_free { self.negative_then_prompt() } else { Ok(self.prompt.clone()) }
    }

    /// Whether both are the very same tensors.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let ids = |embeds: &Self| (embeds.prompt.id(), embeds.negative.as_ref().map(Tensor::id));
        ids(self) == ids(other)
    }

    /// Each prompt `count` times in a row, for as many pictures of it.
    ///
    /// # Errors
    /// Those of the device.
    pub fn repeat_each(&self, count: usize) -> Result<Self> {
        let repeat = |embeds: &Tensor| -> Result<Tensor> {
            let (batch, tokens, width) = embeds.dims3()?;
            let repeated = embeds.unsqueeze(1)?.expand((batch, count, tokens, width))?;
            Ok(repeated.contiguous()?.reshape((batch * count, tokens, width))?)
        };
        let negative = self.negative.as_ref().map(repeat).transpose()?;
        Ok(Self { prompt: repeat(&self.prompt)?, negative })
    }
}

/// The longest prompt that embeddings may make, in bytes: far more than a text encoder sees.
const MAX_CONVERTED_BYTES: usize = 4 << 20;

/// Writes out the tokens of a prompt that stand for several vectors: `<cat>` becomes `<cat> <cat>_1 <cat>_2`.
///
/// This is `maybe_convert_prompt` of diffusers (loaders/textual_inversion.py): each token that `tokenizer` finds in the prompt, and
/// knows as one that was added, is replaced wherever its very text stands. Found in another case it is not replaced, so that only its
/// first vector counts. Where one token is a part of another, diffusers leaves to chance which is replaced first; here it is the one
/// that comes first in the prompt.
///
/// # Errors
/// When the tokenizer cannot read the prompt, or the prompt would become longer than any text that makes sense.
pub fn maybe_convert_prompt(prompt: &str, tokenizer: &ClipTokenizer) -> Result<String> {
    let mut seen = HashSet::new();
    let mut converted = prompt.to_string();
    for token in tokenizer.tokenize(prompt)? {
        if !tokenizer.is_added_token(&token) || !seen.insert(token.clone()) {
            continue;
        }
        let further = (1_usize..).map(|number| format!("{token}_{number}"));
        let further: Vec<String> = further.take_while(|name| tokenizer.is_added_token(name)).collect();
        if further.is_empty() {
            continue;
        }
        let replacement = format!("{token} {}", further.join(" "));
        let length = converted.matches(&token).count().saturating_mul(replacement.len());
        if length > MAX_CONVERTED_BYTES {
            let problem = format!(
                "would have {length} bytes with the vectors of {token:?} written out, at most {MAX_CONVERTED_BYTES} are read"
            );
            return argument("prompt", problem);
        }
        converted = converted.replace(&token, &replacement);
    }
    Ok(converted)
}

/// Encodes prompts with a CLIP text encoder: `(prompts.len(), tokens, hidden_size)`.
///
/// Tokens of textual inversion embeddings are written out first ([`maybe_convert_prompt`]).
/// A prompt of more tokens than the tokenizer's limit is cut, with a warning (through `tracing`) that says what was cut.
/// `clip_skip` leaves out the encoder's last layers, as diffusers' `clip_skip` does (1: the one before the last).
///
/// # Errors
/// When there are fewer layers than `clip_skip` leaves out, or the tokenizer belongs to another encoder.
pub fn encode_prompt(
    tokenizer: &ClipTokenizer,
    text_encoder: &ClipTextModel,
    prompts: &[impl AsRef<str>],
    clip_skip: Option<usize>,
    device: &Device,
) -> Result<Tensor> {
    let mut ids = Vec::new();
    for prompt in prompts {
        let encoded = tokenizer.encode(&maybe_convert_prompt(prompt.as_ref(), tokenizer)?)?;
        if let Some(removed) = &encoded.removed {
            tracing::warn!(
                "the text encoder sees no more than {} tokens; this part of the prompt was cut: {}",
                tokenizer.max_length(),
                shorten(removed)
            );
        }
        ids.extend(encoded.ids);
    }
    let tokens = ids.len() / prompts.len().max(1);
    let ids = Tensor::from_vec(ids, (prompts.len(), tokens), device)?;
    let Some(clip_skip) = clip_skip else {
        return Ok(text_encoder.forward(&ids)?.last_hidden_state);
    };
    let layers = text_encoder.num_hidden_layers();
    if clip_skip > layers {
        let problem = format!("is {clip_skip}, but the text encoder has only {layers} layers");
        return argument("clip_skip", problem);
    }
    let hidden_state = text_encoder.hidden_state(&ids, layers - clip_skip)?;
    Ok(text_encoder.final_layer_norm(&hidden_state)?)
}

/// A long text's beginning and end.
fn shorten(text: &str) -> String {
    const KEPT: usize = 200;
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= 2 * KEPT {
        return text.to_string();
    }
    let (start, end) = (&characters[..KEPT], &characters[characters.len() - KEPT..]);
    let left_out = characters.len() - 2 * KEPT;
    format!(
        "{} [... {left_out} characters ...] {}",
        start.iter().collect::<String>(),
        end.iter().collect::<String>()
    )
}
