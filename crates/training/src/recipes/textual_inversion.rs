//! Textual inversion (<https://arxiv.org/abs/2208.01618>; diffusers' `examples/textual_inversion`): a new token learns what pictures have in common, and
//! nothing else of the models changes. The loss is that of [`Denoising`](super::Denoising).

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use candle_diffusers_loaders::{ClipTokenizer, TextualInversion, TokenVectors};
use candle_diffusers_models::ClipTextModel;
use candle_diffusers_pipelines::{StableDiffusionPipeline, TextEncoders};

use crate::checkpoint::save_tensors;
use crate::error::{Error, Result};
use crate::parameters::Parameter;

/// Which token is learned; no default has a name for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextualInversionOptions {
    /// What it is called in prompts: nothing that the tokenizer knows, in lower case where it has several vectors.
    pub placeholder_token: String,
    /// A word of one token that it begins as.
    pub initializer_token: String,
    /// How many vectors stand for it.
    pub num_vectors: usize,
}

/// A token that is learned: its vectors are variables, one for each text encoder, which the models read with every prompt that has the token.
#[derive(Clone, Debug)]
pub struct TrainedToken {
    token: String,
    /// For the only or Stable Diffusion XL's first text encoder.
    first: Option<Var>,
    /// For Stable Diffusion XL's second.
    second: Option<Var>,
}

impl TrainedToken {
    /// Adds the token to the models' tokenizers and text encoders. Losses are then computed by a [`Denoising`](super::Denoising) of the models whose options say
    /// `train_text_encoder`, for captions such as [`LearnableProperty::captions`](super::LearnableProperty::captions) gives.
    ///
    /// # Errors
    /// When the placeholder is in a tokenizer's vocabulary, the initializer is not one token, or `num_vectors` is 0 or more than a text encoder reads. Then the models are what they were.
    pub fn attach(models: &mut StableDiffusionPipeline, options: &TextualInversionOptions) -> Result<Self> {
        let TextualInversionOptions { placeholder_token, num_vectors, .. } = options;
        if *num_vectors == 0 {
            let (found, expected) = ("0".to_string(), "1 or more".to_string());
            return Err(Error::Field { field: "num_vectors", found, expected });
        }
        let (first, second) = match &models.text_encoders {
            TextEncoders::Clip(clip) => {
                (Some(beginning(&clip.tokenizer, &clip.text_encoder, options)?), None)
            }
            TextEncoders::Xl(encoders) => {
                let first = encoders.first.as_ref();
                let first = first.map(|clip| beginning(&clip.tokenizer, &clip.text_encoder, options));
                let second = &encoders.second;
                (
                    first.transpose()?,
                    Some(beginning(&second.tokenizer, second.text_encoder.text_model(), options)?),
                )
            }
        };
        let vectors = |var: &Option<Var>| {
            let vectors = |var: &Var| TokenVectors {
                tensor: placeholder_token.clone(),
                vectors: var.as_tensor().clone(),
            };
            var.as_ref().map(vectors)
        };
        models.add_textual_inversions(&[TextualInversion {
            file: "placeholder_token".to_string(),
            token: placeholder_token.clone(),
            text_encoder: vectors(&first),
            text_encoder_2: vectors(&second),
        }])?;
        Ok(Self { token: placeholder_token.clone(), first, second })
    }

    /// What it is called in prompts.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// What is trained: the token's vectors, `(num_vectors, width)` for each text encoder.
    pub fn parameters(&self) -> Vec<Parameter> {
        let encoders = [("text_encoder", &self.first), ("text_encoder_2", &self.second)];
        let parameter = |(encoder, var): (&str, &Option<Var>)| {
            Some(Parameter { name: format!("{encoder}.token_embedding.{}", self.token), var: var.clone()? })
        };
        encoders.into_iter().filter_map(parameter).collect()
    }

    /// Writes the vectors, whole or not at all: `learned_embeds.safetensors` by diffusers' name for it. The tensor is called as the token, for Stable Diffusion XL
    /// `clip_l` and `clip_g`: whoever loads such a file says what the token is.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let (first, second) = match &self.second {
            None => (self.token.as_str(), ""),
            Some(_) => ("clip_l", "clip_g"),
        };
        let mut tensors = BTreeMap::new();
        for (name, var) in [(first, &self.first), (second, &self.second)] {
            if let Some(var) = var {
                tensors.insert(name.to_string(), var.as_detached_tensor().to_device(&Device::Cpu)?);
            }
        }
        save_tensors(path, &tensors, [("format".to_string(), "pt".to_string())])
    }
}

/// The vectors that the token begins with: the initializer's, once for each.
fn beginning(
    tokenizer: &ClipTokenizer,
    text_encoder: &ClipTextModel,
    options: &TextualInversionOptions,
) -> Result<Var> {
    let placeholder = &options.placeholder_token;
    // A whole word is in a CLIP vocabulary with a mark at its end.
    if tokenizer.token_to_id(&format!("{placeholder}</w>")).is_some() {
        let found = format!("{placeholder:?}, which is a word of the tokenizer already");
        let expected = "a new one, such as \"<my-cat>\"".to_string();
        return Err(Error::Field { field: "placeholder_token", found, expected });
    }
    let word = &options.initializer_token;
    let ids = tokenizer.encode_pieces(word)?;
    let [id] = ids[..] else {
        let pieces = tokenizer.tokenize(word)?.join(", ");
        let found = match ids.len() {
            0 => format!("{word:?}, which is no token"),
            count => format!("{word:?}, which is {count} tokens ({pieces})"),
        };
        let expected = "a word that is a single one".to_string();
        return Err(Error::Field { field: "initializer_token", found, expected });
    };
    // A prompt has a first and a last token beside.
    let most = text_encoder.max_position_embeddings().saturating_sub(2);
    if options.num_vectors > most {
        let (found, expected) = (
            options.num_vectors.to_string(),
            format!("at most {most}, which is as many as a prompt can have"),
        );
        return Err(Error::Field { field: "num_vectors", found, expected });
    }
    let row: Tensor = text_encoder.token_embeddings(&[id])?.to_dtype(DType::F32)?;
    Ok(Var::from_tensor(&row.repeat((options.num_vectors, 1))?)?)
}
