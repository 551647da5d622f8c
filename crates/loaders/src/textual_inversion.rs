//! Textual inversion at run time: vectors that stand for a token of the prompt (diffusers, loaders/textual_inversion.py).

use std::path::Path;

use candle_core::{Device, Tensor};
use candle_diffusers_convert::{Embedding, EmbeddingFile, Source, TensorRef, has_non_finite, looks_like};
use candle_diffusers_models::ClipTextModel;

use crate::state_dict::candle_dtype;
use crate::{ClipTokenizer, Error, Result};

/// A token and the vectors that stand for it.
#[derive(Debug, Clone)]
pub struct TextualInversion {
    /// The file that it is from, for messages.
    pub file: String,
    /// The token that brings the vectors into a prompt. It may be changed before the embedding is loaded.
    pub token: String,
    /// The vectors for the pipeline's only or first text encoder.
    pub text_encoder: Option<TokenVectors>,
    /// Those for Stable Diffusion XL's second.
    pub text_encoder_2: Option<TokenVectors>,
}

/// The vectors of one token for one text encoder.
#[derive(Debug, Clone)]
pub struct TokenVectors {
    /// What the file calls them.
    pub tensor: String,
    /// `(vectors, width)`, as the file has them, on the CPU.
    pub vectors: Tensor,
}

/// The text encoders that an embedding may have vectors for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextEncoderPlace {
    /// The only one, or Stable Diffusion XL's first (`text_encoder`, `clip_l`).
    First,
    /// Stable Diffusion XL's second (`text_encoder_2`, `clip_g`).
    Second,
}

/// Why an embedding does not fit. Every message begins with the file's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextualInversionError {
    /// A token that the tokenizer or another embedding has.
    #[error("{file}: the token {token:?} cannot be added: {problem}; give the embedding another token")]
    TokenExists {
        /// The embedding's file.
        file: String,
        /// The token.
        token: String,
        /// What it clashes with.
        problem: String,
    },
    /// Vectors for another text encoder.
    #[error(
        "{file}: the vectors of {token:?} (tensor {tensor}) have the width {found}, but the text encoder takes {expected}: \
         the embedding looks like one for {}, the text encoder like that of {}",
        whose(*.found), whose(*.expected)
    )]
    Width {
        /// The embedding's file.
        file: String,
        /// The token.
        token: String,
        /// The tensor with the vectors.
        tensor: String,
        /// Their width.
        found: usize,
        /// The width of the text encoder.
        expected: usize,
    },
    /// An embedding without vectors for the text encoder that is asked for.
    #[error("{file}: the embedding {token:?} has no vectors for the {}", .place.folder())]
    NoVectors {
        /// The embedding's file.
        file: String,
        /// The token.
        token: String,
        /// The text encoder.
        place: TextEncoderPlace,
    },
    /// One token for a file with several embeddings.
    #[error(
        "{file} has {count} embeddings ({}), so they cannot all be given the token {token:?}; leave it away to load them by their own",
        .names.join(", ")
    )]
    SeveralEmbeddings {
        /// The file.
        file: String,
        /// How many there are.
        count: usize,
        /// The tokens of the first of them.
        names: Vec<String>,
        /// The token that was given.
        token: String,
    },
    /// A token that no embedding was loaded for.
    #[error("no textual inversion embedding is loaded for the token {token:?}; {}", loaded_text(.loaded))]
    NotLoaded {
        /// The token.
        token: String,
        /// The tokens that were.
        loaded: Vec<String>,
    },
}

impl TextEncoderPlace {
    /// The text encoder's folder in diffusers' layout.
    pub fn folder(self) -> &'static str {
        match self {
            Self::First => "text_encoder",
            Self::Second => "text_encoder_2",
        }
    }
}

