//! A folder's tokenizers and text encoders.

use candle_diffusers_loaders::{
    ClipTokenizer, LoadOptions, ModelIndex, Repository, load_text_encoder, load_text_encoder_with_projection,
};
use candle_diffusers_models::UNet2DConditionConfig;
use serde_json::Value;

use super::{ClipEncoder, ProjectedClipEncoder, TextEncoders, XlEncoders};
use crate::error::{Error, Result};

/// How many numbers Stable Diffusion XL is told of a picture: its size, its cut, and the size that it was brought to.
const SIZE_NUMBERS: usize = 6;
/// The same of its refiner: size, cut and score.
const SCORE_NUMBERS: usize = 5;

/// The tokenizers and text encoders that the index names, for a model like Stable Diffusion 1 and 2.
pub(super) fn load_clip(repository: &Repository, options: &LoadOptions) -> Result<TextEncoders> {
    Ok(TextEncoders::Clip(Box::new(load_first(repository, options)?)))
}

fn load_first(repository: &Repository, options: &LoadOptions) -> Result<ClipEncoder> {
    Ok(ClipEncoder {
        tokenizer: ClipTokenizer::load(repository, "tokenizer")?,
        text_encoder: load_text_encoder(repository, "text_encoder", options)?,
    })
}

/// The same for Stable Diffusion XL, with the second text encoder of another pipeline where it is shared; a refiner's index has no first one.
pub(super) fn load_xl(
    repository: &Repository,
    index: &ModelIndex,
    options: &LoadOptions,
    shared: Option<ProjectedClipEncoder>,
) -> Result<TextEncoders> {
    let first = match index.components.contains_key("text_encoder") {
        true => Some(load_first(repository, options)?),
        false => None,
    };
    let second = match shared {
        Some(shared) => shared,
        None => ProjectedClipEncoder {
            tokenizer: ClipTokenizer::load(repository, "tokenizer_2")?,
            text_encoder: load_text_encoder_with_projection(repository, "text_encoder_2", options)?,
        },
    };
    let lengths = first.as_ref().map(|first| (first.tokenizer.max_length(), second.tokenizer.max_length()));
    if let Some((length, length_2)) = lengths
        && length != length_2
    {
        let problem =
            format!("reads {length_2} tokens and the first tokenizer {length}, expected the same number");
        return Err(Error::Folder { file: repository.display("tokenizer_2"), problem });
    }
    let force_zeros_for_empty_prompt = read_flag(index, "force_zeros_for_empty_prompt", true)?;
    Ok(TextEncoders::Xl(Box::new(XlEncoders { first, second, force_zeros_for_empty_prompt })))
}

/// A setting of model_index.json.
pub(super) fn read_flag(index: &ModelIndex, name: &str, default: bool) -> Result<bool> {
    match index.config.get(name) {
        None => Ok(default),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => {
            let problem = format!("{name} is {other}, expected true or false");
            Err(Error::Folder { file: index.file().into(), problem })
        }
    }
}

/// The UNet must take the text that the text encoders make, and be told what this kind of model is told.
pub(super) fn check_text(
    repository: &Repository,
    unet: &UNet2DConditionConfig,
    text_encoders: &TextEncoders,
    requires_aesthetics_score: bool,
) -> Result<()> {
    let fail = |problem| Err(Error::Folder { file: repository.display("unet/config.json"), problem });
    let width = text_encoders.hidden_size();
    if unet.cross_attention_dim[0] != width {
        return fail(format!(
            "cross_attention_dim is {}, but the text encoders make {width} values of each token; they do not belong together",
            unet.cross_attention_dim[0]
        ));
    }
    match (text_encoders, unet.addition_embed_type) {
        (TextEncoders::Clip(_), None) => Ok(()),
        (TextEncoders::Clip(_), Some(_)) => fail(
            "addition_embed_type is \"text_time\": this UNet is one of Stable Diffusion XL, but the pipeline is not".into(),
        ),
        (TextEncoders::Xl(_), None) => {
            fail("addition_embed_type is missing, expected \"text_time\", as Stable Diffusion XL has it".into())
        }
        (TextEncoders::Xl(encoders), Some(added)) => {
            let numbers = if requires_aesthetics_score { SCORE_NUMBERS } else { SIZE_NUMBERS };
            let pooled = encoders.second.text_encoder.projection_dim();
            let expected = pooled + numbers * added.time_embed_dim;
            if added.input_dim == expected {
                return Ok(());
            }
            fail(format!(
                "projection_class_embeddings_input_dim is {}, expected {expected}: {pooled} of the pooled text and {} for each of {numbers} \
                 numbers (requires_aesthetics_score of model_index.json is {requires_aesthetics_score})",
                added.input_dim, added.time_embed_dim
            ))
        }
    }
}
