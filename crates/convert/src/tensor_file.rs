use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::header::Header;
use crate::{Error, Result, TensorInfo};

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

enum Contents {
    Mapped(Mmap),
    Memory(Cow<'static, [u8]>),
}

impl TensorFile {
    /// Maps the safetensors file at `path` and reads its header.
    ///
    /// The file must not be changed or cut short while this value lives; replacing it by renaming another over it is fine.
    ///
    /// # Errors
    /// When the file cannot be opened, or its header is damaged in any of the ways that [`Error`] lists.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let source = path.display().to_string();
        let io = |error| Error::Io { file: source.clone(), source: error };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(Error::NotAFile { file: source });
        }
        if metadata.len() == 0 {
            // An empty file cannot be mapped on every system.
            return Err(Error::Empty { file: source });
        }
        // SAFETY: a map's bytes must not change under the references handed out. The map is private and read-only, so nothing in
        // this process writes to it; what another process might do to the file is excluded by the contract in the docs above, as for
        // every program that maps its weights.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Self::parse(source, Some(path.to_path_buf()), Contents::Mapped(map))
    }

    /// Reads a safetensors file that is in memory already; `source` is its name in errors.
    ///
    /// # Errors
    /// When the header is damaged in any of the ways that [`Error`] lists.
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
        if let (Contents::Mapped(map), Some(info)) = (&self.contents, self.get(name)) {
            release_pages(map, info);
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

impl Contents {
    fn as_slice(&self) -> &[u8] {
        match self {
            Contents::Mapped(map) => map,
            Contents::Memory(bytes) => bytes,
        }
    }
}

#[cfg(target_os = "linux")]
fn release_pages(map: &Mmap, info: &TensorInfo) {
    use memmap2::UncheckedAdvice;
    // SAFETY: MADV_DONTNEED throws away what was written to private pages; this map is read-only, so there is nothing of
    // that kind, and a page that another thread still reads comes back from the file with the same bytes.
    let released =
        unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, info.range.start, info.range.len()) };
    // It is advice: where the system does not take it, only memory use is higher.
    released.ok();
}

#[cfg(not(target_os = "linux"))]
fn release_pages(_: &Mmap, _: &TensorInfo) {}
