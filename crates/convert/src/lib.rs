#![doc = include_str!("../README.md")]

mod checkpoint;
mod component_source;
mod config;
mod contents;
mod convert;
mod detect;
mod ema;
mod embedding;
mod error;
mod family;
mod folder_source;
mod header;
mod identify;
mod inventory;
mod layout;
mod left_out;
mod lora;
mod model;
mod overrides;
pub mod pickle;
mod pipeline_files;
mod plan;
mod published;
mod read_folder;
mod read_original;
mod recorded;
mod scheduler;
mod shard_index;
mod source;
mod tensor_file;
mod tokenizer;
mod write;

pub use checkpoint::Checkpoint;
pub use component_source::ComponentSource;
pub use convert::{ConvertOptions, Report, convert, open_file};
pub use embedding::{
    Embedding, EmbeddingError, EmbeddingFile, EmbeddingFormat, EmbeddingLayout, MAX_EMBEDDING_TOKEN_BYTES,
    MAX_EMBEDDING_VECTORS, TokenOrigin, looks_like,
};
pub use error::{Error, Result};
pub use family::{Family, Heads, ModelKind, Place, PredictionType, Task};
pub use folder_source::FolderSource;
pub use header::{MAX_HEADER_BYTES, TensorInfo};
pub use inventory::{Entry, Inventory};
pub use layout::{ClipText, ControlNet, MidBlock, Named, Relation, Row, Structure, TextLayout, UNet, Vae};
pub use left_out::Unplaced;
pub use lora::{
    AdaptedLayer, ComputedLora, ExtractOptions, LokrFactor, LoraComponent, LoraError, LoraFile, LoraFormat,
    LoraLayout, LoraWeights, TensorRef, WeightedLora, extract_lora, merge_loras, resize_lora,
};
pub use model::{Component, Kind, Layout, Model, Placed};
pub use overrides::SchedulerChoice;
pub use pickle::{PickleError, PickledFile};
pub use plan::{Plan, PlannedComponent, PlannedTensor, Values};
pub use read_original::ReadOptions;
/// The element types a safetensors file can hold.
pub use safetensors::Dtype;
pub use shard_index::ShardIndex;
pub use source::Source;
pub use tensor_file::TensorFile;
pub use write::{Progress, WriteOptions, has_non_finite};
