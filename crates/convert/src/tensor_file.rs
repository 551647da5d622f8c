use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use crate::contents::Contents;
use crate::header::Header;
use crate::{Result, TensorInfo};

/// One safetensors file: its tensors by name, and their bytes.
///
/// A file on disk is mapped, not read: opening one of several gigabytes costs the header only, and the bytes of a tensor come
/// into memory when they are looked at.
pub struct TensorFile {
    source: String,
    path: Option<PathBuf>,
    contents: Contents,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Maps the safetensors file at `path` and reads its header.
    ///
    /// The file must not be changed or cut short while this value lives; replacing it by renaming another over it is fine.
    ///
    /// # Errors
    /// When the file cannot be opened, or its header is damaged in any of the ways that [`Error`](crate::Error) lists.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(path.display().to_string(), Some(path.to_path_buf()), Contents::open(path)?)
    }

    /// Reads a safetensors file that is in memory already; `source` is its name in errors.
    ///
    /// # Errors
    /// When the header is damaged in any of the ways that [`Error`](crate::Error) lists.
    pub fn from_bytes(source: impl Into<String>, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        Self::parse(source.into(), None, Contents::Memory(bytes.into()))
    }

    /// The file's name, for messages.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Where the file is; `None` for one that is in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// All tensors, in the order in which their bytes lie in the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`, if the file has it.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).and_then(|&position| self.tensors.get(position))
    }

    /// The text that the file carries beside its tensors (`__metadata__`), for instance `format: pt`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The bytes of the tensor called `name`: row-major, little-endian, not aligned to anything.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let info = self.get(name)?;
        self.contents.as_slice().get(info.range.clone())
    }

    /// Says that the bytes of the tensor called `name` will hardly be looked at again, so that memory held for them can be used
    /// otherwise.
    ///
    /// Without this, a program that has copied all tensors of a mapped file holds them twice. Looking at them again is
    /// allowed and reads them from disk again. Does nothing for files in memory and on systems other than Linux.
    pub fn release(&self, name: &str) {
        if let Some(info) = self.get(name) {
            self.contents.release(&info.range);
        }
    }

    fn parse(source: String, path: Option<PathBuf>, contents: Contents) -> Result<Self> {
        let Header { tensors, metadata } = Header::parse(&source, contents.as_slice())?;
        let by_name =
            tensors.iter().enumerate().map(|(position, info)| (info.name.clone(), position)).collect();
        Ok(Self { source, path, contents, tensors, by_name, metadata })
    }
}

impl std::fmt::Debug for TensorFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorFile")
            .field("source", &self.source)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}
