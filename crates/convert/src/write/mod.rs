//! Writing a planned checkpoint: everything is laid out first, then bytes are streamed into a place beside the destination, which is
//! renamed when all is there.

mod copy;
mod dtype;
mod files;
mod staging;
mod workers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

pub use dtype::has_non_finite;
pub(crate) use dtype::{f8_e4m3_to_f32, f8_e5m2_to_f32, is_float};
pub(crate) use files::{Laid, WeightFile, lay_out};
pub(crate) use staging::Staging;

use crate::{Error, Result, Source};

/// How a checkpoint is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// The element type of floating-point tensors: float32, float16 or bfloat16; that of the source where `None`.
    pub dtype: Option<Dtype>,
    /// What the names of weight files in a folder carry, for instance `fp16`.
    pub variant: Option<String>,
    /// Weights with more bytes are split into several files of at most so many, with an index. Not split where `None`.
    pub max_shard_size: Option<u64>,
    /// Replace the destination where it exists. An error otherwise.
    pub overwrite: bool,
    /// Wait until everything is on the disk before the destination appears, so that it is whole or absent also when the machine loses
    /// its power. Takes as long as the disk does.
    pub sync: bool,
}

/// How far writing is, in bytes of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The bytes that are written.
    pub done: u64,
    /// All bytes of tensors.
    pub total: u64,
}

/// A file to be copied as it is.
#[derive(Debug)]
pub(crate) struct CopiedFile {
    pub(crate) from: PathBuf,
    pub(crate) to: String,
}

/// All that a destination will hold. Paths are relative to it; an only file has the path `""`.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) texts: Vec<(String, Vec<u8>)>,
    pub(crate) copies: Vec<CopiedFile>,
    pub(crate) weights: Vec<WeightFile>,
}

/// What was seen in the weights while they were written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Tensors with values that are not numbers, or infinite.
    pub(crate) not_finite: Vec<String>,
    /// Tensors of which values were too large for the new element type.
    pub(crate) overflowed: Vec<String>,
}

/// Writes `contents` to `destination`.
///
/// # Errors
/// When it exists and may not be replaced, or cannot be written; then nothing of it is left.
pub(crate) fn write(
    destination: &Path,
    options: &WriteOptions,
    contents: &Contents,
    source: &dyn Source,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Seen> {
    let is_folder = contents.weights.iter().all(|file| !file.path.is_empty());
    let staging = Staging::begin(destination, is_folder, options.overwrite)?;
    let failed = |source| Error::Write { destination: destination.display().to_string(), source };
    for (path, text) in &contents.texts {
        staging.write_text(path, text).map_err(failed)?;
    }
    for file in &contents.copies {
        staging.copy(&file.from, &file.to).map_err(failed)?;
    }
    let seen = workers::write_weights(&staging, &contents.weights, source, progress)?;
    if options.sync {
        staging.sync().map_err(failed)?;
    }
    staging.commit()?;
    if options.sync {
        staging::sync_parent(destination).map_err(failed)?;
    }
    Ok(seen)
}

/// The `__metadata__` of weight files in a folder, as the reference writes it.
pub(crate) fn plain_metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_string(), "pt".to_string())])
}
