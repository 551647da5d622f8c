//! Textual inversion embeddings: vectors that stand for a token of the prompt (Gal et al., "An Image is Worth One Word", 2022), in
//! whichever of the layouts they are shared.

mod error;
mod file;
mod layout;
mod write;

pub use error::EmbeddingError;
pub use file::{
    Embedding, EmbeddingFile, MAX_EMBEDDING_TOKEN_BYTES, MAX_EMBEDDING_VECTORS, TokenOrigin, looks_like,
};
pub use layout::EmbeddingLayout;
pub use write::EmbeddingFormat;

pub(crate) use write::{FILE_IN_FOLDER, convert_embedding};
