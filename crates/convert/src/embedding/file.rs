use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::error::EmbeddingError;
use super::layout::{
    self, CLIP_G, CLIP_L, EMB_PARAMS, EmbeddingLayout, NAMELESS, STRING_TO_PARAM, vectors_by_string,
};
use crate::family::Family;
use crate::inventory::{Entry, Inventory};
use crate::left_out::Unplaced;
use crate::lora::TensorRef;
use crate::write::is_float;
use crate::{Error, Result, Source, open_file};

/// The most vectors that one embedding may have: a prompt has room for 75.
pub const MAX_EMBEDDING_VECTORS: usize = 1024;

/// The longest token, in bytes.
pub const MAX_EMBEDDING_TOKEN_BYTES: usize = 1024;

/// The widths of CLIP's text encoders, and whose they are.
pub(super) const WIDTHS: [(usize, &str); 3] = [
    (768, "Stable Diffusion 1"),
    (1024, "Stable Diffusion 2"),
    (1280, "the second text encoder of Stable Diffusion XL"),
];

/// The names that diffusers gives the only file of a folder, in the order in which it looks for them.
const FILES_IN_FOLDER: [&str; 2] = ["learned_embeds.safetensors", "learned_embeds.bin"];

/// Under which key the web UIs have the token.
pub(super) const NAME: &str = "name";

const TOKEN_ID: &str = "the token's id, which the tokenizer gives";
const NO_VECTORS: &str = "no vectors of an embedding";

/// A file of textual inversion embeddings: names, shapes and tokens; its vectors are [`Source::bytes`].
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingFile {
    /// The file's name, for messages.
    pub source: String,
    /// How it is laid out.
    pub layout: EmbeddingLayout,
    /// At least one, by the tensors' names.
    pub embeddings: Vec<Embedding>,
    /// The text and the numbers that it carries beside its tensors: `name`, `step`, `sd_checkpoint_name` and others.
    pub metadata: BTreeMap<String, String>,
    /// Tensors that are no vectors.
    pub left_out: Vec<Unplaced>,
}

/// What stands for one token. At least one of the tensors is there; each is `(vectors, width)` or, for one vector, `(width,)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// The token that brings the vectors into a prompt.
    pub token: String,
    /// Where the token is from.
    pub token_origin: TokenOrigin,
    /// The vectors for a pipeline's only or first text encoder.
    pub text_encoder: Option<TensorRef>,
    /// Those for Stable Diffusion XL's second.
    pub text_encoder_2: Option<TensorRef>,
}

/// Where a token is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenOrigin {
    /// The file says it.
    File,
    /// The file does not say it, and web UIs then take the file's name without its ending.
    FileName,
}

impl EmbeddingFile {
    /// The `learned_embeds.safetensors` or `learned_embeds.bin` in the folder `path`, as diffusers' training leaves it.
    pub fn in_folder(path: &Path) -> Option<PathBuf> {
        FILES_IN_FOLDER.iter().map(|name| path.join(name)).find(|file| file.is_file())
    }

    /// Opens the file at `path`, or the one [`in_folder`](Self::in_folder).
    ///
    /// # Errors
    /// As [`open_file`] and [`EmbeddingFile::read`].
    pub fn open(path: impl AsRef<Path>) -> Result<(Self, Box<dyn Source>)> {
        let path = path.as_ref();
        let file = Self::in_folder(path).unwrap_or_else(|| path.to_path_buf());
        let source = open_file(&file)?;
        Ok((Self::read(source.as_ref())?, source))
    }

    /// What `source` holds.
    ///
    /// # Errors
    /// When it is not an embedding, or its tensors are not vectors of floating-point numbers.
    pub fn read(source: &dyn Source) -> Result<Self> {
        let inventory = source.inventory();
        let reader = Reader { file: source.name(), inventory: &inventory, metadata: source.metadata() };
        Ok(reader.read()?)
    }

    /// Whether a file with these tensors is likely an embedding, by their names and shapes.
    pub fn looks_like_one(inventory: &Inventory) -> bool {
        layout::looks_like_one(inventory)
    }

    /// The models that it is for, as far as the widths of its vectors tell.
    pub fn family(&self) -> Option<Family> {
        if self.layout == EmbeddingLayout::TwoEncoders {
            return Some(Family::StableDiffusionXl);
        }
        match self.embeddings.first()?.text_encoder.as_ref()?.shape.last()? {
            768 => Some(Family::StableDiffusion1),
            1024 => Some(Family::StableDiffusion2),
            1280 => Some(Family::StableDiffusionXl),
            _ => None,
        }
    }
}

/// The text encoders whose vectors have `width`, for messages.
pub fn looks_like(width: usize) -> Option<&'static str> {
    WIDTHS.iter().find(|(known, _)| *known == width).map(|(_, whose)| *whose)
}

impl Embedding {
    /// The vectors for each text encoder that has some, with the encoder's folder in diffusers' layout.
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, &TensorRef)> {
        let first = self.text_encoder.iter().map(|tensor| ("text_encoder", tensor));
        first.chain(self.text_encoder_2.iter().map(|tensor| ("text_encoder_2", tensor)))
    }

    /// How many vectors `tensor` has, and how wide they are.
    pub fn vectors_and_width(tensor: &TensorRef) -> (usize, usize) {
        match tensor.shape[..] {
            [vectors, width] => (vectors, width),
            [width] => (1, width),
            // No embedding that was read has such a tensor.
            _ => (0, 0),
        }
    }
}

/// What a file is read from.
struct Reader<'a> {
    file: &'a str,
    inventory: &'a Inventory,
    metadata: BTreeMap<String, String>,
}

