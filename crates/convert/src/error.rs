use std::io;

use safetensors::Dtype;

use crate::{Heads, PickleError};

/// What can be wrong with a checkpoint file. Every message begins with the file's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be opened, mapped or read.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// The name is that of a folder or of something else that is no file.
    #[error("{file} is not a file")]
    NotAFile {
        /// The path.
        file: String,
    },
    /// The file has no bytes.
    #[error("{file} is empty: not a safetensors file; download or copy it again")]
    Empty {
        /// The file.
        file: String,
    },
    /// The file is shorter than the eight bytes that say how long the header is.
    #[error(
        "{file} has {size} bytes: a safetensors file begins with 8 bytes that say how long its header is; \
         download or copy it again"
    )]
    TooShort {
        /// The file.
        file: String,
        /// Its size in bytes.
        size: usize,
    },
    /// The header's length is more than any checkpoint has: the file is something else.
    #[error(
        "{file} is not a safetensors file: its first 8 bytes would make the header {header_size} bytes long, at most \
         {limit} are read"
    )]
    HeaderTooLarge {
        /// The file.
        file: String,
        /// The length that the file's first eight bytes say.
        header_size: u64,
        /// [`MAX_HEADER_BYTES`](crate::MAX_HEADER_BYTES).
        limit: u64,
    },
    /// The header goes on past the end of the file.
    #[error(
        "{file}: the header should be {header_size} bytes long, but only {available} follow its length; the file is cut \
         short or not a safetensors file"
    )]
    HeaderPastEnd {
        /// The file.
        file: String,
        /// The length that the file's first eight bytes say.
        header_size: u64,
        /// The bytes there are.
        available: usize,
    },
    /// The header is no JSON object of tensors.
    #[error("{file}: the header is not that of a safetensors file: {message}")]
    Header {
        /// The file.
        file: String,
        /// What the JSON reader said.
        message: String,
    },
    /// Two entries of the header have the same name.
    #[error("{file}: the header lists tensor {tensor} twice")]
    Duplicate {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// An element type that the safetensors format does not have.
    #[error("{file}: tensor {tensor} has the unknown dtype {dtype}")]
    UnknownDtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What the file calls it.
        dtype: String,
    },
    /// A shape whose size in bytes is beyond counting.
    #[error("{file}: tensor {tensor} has the impossible shape {shape:?} ({dtype})")]
    ShapeOverflow {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Its element type.
        dtype: Dtype,
    },
    /// Shape and element type ask for another number of bytes than the offsets give.
    #[error(
        "{file}: tensor {tensor} of shape {shape:?} ({dtype}) needs {expected} bytes, but its offsets {start}..{end} give \
         {found}"
    )]
    SizeMismatch {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Its element type.
        dtype: Dtype,
        /// Bytes that shape and element type need.
        expected: u64,
        /// Bytes between the offsets.
        found: u64,
        /// First byte, counted from the end of the header.
        start: u64,
        /// Byte after the last, counted from the end of the header.
        end: u64,
    },
    /// The offsets of a tensor end before they start.
    #[error("{file}: tensor {tensor} has the offsets {start}..{end}, which end before they start")]
    OffsetsReversed {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// First byte.
        start: u64,
        /// Byte after the last.
        end: u64,
    },
    /// A tensor starts before the one in front of it has ended, or leaves unused bytes between them.
    #[error(
        "{file}: tensor {tensor} starts at byte {start} of the data, but the tensors before it end at {expected}: the \
         offsets {how}"
    )]
    OffsetsNotContiguous {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Where it starts.
        start: u64,
        /// Where it should start.
        expected: u64,
        /// `overlap` or `leave a gap`.
        how: &'static str,
    },
    /// The header promises more bytes than the file has.
    #[error(
        "{file} is cut short: its tensors need {expected} bytes after the header, but {found} are there (tensor {tensor} \
         is the first that is not whole); download or copy it again"
    )]
    Truncated {
        /// The file.
        file: String,
        /// Bytes that the header promises.
        expected: u64,
        /// Bytes after the header.
        found: u64,
        /// The first tensor that ends past the end.
        tensor: String,
    },
    /// The file goes on after its last tensor.
    #[error(
        "{file}: {extra} bytes follow the last tensor, which ends at byte {end} of the data; the file is damaged"
    )]
    TrailingBytes {
        /// The file.
        file: String,
        /// Where the last tensor ends, counted from the end of the header.
        end: u64,
        /// Bytes after it.
        extra: u64,
    },
    /// An index of shards that is no JSON of the known form.
    #[error("{file} is not an index of shards: {message}")]
    Index {
        /// The index file.
        file: String,
        /// What is wrong.
        message: String,
    },
    /// An index names a shard that is not a plain file name, so that it could lie outside the index's folder.
    #[error(
        "{file}: tensor {tensor} is said to be in {shard:?}; a shard must be a plain file name in the folder of the index"
    )]
    ShardOutsideFolder {
        /// The index file.
        file: String,
        /// A tensor that the index puts there.
        tensor: String,
        /// The name.
        shard: String,
    },
    /// A shard that the index names could not be read.
    #[error("{file} names the shard {shard}, which cannot be read: {source}")]
    Shard {
        /// The index file.
        file: String,
        /// The shard.
        shard: String,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// The index puts a tensor in a shard that does not have it.
    #[error("{file}: tensor {tensor} should be in {shard}, which has no tensor of that name")]
    NotInShard {
        /// The index file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// Two shards have a tensor of the same name and the index does not say which one counts.
    #[error("tensor {tensor} is in both {first} and {second}")]
    InTwoFiles {
        /// The tensor.
        tensor: String,
        /// One file.
        first: String,
        /// The other.
        second: String,
    },
    /// A pickled checkpoint that cannot be read.
    #[error("{file}: {problem}")]
    Pickle {
        /// The file.
        file: String,
        /// What is wrong.
        problem: Box<PickleError>,
    },
    /// An embedding file that cannot be used.
    #[error(transparent)]
    Embedding(Box<crate::EmbeddingError>),
    /// The bytes of a tensor that a source lists cannot be had.
    #[error("{file}: the bytes of tensor {tensor} cannot be read; the file has changed or is damaged")]
    Unreadable {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// A `config.json` whose content is not that of a model that is known.
    #[error("{file}: {message}")]
    Config {
        /// The file.
        file: String,
        /// The field, what it has and what was expected.
        message: String,
    },
    /// A model that diffusers' config has no fields for.
    #[error(
        "{file}: the {component} is built in a way that diffusers' config.json cannot say; it cannot be converted"
    )]
    NoConfig {
        /// The file.
        file: String,
        /// The model.
        component: &'static str,
    },
    /// A model that claims more layers than any has.
    #[error(
        "{file}: the {component} would have several thousand layers, which no model has; the file is damaged"
    )]
    TooManyLayers {
        /// The file.
        file: String,
        /// The model.
        component: &'static str,
    },
    /// Tensors of a model are not there.
    #[error("{file}: the {component} is not whole: {count} of its {total} tensors are missing, the first: {}", names.join(", "))]
    MissingTensors {
        /// The file.
        file: String,
        /// The model.
        component: &'static str,
        /// How many are missing.
        count: usize,
        /// How many there should be.
        total: usize,
        /// The first of the missing.
        names: Vec<String>,
    },
    /// A whole model of a pipeline is not there.
    #[error(
        "{file}: a checkpoint of {family} without {component}: all of its tensors are missing, {count} in the published models, \
         the first: {}; only one model alone, or all of a pipeline's, can be converted",
        names.join(", ")
    )]
    MissingComponent {
        /// The file.
        file: String,
        /// The family.
        family: &'static str,
        /// The component's folder in diffusers' layout.
        component: &'static str,
        /// How many tensors it has in the published models of the family.
        count: usize,
        /// How the first of them would be called.
        names: Vec<String>,
    },
    /// A tensor has another shape than the rest of its model asks for.
    #[error(
        "{file}: tensor {tensor} has the shape {found:?}, expected {expected:?} beside the others of its model"
    )]
    WrongShape {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that fits.
        expected: Vec<usize>,
    },
    /// Tensors that become one have different element types.
    #[error("{file}: tensor {tensor} is {found}, but those that it is joined with are {expected}")]
    MixedDtypes {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its element type.
        found: Dtype,
        /// That of the others.
        expected: Dtype,
    },
    /// Parts of one checkpoint are of different families.
    #[error("{file} mixes models that do not fit together: {first}, but {second}")]
    MixedFamilies {
        /// The file.
        file: String,
        /// What one part is.
        first: String,
        /// What another is.
        second: String,
    },
    /// A kind of file that is known and not converted.
    #[error("{file} is {what}, which is not converted")]
    NotConverted {
        /// The file.
        file: String,
        /// What it is.
        what: &'static str,
    },
    /// Nothing in the file is known.
    #[error("{file} is not a checkpoint that is known: none of its {count} tensors has a name that a model has, the first: {}", names.join(", "))]
    NotACheckpoint {
        /// The file.
        file: String,
        /// How many tensors there are.
        count: usize,
        /// The first of them.
        names: Vec<String>,
    },
    /// Tensors that stand among those of a model and are none of its.
    #[error("{file}: {count} tensors have no place in {title}, the first: {}; allow unknown tensors to leave them out", names.join(", "))]
    UnknownTensors {
        /// The file.
        file: String,
        /// What it is.
        title: String,
        /// How many there are.
        count: usize,
        /// The first of them.
        names: Vec<String>,
    },
    /// A folder that is not in diffusers' layout, or of a pipeline that is not known.
    #[error("{folder}: {message}")]
    Folder {
        /// The folder.
        folder: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// The destination is there already, or cannot be used.
    #[error("{destination}: {message}")]
    Destination {
        /// The destination.
        destination: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// The destination could not be written; nothing of it is left.
    #[error("{destination} could not be written, and nothing of it is left: {source}")]
    Write {
        /// The destination.
        destination: String,
        /// What the system said.
        source: io::Error,
    },
    /// A tensor whose element type cannot be converted.
    #[error(
        "{file}: tensor {tensor} is {dtype}, which cannot be converted to {wanted}; keep the element types instead"
    )]
    NotConvertible {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: Dtype,
        /// What was asked for.
        wanted: Dtype,
    },
    /// Attention heads that were asked for do not fit a model's channels.
    #[error("{file}: a level of {channels} channels cannot be split into {}", asked(heads))]
    Heads {
        /// The file or folder.
        file: String,
        /// The channels of the first level that they do not fit.
        channels: usize,
        /// What was asked for.
        heads: Heads,
    },
    /// A LoRA file that cannot be read or written.
    #[error(transparent)]
    Lora(Box<crate::LoraError>),
}

impl From<crate::LoraError> for Error {
    fn from(error: crate::LoraError) -> Self {
        Self::Lora(Box::new(error))
    }
}

impl Error {
    pub(crate) fn not_readable(file: &str, tensor: &str) -> Self {
        Self::Unreadable { file: file.to_string(), tensor: tensor.to_string() }
    }
}

/// A `Result` whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn asked(heads: &Heads) -> String {
    match heads {
        Heads::Count(count) => format!("{count} attention heads"),
        Heads::Width(width) => format!("attention heads of width {width}"),
    }
}
