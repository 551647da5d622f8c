//! Textual inversion (<https://arxiv.org/abs/2208.01618>; diffusers' `examples/textual_inversion`): a new token learns what pictures have in common, and
//! nothing else of the models changes. The loss is that of [`Denoising`](super::Denoising).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use candle_diffusers_loaders::{ClipTokenizer, TextualInversion, TokenVectors};
use candle_diffusers_models::ClipTextModel;
use candle_diffusers_pipelines::{StableDiffusionPipeline, TextEncoders};
use candle_diffusers_schedulers::{NoiseSource, TorchGenerator};

use crate::checkpoint::save_tensors;
use crate::error::{Error, Result};
use crate::parameters::Parameter;

/// What diffusers looks for.
const FILE: &str = "learned_embeds.safetensors";

/// Which token is learned; no default has a name for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextualInversionOptions {
    /// What it is called in prompts: nothing that the tokenizer knows, without `/`, as files are called after it; in lower case where it has several vectors.
    pub placeholder_token: String,
    /// What it begins as: a word of one token; `<rand-0.017>`, numbers at random of this standard deviation; or `<zero>`. The last two as cloneofsimo's `lora_pti`
    /// calls them.
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
    /// `train_text_encoder`, for captions such as [`LearnableProperty::captions`](super::LearnableProperty::captions) gives. Random numbers come from
    /// `generator`, where it begins with such: for one text encoder after the other.
    ///
    /// # Errors
    /// When the placeholder is in a tokenizer's vocabulary or cannot be the name of a file, the initializer is neither one token nor one of the others, or `num_vectors` is 0 or more than a text encoder reads. Then the models are what they were.
    pub fn attach(
        models: &mut StableDiffusionPipeline,
        options: &TextualInversionOptions,
        generator: &mut TorchGenerator,
    ) -> Result<Self> {
        let TextualInversionOptions { placeholder_token, num_vectors, .. } = options;
        check_file_name(placeholder_token)?;
        if *num_vectors == 0 {
            let (found, expected) = ("0".to_string(), "1 or more".to_string());
            return Err(Error::Field { field: "num_vectors", found, expected });
        }
        let device = &models.device;
        let mut beginning = |tokenizer: &ClipTokenizer, text_encoder: &ClipTextModel| {
            beginning(tokenizer, text_encoder, options, device, generator)
        };
        let (first, second) = match &models.text_encoders {
            TextEncoders::Clip(clip) => (Some(beginning(&clip.tokenizer, &clip.text_encoder)?), None),
            TextEncoders::Xl(encoders) => {
                let first = encoders.first.as_ref();
                let first = first.map(|clip| beginning(&clip.tokenizer, &clip.text_encoder)).transpose()?;
                let second = &encoders.second;
                (first, Some(beginning(&second.tokenizer, second.text_encoder.text_model())?))
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

    /// [`attach`](Self::attach) for several tokens.
    ///
    /// # Errors
    /// Those of [`attach`](Self::attach). Then none is added.
    pub fn attach_all(
        models: &mut StableDiffusionPipeline,
        tokens: &[TextualInversionOptions],
        generator: &mut TorchGenerator,
    ) -> Result<Vec<Self>> {
        let mut attached = Vec::new();
        for token in tokens {
            match Self::attach(models, token, generator) {
                Ok(token) => attached.push(token),
                Err(error) => {
                    Self::detach_all(models, &attached)?;
                    return Err(error);
                }
            }
        }
        Ok(attached)
    }

    /// Takes tokens away again.
    pub(super) fn detach_all(models: &mut StableDiffusionPipeline, tokens: &[Self]) -> Result<()> {
        let names: Vec<&str> = tokens.iter().map(Self::token).collect();
        // None would be all that there are.
        if !names.is_empty() {
            models.unload_textual_inversion(&names)?;
        }
        Ok(())
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

    /// A file for this token alone in `folder`, called as the token: whoever loads it then need not say what that is.
    pub fn file_in(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.safetensors", self.token))
    }

    /// Writes the vectors, whole or not at all: `learned_embeds.safetensors` by diffusers' name for it. The tensor is called as the token, for Stable Diffusion XL
    /// `clip_l` and `clip_g`: whoever loads such a file says what the token is.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        save_vectors(path, &self.tensors()?)
    }

    /// Writes the vectors of all tokens into `folder`, and gives the files: `learned_embeds.safetensors`, where each tensor is called as its token. As there is room
    /// for no more than one of Stable Diffusion XL's, several of those get a file each that is called as the token. Nothing is written where there is none.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save_all(tokens: &[Self], folder: &Path) -> Result<Vec<PathBuf>> {
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        if tokens.len() > 1 && tokens.iter().any(|token| token.second.is_some()) {
            let save = |token: &Self| {
                let path = token.file_in(folder);
                token.save(&path)?;
                Ok(path)
            };
            return tokens.iter().map(save).collect();
        }
        let mut tensors = BTreeMap::new();
        for token in tokens {
            tensors.extend(token.tensors()?);
        }
        let path = folder.join(FILE);
        save_vectors(&path, &tensors)?;
        Ok(vec![path])
    }

    /// The vectors on the CPU, by their names in a file.
    fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
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
        Ok(tensors)
    }
}