impl Reader<'_> {
    fn read(self) -> Result<EmbeddingFile, EmbeddingError> {
        let layout = EmbeddingLayout::of(self.inventory);
        let (mut embeddings, mut left_out) = (Vec::new(), Vec::new());
        match layout {
            EmbeddingLayout::StringToParam => {
                for (name, key) in vectors_by_string(self.inventory) {
                    // The key is a placeholder of training, unless it tells several apart.
                    let token = match self.metadata.get(NAME) {
                        _ if vectors_by_string(self.inventory).nth(1).is_some() => Some(key),
                        Some(name) => Some(name.as_str()),
                        None if key != "*" => Some(key),
                        None => None,
                    };
                    embeddings.push(self.embedding(token, Some(self.vectors(name)?), None)?);
                }
                left_out = self.left_out();
            }
            EmbeddingLayout::EmbParams => {
                self.only(&[EMB_PARAMS], EMB_PARAMS)?;
                let token = self.metadata.get(NAME).map(String::as_str);
                embeddings.push(self.embedding(token, Some(self.vectors(EMB_PARAMS)?), None)?);
            }
            EmbeddingLayout::TwoEncoders => {
                self.only(&[CLIP_L, CLIP_G], "clip_l and clip_g")?;
                let token = self.metadata.get(NAME).map(String::as_str);
                let [first, second] = [CLIP_L, CLIP_G]
                    .map(|name| self.inventory.get(name).map(|_| self.vectors(name)).transpose());
                embeddings.push(self.embedding(token, first?, second?)?);
            }
            EmbeddingLayout::Tensor => {
                embeddings.push(self.embedding(None, Some(self.vectors(NAMELESS)?), None)?);
            }
            EmbeddingLayout::Diffusers => {
                self.check_tokens()?;
                for name in self.inventory.names() {
                    embeddings.push(self.embedding(Some(name), Some(self.vectors(name)?), None)?);
                }
            }
        }
        Ok(EmbeddingFile {
            source: self.file.to_string(),
            layout,
            embeddings,
            metadata: self.metadata,
            left_out,
        })
    }

    /// Fails where a name is none that a token could have.
    fn check_tokens(&self) -> Result<(), EmbeddingError> {
        let names = || self.inventory.names();
        let found = if self.inventory.is_empty() {
            "it has no tensors".to_string()
        } else if names().any(|name| name.contains("lora")) {
            "it looks like a LoRA".to_string()
        } else if names().any(layout::is_of_a_model) {
            let first: Vec<&str> = names().take(3).collect();
            format!("its {} tensors are those of a model, the first: {}", names().count(), first.join(", "))
        } else {
            return Ok(());
        };
        Err(EmbeddingError::NotOne { file: self.file.to_string(), found })
    }

    /// Fails where there are other tensors than those called `known`.
    fn only(&self, known: &[&str], listed: &'static str) -> Result<(), EmbeddingError> {
        match self.inventory.names().find(|name| !known.contains(name)) {
            None => Ok(()),
            Some(other) => Err(EmbeddingError::UnknownTensor {
                file: self.file.to_string(),
                tensor: other.to_string(),
                known: listed,
            }),
        }
    }

    fn left_out(&self) -> Vec<Unplaced> {
        let others = self.inventory.names().filter(|name| !name.starts_with(STRING_TO_PARAM));
        others
            .map(|name| {
                let reason = if name.starts_with("string_to_token") { TOKEN_ID } else { NO_VECTORS };
                Unplaced { name: name.to_string(), reason }
            })
            .collect()
    }

    fn vectors(&self, name: &str) -> Result<TensorRef, EmbeddingError> {
        let (file, tensor) = (|| self.file.to_string(), || name.to_string());
        let Entry { shape, dtype, .. } =
            self.inventory.get(name).cloned().unwrap_or_else(|| Entry::new(Vec::new(), Dtype::F32));
        let vectors = match shape[..] {
            [width] if width > 0 => 1,
            [vectors, width] if vectors > 0 && width > 0 => vectors,
            _ => return Err(EmbeddingError::Shape { file: file(), tensor: tensor(), shape }),
        };
        if vectors > MAX_EMBEDDING_VECTORS {
            let (found, limit) = (vectors, MAX_EMBEDDING_VECTORS);
            return Err(EmbeddingError::TooManyVectors { file: file(), tensor: tensor(), found, limit });
        }
        if !is_float(dtype) {
            return Err(EmbeddingError::NotFloat { file: file(), tensor: tensor(), dtype });
        }
        Ok(TensorRef { name: tensor(), shape, dtype })
    }

    fn embedding(
        &self,
        token: Option<&str>,
        text_encoder: Option<TensorRef>,
        text_encoder_2: Option<TensorRef>,
    ) -> Result<Embedding, EmbeddingError> {
        let stem = Path::new(self.file).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let (token, token_origin) = match token {
            Some(token) => (token.to_string(), TokenOrigin::File),
            None => (stem.unwrap_or_default(), TokenOrigin::FileName),
        };
        check_token(self.file, &token)?;
        Ok(Embedding { token, token_origin, text_encoder, text_encoder_2 })
    }
}

/// Fails for a token that no prompt can have.
pub(super) fn check_token(file: &str, token: &str) -> Result<(), EmbeddingError> {
    let problem = if token.trim().is_empty() {
        "is empty"
    } else if token.len() > MAX_EMBEDDING_TOKEN_BYTES {
        "is too long"
    } else if token.contains(char::is_control) {
        "has control characters"
    } else {
        return Ok(());
    };
    let token = token.chars().take(40).collect();
    Err(EmbeddingError::Token { file: file.to_string(), token, problem })
}

impl From<EmbeddingError> for Error {
    fn from(error: EmbeddingError) -> Self {
        Self::Embedding(Box::new(error))
    }
}
