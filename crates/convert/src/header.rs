use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;

use safetensors::Dtype;
use serde::de::value::StrDeserializer;
use serde::de::{Deserialize, Deserializer, IntoDeserializer, MapAccess, Visitor};

use crate::{Error, Result};

/// The longest header that is read, in bytes: the format's own limit.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The bytes at the start of a file that say how long the header is.
const LENGTH_BYTES: usize = 8;

/// What a file says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, for instance `conv_in.weight`.
    pub name: String,
    /// The element type in the file.
    pub dtype: Dtype,
    /// The lengths of the axes, outermost first; empty for a single number.
    pub shape: Vec<usize>,
    /// Where its values lie, in bytes from the start of the file, row-major and little-endian.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// How many numbers the tensor has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// How many bytes its values take in the file.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }
}

/// A header that has been checked against the file's size.
#[derive(Debug)]
pub(crate) struct Header {
    /// In the order of their bytes.
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Header {
    /// Reads the header of the safetensors file `bytes`; `file` is its name in errors.
    ///
    /// Every length is checked before it is used: the header's own, each shape against its offsets, and the offsets
    /// against each other and against the file's size. A tensor that comes out of here lies inside `bytes`.
    pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let (json, data_start) = split(file, bytes)?;
        let raw: RawHeader = serde_json::from_slice(json)
            .map_err(|e| Error::Header { file: file.to_string(), message: e.to_string() })?;
        let mut entries = raw.tensors;
        // By name where several empty tensors share an offset, so that the order does not depend on the header's.
        entries.sort_by(|(a_name, a), (b_name, b)| (a.data_offsets, a_name).cmp(&(b.data_offsets, b_name)));

        let mut names = HashSet::with_capacity(entries.len());
        let mut tensors = Vec::with_capacity(entries.len());
        let data_size = (bytes.len() - data_start) as u64;
        let mut first_cut: Option<String> = None;
        let mut end_of_last = 0u64;
        for (name, entry) in entries {
            if !names.insert(name.clone()) {
                return Err(Error::Duplicate { file: file.to_string(), tensor: name });
            }
            let dtype = check_entry(file, &name, &entry, end_of_last)?;
            end_of_last = entry.data_offsets.1;
            if end_of_last > data_size {
                first_cut.get_or_insert(name);
                continue;
            }
            let range =
                data_start + entry.data_offsets.0 as usize..data_start + entry.data_offsets.1 as usize;
            let shape = usize_shape(file, &name, dtype, &entry.shape)?;
            tensors.push(TensorInfo { name, dtype, shape, range });
        }
        if let Some(tensor) = first_cut {
            return Err(Error::Truncated {
                file: file.to_string(),
                expected: end_of_last,
                found: data_size,
                tensor,
            });
        }
        if end_of_last < data_size {
            return Err(Error::TrailingBytes {
                file: file.to_string(),
                end: end_of_last,
                extra: data_size - end_of_last,
            });
        }
        Ok(Self { tensors, metadata: raw.metadata })
    }
}

/// The header's JSON and where the data begins.
fn split<'a>(file: &str, bytes: &'a [u8]) -> Result<(&'a [u8], usize)> {
    if bytes.is_empty() {
        return Err(Error::Empty { file: file.to_string() });
    }
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(Error::TooShort { file: file.to_string(), size: bytes.len() });
    };
    let header_size = u64::from_le_bytes(*length);
    if header_size > MAX_HEADER_BYTES {
        return Err(Error::HeaderTooLarge { file: file.to_string(), header_size, limit: MAX_HEADER_BYTES });
    }
    // Fits in a usize: it is at most MAX_HEADER_BYTES.
    let json = rest.get(..header_size as usize).ok_or_else(|| Error::HeaderPastEnd {
        file: file.to_string(),
        header_size,
        available: rest.len(),
    })?;
    Ok((json, LENGTH_BYTES + json.len()))
}

/// Checks one entry by itself and that it begins where the one before it has ended.
fn check_entry(file: &str, name: &str, entry: &RawEntry, end_of_last: u64) -> Result<Dtype> {
    let file = || file.to_string();
    let tensor = || name.to_string();
    let name_of_dtype: StrDeserializer<'_, serde::de::value::Error> =
        entry.dtype.as_str().into_deserializer();
    let dtype = Dtype::deserialize(name_of_dtype).map_err(|_| Error::UnknownDtype {
        file: file(),
        tensor: tensor(),
        dtype: entry.dtype.clone(),
    })?;
    let (start, end) = entry.data_offsets;
    if end < start {
        return Err(Error::OffsetsReversed { file: file(), tensor: tensor(), start, end });
    }
    let bits = entry
        .shape
        .iter()
        .try_fold(1u64, |product, &length| product.checked_mul(length))
        .and_then(|elements| elements.checked_mul(dtype.bitsize() as u64))
        .ok_or_else(|| Error::ShapeOverflow {
            file: file(),
            tensor: tensor(),
            shape: entry.shape.clone(),
            dtype,
        })?;
    if !bits.is_multiple_of(8) || bits / 8 != end - start {
        return Err(Error::SizeMismatch {
            file: file(),
            tensor: tensor(),
            shape: entry.shape.clone(),
            dtype,
            expected: bits.div_ceil(8),
            found: end - start,
            start,
            end,
        });
    }
    if start != end_of_last {
        let how = if start < end_of_last { "overlap" } else { "leave a gap" };
        return Err(Error::OffsetsNotContiguous {
            file: file(),
            tensor: tensor(),
            start,
            expected: end_of_last,
            how,
        });
    }
    Ok(dtype)
}

/// `shape` in this machine's lengths; axes beyond them can only occur beside an axis of length 0.
fn usize_shape(file: &str, name: &str, dtype: Dtype, shape: &[u64]) -> Result<Vec<usize>> {
    shape.iter().map(|&length| usize::try_from(length)).collect::<Result<_, _>>().map_err(|_| {
        Error::ShapeOverflow {
            file: file.to_string(),
            tensor: name.to_string(),
            shape: shape.to_vec(),
            dtype,
        }
    })
}

/// The header as JSON has it, with entries of the same name kept apart.
struct RawHeader {
    tensors: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader { tensors: Vec::new(), metadata: BTreeMap::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}
