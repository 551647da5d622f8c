#![doc = include_str!("../README.md")]

mod checkpoint;
mod error;
mod header;
pub mod pickle;
mod shard_index;
mod tensor_file;

pub use checkpoint::Checkpoint;
pub use error::{Error, Result};
pub use header::{MAX_HEADER_BYTES, TensorInfo};
pub use pickle::{PickleError, PickledFile};
/// The element types a safetensors file can hold.
pub use safetensors::Dtype;
pub use shard_index::ShardIndex;
pub use tensor_file::TensorFile;
