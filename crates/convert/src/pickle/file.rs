use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{self, PickleError, shown};
use super::flatten::{Bookkeeping, Flat};
use super::machine::{self, Pickled};
use super::value::{PickledTensor, Value};
use super::zip::{self, Archive};
use super::{build, gather, legacy};
use crate::contents::Contents;
use crate::{Error, Result};

/// A checkpoint that `torch.save` wrote: its tensors by name, their bytes, and what else it holds.
///
/// Both of torch's formats are read: the zip archive of torch 1.6 and later, and the row of pickles from before. Nothing in the
/// file is run: the pickle is read as data by a machine that knows the few functions by which torch makes tensors, and refuses
/// every other by name.
///
/// A file on disk is mapped, not read: opening one of several gigabytes costs its names only, and the bytes of a tensor come into
/// memory when they are looked at.
pub struct PickledFile {
    source: String,
    path: Option<PathBuf>,
    contents: Contents,
    value: Value,
    tensors: Vec<(String, Arc<PickledTensor>)>,
    /// Positions in `tensors`, sorted by name.
    by_name: Vec<usize>,
    bookkeeping: Vec<Bookkeeping>,
    metadata: BTreeMap<String, String>,
}

impl PickledFile {
    /// Maps the checkpoint at `path` and reads its pickle.
    ///
    /// The file must not be changed or cut short while this value lives; replacing it by renaming another over it is fine.
    ///
    /// # Errors
    /// When the file cannot be opened, names anything that is not part of a checkpoint, holds more than the limits of this crate,
    /// or is damaged in any of the ways that [`PickleError`] lists.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(path.display().to_string(), Some(path.to_path_buf()), Contents::open(path)?)
    }

    /// Reads a checkpoint that is in memory already; `source` is its name in errors.
    ///
    /// # Errors
    /// As [`PickledFile::open`], save those of opening.
    pub fn from_bytes(source: impl Into<String>, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        Self::parse(source.into(), None, Contents::Memory(bytes.into()))
    }

    /// Whether `start`, the first bytes of a file (1024 are enough), are those of a file that this type reads or refuses with a
    /// better message than "not a safetensors file": an archive, or a pickle.
    pub fn looks_like_one(start: &[u8]) -> bool {
        start.starts_with(zip::SIGNATURE)
            || legacy::is_legacy(start)
            || is_tar(start)
            || (is_pickle(start) && !is_safetensors(start))
    }

    /// The file's name, for messages.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The path that it was opened by; `None` for one that was in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// All tensors with their names, in the order in which their bytes lie in the file.
    ///
    /// The names are the keys of the state dict. A state dict under a key such as `state_dict` or `model` is found; what lies
    /// beside it is in [`bookkeeping`](Self::bookkeeping). Containers in each other give names with dots, lists give numbers, and
    /// `module.` before all names is taken off.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &PickledTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), &**tensor))
    }

    /// The tensor called `name`, if the file has it.
    pub fn get(&self, name: &str) -> Option<&PickledTensor> {
        let named = |&position: &usize| self.tensors[position].0.as_str();
        let found = self.by_name.binary_search_by(|position| named(position).cmp(name)).ok()?;
        Some(&self.tensors[self.by_name[found]].1)
    }

    /// What the file holds beside the tensors that are listed: training state, numbers, texts.
    pub fn bookkeeping(&self) -> &[Bookkeeping] {
        &self.bookkeeping
    }

    /// Plain numbers and texts beside the tensors, for instance `global_step`: their names and how they are written.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Everything that the pickle holds, as it is nested there.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The bytes of the tensor called `name`: row-major, little-endian, not aligned to anything.
    ///
    /// They are borrowed from the map where they lie so in the file; otherwise they are gathered into memory of their own.
    /// [`read_at`](Self::read_at) does the same in parts.
    pub fn bytes(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.tensor_bytes(self.get(name)?)
    }

    /// The bytes of a tensor of this file, as [`bytes`](Self::bytes) gives them; `None` for a tensor of another file that is not
    /// within this one.
    pub fn tensor_bytes(&self, tensor: &PickledTensor) -> Option<Cow<'_, [u8]>> {
        let file = self.contents.as_slice();
        if let Some(range) = tensor.range() {
            return file.get(range).map(Cow::Borrowed);
        }
        file.get(tensor.span.clone())?;
        let mut bytes = vec![0; tensor.bytes()];
        gather::copy(file, tensor, 0, &mut bytes)?;
        Some(Cow::Owned(bytes))
    }

    /// Copies the bytes `start..start + out.len()` of a tensor of this file, taken row-major, to `out`, so that a large tensor in
    /// another order can be copied without a copy of it in memory. `None`, and `out` in any state, when that is not within the
    /// tensor.
    #[must_use = "nothing is copied when the range is outside the tensor"]
    pub fn read_at(&self, tensor: &PickledTensor, start: usize, out: &mut [u8]) -> Option<()> {
        gather::copy(self.contents.as_slice(), tensor, start, out)
    }

    /// Says that the bytes of the tensor called `name` will hardly be looked at again, so that memory held for them can be used
    /// otherwise.
    ///
    /// Looking at them again is allowed and reads them from disk again. Does nothing for files in memory and on systems other
    /// than Linux.
    pub fn release(&self, name: &str) {
        if let Some(tensor) = self.get(name) {
            self.contents.release(&tensor.span);
        }
    }

    fn parse(source: String, path: Option<PathBuf>, contents: Contents) -> Result<Self> {
        match read(contents.as_slice()) {
            Ok((value, flat)) => {
                let mut by_name: Vec<usize> = (0..flat.tensors.len()).collect();
                by_name.sort_by(|&a, &b| flat.tensors[a].0.cmp(&flat.tensors[b].0));
                let Flat { tensors, bookkeeping, metadata } = flat;
                Ok(Self { source, path, contents, value, tensors, by_name, bookkeeping, metadata })
            }
            Err(problem) => Err(Error::Pickle { file: source, problem: Box::new(problem) }),
        }
    }
}

