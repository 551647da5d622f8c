use std::io;

use candle_core::DType;
use candle_diffusers_convert as convert;

use crate::lora::AdapterError;

/// What can go wrong between a name and a model on a device. Every message names the file, tensor or field.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A checkpoint file is damaged or missing.
    #[error(transparent)]
    Checkpoint(#[from] convert::Error),
    /// A file could not be read.
    #[error("{file}: {source}")]
    Io {
        /// The file or folder.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// The folder that should hold the model is not there.
    #[error("{folder}: there is no such file or folder")]
    MissingFolder {
        /// The path as it was given.
        folder: String,
    },
    /// The path is a single file.
    #[error(
        "{path} is a single file, not a folder in diffusers' layout; open it as a single file, or `diffuse convert {path} FOLDER` makes a \
         folder of a checkpoint"
    )]
    SingleFile {
        /// The path.
        path: String,
    },
    /// The single file is not a checkpoint of a whole pipeline.
    #[error("{file} is {what}, not a whole model; {advice}")]
    NotAModel {
        /// The file.
        file: String,
        /// What it is instead.
        what: String,
        /// What to do.
        advice: String,
    },
    /// A file that every model of this kind has is not there.
    #[error("{repository} has no {path}")]
    MissingFile {
        /// The folder or hub id.
        repository: String,
        /// The file, relative to it.
        path: String,
    },
    /// The folder is not that of a pipeline.
    #[error("{repository} has no model_index.json, so it is not a model in diffusers' layout; {found}")]
    MissingModelIndex {
        /// The folder or hub id.
        repository: String,
        /// What is there instead and what to do.
        found: String,
    },
    /// A JSON file that is none, or not of the expected form.
    #[error("{file}: {message}")]
    Json {
        /// The file.
        file: String,
        /// What is wrong, with the place.
        message: String,
    },
    /// A pipeline that this library does not have.
    #[error("{file}: unknown _class_name {class_name}; known are {}", .known.join(", "))]
    UnknownPipeline {
        /// The model_index.json.
        file: String,
        /// Its `_class_name`.
        class_name: String,
        /// The pipelines there are.
        known: &'static [&'static str],
    },
    /// A component of a class that this library does not have.
    #[error("{file}: {component} is a {library}.{class_name}, which is not supported; known are {}", .known.join(", "))]
    UnknownComponentClass {
        /// The model_index.json.
        file: String,
        /// The component, for instance `unet`.
        component: String,
        /// Its library, for instance `diffusers`.
        library: String,
        /// Its class.
        class_name: String,
        /// The classes that it may have.
        known: &'static [&'static str],
    },
    /// A component that is needed and not in model_index.json, or null there.
    #[error("{file} has no component {component}")]
    MissingComponent {
        /// The model_index.json.
        file: String,
        /// The component.
        component: String,
    },
    /// No weight file that can be read; the message says what is there and what to do.
    #[error("{folder} has no {expected}; {advice}")]
    MissingWeights {
        /// The component's folder.
        folder: String,
        /// The file that was looked for.
        expected: String,
        /// What is there instead and what to do.
        advice: String,
    },
    /// No component has weights of the variant.
    #[error("{repository} has no weights of the variant {variant}; {advice}")]
    MissingVariant {
        /// The folder or hub id.
        repository: String,
        /// The variant that was asked for.
        variant: String,
        /// What to do.
        advice: String,
    },
    /// A variant that could not be part of a file name.
    #[error("the variant {variant:?} is not a word of letters, digits, - and _ (fp16 is the usual one)")]
    BadVariant {
        /// The variant.
        variant: String,
    },
    /// A tensor that the model needs and the file has not.
    #[error("{file} has no tensor {tensor}{}; {}", shape_text(.expected), nearest_text(.nearest))]
    MissingTensor {
        /// The checkpoint.
        file: String,
        /// The tensor.
        tensor: String,
        /// The shape that the model needs, where known.
        expected: Option<Vec<usize>>,
        /// Names in the file that are most like it.
        nearest: Vec<String>,
    },
    /// A tensor of another shape than the config says.
    #[error(
        "{file}: tensor {tensor} has the shape {found:?}, but the config asks for {expected:?}; weights and config.json do \
         not belong together"
    )]
    WrongShape {
        /// The checkpoint.
        file: String,
        /// The tensor, as the file calls it.
        tensor: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// The shape that the model needs.
        expected: Vec<usize>,
    },
    /// Tensors that no part of the model has asked for.
    #[error(
        "{file} has tensors that the model does not use ({count}): {}{}; weights and config.json do not belong together",
        .names.join(", "), if .count > &.names.len() { ", ..." } else { "" }
    )]
    ExtraTensors {
        /// The checkpoint.
        file: String,
        /// How many.
        count: usize,
        /// The first of them, sorted.
        names: Vec<String>,
    },
    /// An element type that cannot be computed with.
    #[error(
        "{file}: tensor {tensor} has the dtype {dtype}, which cannot be loaded; convert it to F32, F16 or BF16"
    )]
    UnsupportedDtype {
        /// The checkpoint.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: convert::Dtype,
    },
    /// A tensor could not be made on the device.
    #[error("{file}: tensor {tensor} could not be loaded as {dtype:?}: {source}")]
    Tensor {
        /// The checkpoint.
        file: String,
        /// The tensor.
        tensor: String,
        /// The element type asked for.
        dtype: DType,
        /// What the tensor library said.
        source: Box<candle_core::Error>,
    },
    /// A LoRA that does not fit the models, or a name or weight of one that cannot be used.
    #[error(transparent)]
    Adapter(Box<AdapterError>),
    /// A name that is no model on the hub can have.
    #[error(
        "{id:?} is neither a folder nor the id of a model on the hub (owner/name, or owner/name@revision): {reason}"
    )]
    BadHubId {
        /// The name as it was given.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The hub does not have the model, or does not give it.
    #[error("{id}: {message}")]
    Hub {
        /// The hub id with its revision.
        id: String,
        /// What the hub said and what to do.
        message: String,
    },
    /// The hub could not be asked and the cache does not have everything.
    #[error("{id} cannot be loaded from the cache {cache}: {missing}; {reason}")]
    NotInCache {
        /// The hub id with its revision.
        id: String,
        /// The folder of the cache.
        cache: String,
        /// What is missing there.
        missing: String,
        /// Why the hub was not asked.
        reason: String,
    },
    /// A tokenizer's files do not make a tokenizer, or a text could not be turned into ids.
    #[error("{file}: {message}")]
    Tokenizer {
        /// The file.
        file: String,
        /// What is wrong.
        message: String,
    },
    /// A textual inversion embedding does not fit.
    #[error(transparent)]
    TextualInversion(Box<crate::TextualInversionError>),
    /// A component's config or weights did not make a model.
    #[error("{component}: {source}")]
    Component {
        /// The component's folder.
        component: String,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<AdapterError> for Error {
    fn from(error: AdapterError) -> Self {
        // Boxed, as it is much larger than the others.
        Self::Adapter(Box::new(error))
    }
}

impl From<crate::TextualInversionError> for Error {
    fn from(error: crate::TextualInversionError) -> Self {
        Self::TextualInversion(Box::new(error))
    }
}

/// A `Result` whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn shape_text(expected: &Option<Vec<usize>>) -> String {
    expected.as_ref().map(|shape| format!(" (of shape {shape:?})")).unwrap_or_default()
}

fn nearest_text(nearest: &[String]) -> String {
    match nearest {
        [] => "it has no tensor of a similar name".to_string(),
        names => format!("most like it are {}", names.join(", ")),
    }
}
