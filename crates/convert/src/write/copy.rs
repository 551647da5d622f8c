//! One piece of work: some bytes of one tensor, from the source to their place in a file.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::dtype::{Buffers, has_non_finite};
use super::workers::Found;
use super::{Laid, Staging, WeightFile};
use crate::plan::Values;
use crate::{Error, Result, Source};

/// How many bytes of a file are copied as one piece of work, so that the threads end at about the same time.
const PIECE: u64 = 32 << 20;

/// How many elements are converted at once.
const CHUNK: usize = 1 << 20;

/// Some work on one tensor.
pub(super) struct Unit<'a> {
    file: usize,
    laid: &'a Laid,
    work: Work<'a>,
}

enum Work<'a> {
    /// Bytes of a tensor of the source, which lie in a file, to a place in the file to be.
    Copy { tensor: &'a str, path: &'a Path, file_start: u64, tensor_start: u64, to: u64, bytes: u64 },
    /// The whole tensor, through memory.
    Through,
}

impl Unit<'_> {
    /// How many bytes it writes.
    pub(super) fn bytes(&self) -> u64 {
        match self.work {
            Work::Copy { bytes, .. } => bytes,
            Work::Through => self.laid.bytes,
        }
    }
}

/// The work on all tensors of `files`, in their order.
pub(super) fn units<'a>(files: &'a [WeightFile], source: &'a dyn Source) -> Vec<Unit<'a>> {
    let mut units = Vec::new();
    for (file, laid) in
        files.iter().enumerate().flat_map(|(i, file)| file.tensors.iter().map(move |laid| (i, laid)))
    {
        match copies(laid, source) {
            Some(copies) => units.extend(copies.into_iter().map(|work| Unit { file, laid, work })),
            None => units.push(Unit { file, laid, work: Work::Through }),
        }
    }
    units
}

/// The copies that make up a tensor, if copying is all it takes.
fn copies<'a>(laid: &'a Laid, source: &'a dyn Source) -> Option<Vec<Work<'a>>> {
    if laid.dtype != laid.tensor.dtype {
        return None;
    }
    let parts: Vec<(&str, usize, usize)> = match &laid.tensor.values {
        Values::Whole(tensor) => vec![(tensor, 0, 1)],
        Values::Part { tensor, index, of } => vec![(tensor, *index, *of)],
        Values::Joined(tensors) => tensors.iter().map(|tensor| (tensor.as_str(), 0, 1)).collect(),
        Values::Transposed(..) => return None,
    };
    let mut copies = Vec::new();
    let mut to = laid.start;
    for (tensor, index, of) in parts {
        let (path, range) = source.position(tensor)?;
        let length = (range.end - range.start) / of as u64;
        let first = length * index as u64;
        for offset in (0..length).step_by(PIECE as usize) {
            let bytes = PIECE.min(length - offset);
            let tensor_start = first + offset;
            copies.push(Work::Copy {
                tensor,
                path,
                file_start: range.start + tensor_start,
                tensor_start,
                to,
                bytes,
            });
            to += bytes;
        }
    }
    (to - laid.start == laid.bytes).then_some(copies)
}

/// What one thread needs: files that it has opened itself, since reading and writing move their positions.
pub(super) struct Worker<'a> {
    staging: &'a Staging,
    files: &'a [WeightFile],
    source: &'a dyn Source,
    readers: HashMap<PathBuf, File>,
    writers: HashMap<usize, File>,
    buffers: Buffers,
    pub(super) found: Found,
}

impl<'a> Worker<'a> {
    pub(super) fn new(staging: &'a Staging, files: &'a [WeightFile], source: &'a dyn Source) -> Self {
        Self {
            staging,
            files,
            source,
            readers: HashMap::new(),
            writers: HashMap::new(),
            buffers: Buffers::default(),
            found: Found::default(),
        }
    }

