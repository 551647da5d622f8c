use safetensors::Dtype;

/// What can be wrong with an embedding file. Every message begins with the file's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddingError {
    /// The file holds something else.
    #[error("{file} is not a textual inversion embedding: {found}")]
    NotOne {
        /// The file.
        file: String,
        /// What it holds, or looks like.
        found: String,
    },
    /// A tensor that is no list of vectors.
    #[error(
        "{file}: tensor {tensor} has the shape {shape:?}, expected (vectors, width) or (width,), with at least one vector"
    )]
    Shape {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// More vectors than any prompt has room for.
    #[error(
        "{file}: tensor {tensor} has {found} vectors, at most {limit} are read; a prompt has room for 75"
    )]
    TooManyVectors {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// How many it has.
        found: usize,
        /// [`MAX_EMBEDDING_VECTORS`](super::MAX_EMBEDDING_VECTORS).
        limit: usize,
    },
    /// Vectors of something else than floating-point numbers.
    #[error("{file}: tensor {tensor} is {dtype}, but vectors are floating-point numbers")]
    NotFloat {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: Dtype,
    },
    /// A tensor that stands beside the vectors and is not known.
    #[error(
        "{file}: tensor {tensor} stands beside {known}, but only vectors for CLIP's text encoders are understood"
    )]
    UnknownTensor {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Those that are known.
        known: &'static str,
    },
    /// A text that cannot stand for the vectors in a prompt.
    #[error("{file}: the token {token:?} {problem}; give the embedding another token or file name")]
    Token {
        /// The file.
        file: String,
        /// The token, or its beginning.
        token: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A layout for embeddings was asked for, and the source is none.
    #[error(
        "{file} is not a textual inversion embedding; leave out the layout for those (--embedding-format)"
    )]
    NotForEmbedding {
        /// The source.
        file: String,
    },
    /// An embedding that the format to be written has no place for.
    #[error("{file}: {problem}")]
    Format {
        /// The file.
        file: String,
        /// What does not fit, and what to do.
        problem: String,
    },
}