impl std::fmt::Debug for PickledFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PickledFile")
            .field("source", &self.source)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

fn read(bytes: &[u8]) -> error::Result<(Value, Flat)> {
    let pickled = if bytes.starts_with(zip::SIGNATURE) {
        read_archive(bytes)?
    } else if legacy::is_legacy(bytes) {
        legacy::read(bytes)?
    } else {
        return Err(not_torch(bytes));
    };
    let value = build::build(&pickled)?;
    let flat = Flat::of(&value)?;
    Ok((value, flat))
}

/// Reads torch's zip archive: `<folder>/data.pkl`, the storages under `<folder>/data/`, and `<folder>/byteorder`.
fn read_archive(bytes: &[u8]) -> error::Result<Pickled> {
    const PICKLE: &str = "/data.pkl";
    let archive = Archive::parse(bytes)?;
    let is_pickle = |name: &&str| name.strip_suffix(PICKLE).is_some_and(|folder| !folder.contains('/'));
    let mut pickles = archive.names().filter(is_pickle);
    let Some(name) = pickles.next() else {
        let found = "a zip archive without a data.pkl in its folder".to_string();
        return Err(PickleError::NotTorch { found });
    };
    if let Some(other) = pickles.next() {
        let (first, second) = (shown(name.min(other)), shown(name.max(other)));
        return Err(PickleError::NotTorch { found: format!("a zip archive with both {first} and {second}") });
    }
    let folder = &name[..name.len() - PICKLE.len()];
    if archive.get(&format!("{folder}/constants.pkl")).is_some() {
        let advice = "load it by torch.jit.load and save its state_dict as safetensors";
        return Err(PickleError::Format { format: "TorchScript, a program with weights,", advice });
    }
    if let Some(range) = archive.get(&format!("{folder}/byteorder")) {
        let order = String::from_utf8_lossy(&bytes[range]);
        if order.trim() != "little" {
            return Err(PickleError::ByteOrder { found: shown(&order) });
        }
    }
    let range = archive.get(name).unwrap_or_default();
    let mut pickled = machine::read(&bytes[range.clone()], range.start)?;
    for root in 0..pickled.storages.roots().len() {
        let storage = &pickled.storages.roots()[root];
        let place = format!("{folder}/data/{}", storage.key);
        let Some(range) = archive.get(&place) else {
            return Err(PickleError::StorageMissing { storage: shown(&storage.key), place: shown(&place) });
        };
        pickled.storages.put(root, range)?;
    }
    Ok(pickled)
}

/// The first pickles of a file begin with PROTO, or in protocols 0 and 1 with a container.
fn is_pickle(start: &[u8]) -> bool {
    matches!(start, [0x80, 0..=5, ..])
}

/// Whether the file begins with the length of a safetensors header and the header: a length of 128 bytes begins as a pickle does.
fn is_safetensors(start: &[u8]) -> bool {
    matches!(start, [_, _, _, _, 0, 0, 0, 0, b'{', ..])
}

/// Whether the magic of a tar archive is where it should be; torch wrote such archives before 0.2.
fn is_tar(start: &[u8]) -> bool {
    start.get(257..262) == Some(b"ustar")
}

fn not_torch(bytes: &[u8]) -> PickleError {
    if is_tar(bytes) {
        let advice = "load it in Python by torch.load and save its tensors as safetensors";
        return PickleError::Format { format: "the tar archive that torch wrote in 2016 and 2017", advice };
    }
    let found = match bytes {
        [] => "it is empty",
        [_, _, _, _, _, _, _, _, b'{', ..] => "it looks like a safetensors file",
        [b'<', ..] => "it looks like a web page, not the file itself",
        _ if bytes.starts_with(b"version https://git-lfs") => {
            "it is a Git LFS pointer; fetch the file itself"
        }
        _ if bytes.starts_with(b"GGUF") => "it is a GGUF file",
        _ if is_pickle(bytes) => "it is a pickle, but not one of torch",
        _ => "it begins with other bytes",
    };
    PickleError::NotTorch { found: found.to_string() }
}