    /// Does one piece of work.
    ///
    /// # Errors
    /// When the source cannot be read or the destination not be written.
    pub(super) fn write(&mut self, unit: &Unit<'_>) -> Result<()> {
        match unit.work {
            Work::Copy { tensor, path, file_start, tensor_start, to, bytes } => {
                self.copy(unit.file, path, file_start, to, bytes)?;
                let all = self.source.bytes(tensor)?;
                let range =
                    usize::try_from(tensor_start).ok().zip(usize::try_from(tensor_start + bytes).ok());
                let copied = range.and_then(|(start, end)| all.get(start..end)).unwrap_or_default();
                if has_non_finite(copied, unit.laid.dtype) {
                    self.found.not_finite.insert(tensor.to_string());
                }
                self.source.release(tensor);
                Ok(())
            }
            Work::Through => self.through(unit),
        }
    }

    /// Copies bytes from file to file; on Linux the system does it without handing them over.
    fn copy(&mut self, file: usize, path: &Path, from: u64, to: u64, bytes: u64) -> Result<()> {
        let unreadable = |source| Error::Io { file: path.display().to_string(), source };
        if !self.readers.contains_key(path) {
            self.readers.insert(path.to_path_buf(), File::open(path).map_err(unreadable)?);
        }
        // Out of the map while it reads, so that the map of writers can be asked meanwhile.
        let Some(mut reader) = self.readers.remove(path) else { return Ok(()) };
        reader.seek(SeekFrom::Start(from)).map_err(unreadable)?;
        let destination = self.staging.destination();
        let mut writer = self.writer(file, to)?;
        let copied = io::copy(&mut (&reader).take(bytes), &mut writer);
        self.readers.insert(path.to_path_buf(), reader);
        let copied = copied.map_err(|source| Error::Write { destination, source })?;
        if copied == bytes {
            return Ok(());
        }
        Err(unreadable(io::Error::from(io::ErrorKind::UnexpectedEof)))
    }

    /// Reads, transposes or converts a tensor in memory: chunk by chunk where it only has to be converted.
    fn through(&mut self, unit: &Unit<'_>) -> Result<()> {
        let Laid { tensor, dtype, start, bytes } = unit.laid;
        let mut to = *start;
        let joined: Vec<Values>;
        let parts = match &tensor.values {
            Values::Joined(names) => {
                joined = names.iter().cloned().map(Values::Whole).collect();
                &joined[..]
            }
            values => std::slice::from_ref(values),
        };
        for part in parts {
            let read = crate::PlannedTensor { values: part.clone(), ..tensor.clone() }.read(self.source)?;
            let chunk = CHUNK * tensor.dtype.bitsize().div_ceil(8);
            for piece in read.chunks(chunk) {
                to += self.piece(unit.file, &tensor.name, piece, (tensor.dtype, *dtype), to)?;
            }
            drop(read);
            for name in names(part) {
                self.source.release(name);
            }
        }
        if to - start == *bytes {
            return Ok(());
        }
        Err(Error::not_readable(self.source.name(), &tensor.name))
    }

    /// Writes one chunk; gives how many bytes it has there.
    fn piece(
        &mut self,
        file: usize,
        name: &str,
        piece: &[u8],
        (from, dtype): (Dtype, Dtype),
        to: u64,
    ) -> Result<u64> {
        if has_non_finite(piece, from) {
            self.found.not_finite.insert(name.to_string());
        }
        let mut buffers = std::mem::take(&mut self.buffers);
        let out = if from == dtype {
            piece
        } else {
            if buffers.convert(piece, from, dtype) {
                self.found.overflowed.insert(name.to_string());
            }
            &buffers.out
        };
        let destination = self.staging.destination();
        let written = self.writer(file, to)?.write_all(out);
        let length = out.len() as u64;
        self.buffers = buffers;
        written.map_err(|source| Error::Write { destination, source })?;
        Ok(length)
    }

    fn writer(&mut self, file: usize, position: u64) -> Result<&File> {
        let failed = |source| Error::Write { destination: self.staging.destination(), source };
        let writer = match self.writers.entry(file) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let path = self.staging.path(&self.files[file].path);
                entry.insert(OpenOptions::new().write(true).open(path).map_err(failed)?)
            }
        };
        writer.seek(SeekFrom::Start(position)).map_err(failed)?;
        Ok(writer)
    }
}

fn names(values: &Values) -> &[String] {
    match values {
        Values::Whole(name) | Values::Transposed(name, _) | Values::Part { tensor: name, .. } => {
            std::slice::from_ref(name)
        }
        Values::Joined(names) => names,
    }
}
