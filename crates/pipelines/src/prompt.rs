//! From words to what the UNet sees of them.

use std::collections::HashSet;

use candle_core::{Device, Tensor};
use candle_diffusers_loaders::ClipTokenizer;
use candle_diffusers_models::ClipTextModel;

use crate::error::{Result, argument};

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
    let ids = token_ids(tokenizer, prompts, device)?;
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

/// What a text encoder is given, `(prompts.len(), tokens)`; textual inversions are written out, and what is cut is told.
pub(crate) fn token_ids(
    tokenizer: &ClipTokenizer,
    prompts: &[impl AsRef<str>],
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
    Ok(Tensor::from_vec(ids, (prompts.len(), tokens), device)?)
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