impl TextualInversion {
    /// Reads the embeddings in the file at `path` (or, where that is a folder, in its `learned_embeds.safetensors` or `.bin`):
    /// usually one. `token` is what they shall be called instead of what the file, or else its name, says.
    ///
    /// Vectors with values that are infinite or not numbers are told by a warning (through `tracing`).
    ///
    /// # Errors
    /// When the file is not an embedding or damaged, or has several and a token is given.
    pub fn read(path: impl AsRef<Path>, token: Option<&str>) -> Result<Vec<Self>> {
        let (file, source) = EmbeddingFile::open(path)?;
        Self::from_file(&file, source.as_ref(), token)
    }

    /// As [`read`](Self::read), with what was found in `source`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn from_file(file: &EmbeddingFile, source: &dyn Source, token: Option<&str>) -> Result<Vec<Self>> {
        if let (Some(token), [_, _, ..]) = (token, &file.embeddings[..]) {
            let names = file.embeddings.iter().take(3).map(|one| one.token.clone()).collect();
            let (count, token) = (file.embeddings.len(), token.to_string());
            let error =
                TextualInversionError::SeveralEmbeddings { file: file.source.clone(), count, names, token };
            return Err(error.into());
        }
        let read = |tensor: &Option<TensorRef>| {
            tensor.as_ref().map(|tensor| TokenVectors::read(source, tensor)).transpose()
        };
        let one = |embedding: &Embedding| {
            Ok(Self {
                file: file.source.clone(),
                token: token.unwrap_or(&embedding.token).to_string(),
                text_encoder: read(&embedding.text_encoder)?,
                text_encoder_2: read(&embedding.text_encoder_2)?,
            })
        };
        file.embeddings.iter().map(one).collect()
    }

    /// The vectors for one of the text encoders.
    ///
    /// # Errors
    /// When the embedding has none for it.
    pub fn vectors(&self, place: TextEncoderPlace) -> Result<&TokenVectors> {
        let vectors = match place {
            TextEncoderPlace::First => &self.text_encoder,
            TextEncoderPlace::Second => &self.text_encoder_2,
        };
        let (file, token) = (self.file.clone(), self.token.clone());
        Ok(vectors.as_ref().ok_or(TextualInversionError::NoVectors { file, token, place })?)
    }
}

impl TokenVectors {
    fn read(source: &dyn Source, tensor: &TensorRef) -> Result<Self> {
        let (file, name) = (|| source.name().to_string(), || tensor.name.clone());
        let unsupported = || Error::UnsupportedDtype { file: file(), tensor: name(), dtype: tensor.dtype };
        let dtype = candle_dtype(tensor.dtype).ok_or_else(unsupported)?;
        let bytes = source.bytes(&tensor.name)?;
        let (count, width) = Embedding::vectors_and_width(tensor);
        let failed = |source| Error::Tensor { file: file(), tensor: name(), dtype, source: Box::new(source) };
        let vectors =
            Tensor::from_raw_buffer(&bytes, dtype, &[count, width], &Device::Cpu).map_err(failed)?;
        if has_non_finite(&bytes, tensor.dtype) {
            tracing::warn!("{}: tensor {} has values that are infinite or not numbers", file(), name());
        }
        Ok(Self { tensor: name(), vectors })
    }
}