/// Refuses a token that would be a path where a file is called after it.
fn check_file_name(token: &str) -> Result<()> {
    if !token.contains(['/', '\\', '\0']) {
        return Ok(());
    }
    let found = format!("{token:?}, which cannot be the name of a file");
    let expected = "one without / and \\, such as \"<my-cat>\"".to_string();
    Err(Error::Field { field: "placeholder_token", found, expected })
}

fn save_vectors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    save_tensors(path, tensors, [("format".to_string(), "pt".to_string())])
}

/// What begins a token as zeros.
const ZERO: &str = "<zero>";
/// What begins one at random, before the standard deviation.
const RANDOM: &str = "<rand";

/// The vectors that the token begins with, `(num_vectors, width)` in float32: the initializer's, once for each; each its own where they are random.
fn beginning(
    tokenizer: &ClipTokenizer,
    text_encoder: &ClipTextModel,
    options: &TextualInversionOptions,
    device: &Device,
    generator: &mut TorchGenerator,
) -> Result<Var> {
    let TextualInversionOptions { placeholder_token, initializer_token, num_vectors } = options;
    // A whole word is in a CLIP vocabulary with a mark at its end.
    if tokenizer.token_to_id(&format!("{placeholder_token}</w>")).is_some() {
        let found = format!("{placeholder_token:?}, which is a word of the tokenizer already");
        let expected = "a new one, such as \"<my-cat>\"".to_string();
        return Err(Error::Field { field: "placeholder_token", found, expected });
    }
    // A prompt has a first and a last token beside.
    let most = text_encoder.max_position_embeddings().saturating_sub(2);
    if *num_vectors > most {
        let (found, expected) =
            (num_vectors.to_string(), format!("at most {most}, which is as many as a prompt can have"));
        return Err(Error::Field { field: "num_vectors", found, expected });
    }
    let shape = [*num_vectors, text_encoder.hidden_size()];
    let rows = match (initializer_token.as_str(), initializer_token.strip_prefix(RANDOM)) {
        (ZERO, _) => Tensor::zeros(&shape, DType::F32, device)?,
        (_, Some(rest)) => (generator.randn(&shape, DType::F32, device)? * deviation(rest)?)?,
        (word, None) => {
            let id = single_token(tokenizer, word)?;
            text_encoder.token_embeddings(&[id])?.to_dtype(DType::F32)?.repeat((*num_vectors, 1))?
        }
    };
    Ok(Var::from_tensor(&rows)?)
}

/// The standard deviation, of what follows `<rand`.
fn deviation(rest: &str) -> Result<f64> {
    let number = rest.strip_prefix('-').and_then(|rest| rest.strip_suffix('>'));
    let deviation = number.and_then(|number| number.parse::<f64>().ok());
    deviation.filter(|deviation| deviation.is_finite() && *deviation >= 0.0).ok_or_else(|| {
        let found = format!("\"{RANDOM}{rest}\"");
        let expected = "<rand-X> with a standard deviation X, such as <rand-0.017>".to_string();
        Error::Field { field: "initializer_token", found, expected }
    })
}

/// The id of a word that is a single token.
fn single_token(tokenizer: &ClipTokenizer, word: &str) -> Result<u32> {
    let ids = tokenizer.encode_pieces(word)?;
    if let [id] = ids[..] {
        return Ok(id);
    }
    let pieces = tokenizer.tokenize(word)?.join(", ");
    let found = match ids.len() {
        0 => format!("{word:?}, which is no token"),
        count => format!("{word:?}, which is {count} tokens ({pieces})"),
    };
    let expected = "a word that is a single one".to_string();
    Err(Error::Field { field: "initializer_token", found, expected })
}