/// Adds the tokens of `embeddings` to a tokenizer, and their vectors to the text encoder that belongs to it.
///
/// A token `<cat>` of several vectors becomes the tokens `<cat>`, `<cat>_1`, `<cat>_2` and so on, as in diffusers; whoever encodes a
/// prompt writes them out. For Stable Diffusion XL this is called twice, once for each place.
///
/// # Errors
/// When a token is in the vocabulary already, vectors are of another width than the encoder's, or tokenizer and text encoder do
/// not belong together. Then nothing is added.
pub fn load_textual_inversion(
    tokenizer: &mut ClipTokenizer,
    text_encoder: &mut ClipTextModel,
    embeddings: &[TextualInversion],
    place: TextEncoderPlace,
) -> Result<()> {
    let mut extended = tokenizer.clone();
    let mut rows = Vec::new();
    for embedding in embeddings {
        let vectors = embedding.vectors(place)?;
        let (count, found) =
            vectors.vectors.dims2().map_err(|error| tensor_error(embedding, vectors, error))?;
        let (file, token) = (|| embedding.file.clone(), || embedding.token.clone());
        let expected = text_encoder.hidden_size();
        if found != expected {
            let tensor = vectors.tensor.clone();
            return Err(TextualInversionError::Width {
                file: file(),
                token: token(),
                tensor,
                found,
                expected,
            }
            .into());
        }
        let tokens = token_names(&embedding.token, count);
        if let Some(problem) = extended.conflict(&tokens).or_else(|| extended.series_conflict(&tokens)) {
            return Err(TextualInversionError::TokenExists { file: file(), token: token(), problem }.into());
        }
        if count > 1 && !extended.is_normal(&embedding.token)? {
            tracing::warn!(
                "{}: the token {:?} is not in lower case, so that only the first of its {count} vectors has an effect, as in \
                 diffusers; give the embedding a token in lower case",
                embedding.file,
                embedding.token
            );
        }
        let ids = extended.add_tokens(&tokens)?;
        rows.push((embedding, ids, &vectors.vectors));
    }
    // Each by itself and as it is: vectors that are a variable's remain that variable's.
    let mut added: Vec<u32> = Vec::new();
    for (embedding, ids, vectors) in rows {
        let Some(first_id) = ids.first() else { continue };
        if let Err(source) = text_encoder.add_token_embeddings(*first_id, vectors) {
            let component = |source: candle_diffusers_models::Error| Error::Component {
                component: embedding.file.clone(),
                source: source.into(),
            };
            text_encoder.remove_token_embeddings(&added).map_err(component)?;
            return Err(component(source));
        }
        added.extend(ids);
    }
    *tokenizer = extended;
    Ok(())
}

/// Takes the embeddings of `tokens` away again, all of their vectors; all embeddings that were loaded where `tokens` is empty. With
/// the last of them gone tokenizer and text encoder are exactly what they were.
///
/// # Errors
/// When no embedding was loaded for a token. Then nothing is taken away.
pub fn unload_textual_inversion(
    tokenizer: &mut ClipTokenizer,
    text_encoder: &mut ClipTextModel,
    tokens: &[impl AsRef<str>],
) -> Result<()> {
    let loaded = tokenizer.loaded_tokens();
    let mut names: Vec<String> = Vec::new();
    for token in tokens {
        let token = token.as_ref();
        let Some(position) = loaded.iter().position(|name| name == token) else {
            let (token, loaded) = (token.to_string(), loaded.to_vec());
            return Err(TextualInversionError::NotLoaded { token, loaded }.into());
        };
        // Its further vectors were added right after it.
        let further = loaded[position + 1..].iter().zip(1..);
        let further = further.take_while(|(name, number)| **name == format!("{token}_{number}"));
        names.push(token.to_string());
        names.extend(further.map(|(name, _)| name.clone()));
    }
    if tokens.is_empty() {
        names = loaded.to_vec();
    }
    let mut shortened = tokenizer.clone();
    let ids = shortened.remove_tokens(&names)?;
    let failed = |source: candle_diffusers_models::Error| Error::Component {
        component: "text_encoder".to_string(),
        source: source.into(),
    };
    text_encoder.remove_token_embeddings(&ids).map_err(failed)?;
    *tokenizer = shortened;
    Ok(())
}

/// The tokens of an embedding with `count` vectors.
fn token_names(token: &str, count: usize) -> Vec<String> {
    let further = (1..count).map(|number| format!("{token}_{number}"));
    std::iter::once(token.to_string()).chain(further).collect()
}

fn tensor_error(embedding: &TextualInversion, vectors: &TokenVectors, source: candle_core::Error) -> Error {
    Error::Tensor {
        file: embedding.file.clone(),
        tensor: vectors.tensor.clone(),
        dtype: vectors.vectors.dtype(),
        source: Box::new(source),
    }
}

fn whose(width: usize) -> &'static str {
    looks_like(width).unwrap_or("a model of its own")
}

fn loaded_text(loaded: &[String]) -> String {
    match loaded {
        [] => "none is loaded".to_string(),
        tokens => format!("loaded are {}", tokens.join(", ")),
    }
}
