//! Where each tensor goes: into which file, at which bytes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::dtype::is_float;
use super::{WriteOptions, plain_metadata};
use crate::plan::Values;
use crate::tokenizer::pretty;
use crate::{Error, PlannedTensor, Result, Source};

/// One safetensors file to be.
#[derive(Debug)]
pub(crate) struct WeightFile {
    /// Its path in the destination; `""` where it is the destination.
    pub(crate) path: String,
    /// The header with its length before it.
    pub(crate) header: Vec<u8>,
    /// The tensors in the order of their bytes.
    pub(crate) tensors: Vec<Laid>,
}

/// A tensor with its place in a file.
#[derive(Debug)]
pub(crate) struct Laid {
    pub(crate) tensor: PlannedTensor,
    /// The element type that it will have.
    pub(crate) dtype: Dtype,
    /// Its first byte in the file.
    pub(crate) start: u64,
    /// How many bytes it will have.
    pub(crate) bytes: u64,
}

impl WeightFile {
    /// The size of the whole file.
    pub(crate) fn bytes(&self) -> u64 {
        self.header.len() as u64 + self.tensors.iter().map(|laid| laid.bytes).sum::<u64>()
    }
}

/// The files of one component, and the index where there are several.
#[derive(Debug)]
pub(crate) struct WeightFiles {
    pub(crate) files: Vec<WeightFile>,
    pub(crate) index: Option<(String, Vec<u8>)>,
}

/// Lays out `tensors` in files of the folder `folder` (`""` or ending with a slash) whose names begin with `stem`.
///
/// # Errors
/// When a tensor cannot have the element type that is asked for.
pub(crate) fn lay_out(
    folder: &str,
    stem: &str,
    tensors: Vec<PlannedTensor>,
    source: &dyn Source,
    options: &WriteOptions,
) -> Result<WeightFiles> {
    let tensors = in_order(tensors, source, options)?;
    let limit = options.max_shard_size.unwrap_or(u64::MAX);
    let mut shards: Vec<Vec<Laid>> = vec![Vec::new()];
    let mut size = 0_u64;
    for laid in tensors {
        if size > 0 && size.saturating_add(laid.bytes) > limit {
            shards.push(Vec::new());
            size = 0;
        }
        size = size.saturating_add(laid.bytes);
        let last = shards.len() - 1;
        shards[last].push(laid);
    }
    let variant = options.variant.as_ref().map(|variant| format!(".{variant}")).unwrap_or_default();
    let count = shards.len();
    let name = |number: usize| match count {
        1 => format!("{stem}{variant}.safetensors"),
        _ => format!("{stem}{variant}-{:05}-of-{count:05}.safetensors", number + 1),
    };
    let index = (count > 1).then(|| {
        let weight_map: BTreeMap<&str, String> = shards
            .iter()
            .enumerate()
            .flat_map(|(number, shard)| shard.iter().map(move |laid| (laid.tensor.name.as_str(), number)))
            .map(|(tensor, number)| (tensor, name(number)))
            .collect();
        let total_size: u64 = shards.iter().flatten().map(|laid| laid.bytes).sum();
        let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
        (format!("{folder}{stem}.safetensors.index{variant}.json"), pretty(&index))
    });
    let files = shards
        .into_iter()
        .enumerate()
        .map(|(number, shard)| WeightFile::new(format!("{folder}{}", name(number)), shard, &plain_metadata()))
        .collect();
    Ok(WeightFiles { files, index })
}

impl WeightFile {
    /// A file of `tensors`, which get their places in it.
    pub(crate) fn new(path: String, tensors: Vec<Laid>, metadata: &BTreeMap<String, String>) -> Self {
        Self::with_markers(path, tensors, metadata, &[])
    }

    fn with_markers(
        path: String,
        mut tensors: Vec<Laid>,
        metadata: &BTreeMap<String, String>,
        markers: &[&str],
    ) -> Self {
        let mut entries = Map::new();
        entries.insert("__metadata__".to_string(), json!(metadata));
        for marker in markers {
            let entry = json!({"dtype": Dtype::F32.to_string(), "shape": [0], "data_offsets": [0, 0]});
            entries.insert(marker.to_string(), entry);
        }
        let mut offset = 0_u64;
        for laid in &mut tensors {
            laid.start = offset;
            offset += laid.bytes;
            let entry: Value = json!({
                "dtype": laid.dtype.to_string(), "shape": laid.tensor.shape, "data_offsets": [laid.start, offset],
            });
            entries.insert(laid.tensor.name.clone(), entry);
        }
        let mut json = Value::Object(entries).to_string().into_bytes();
        // The format asks for data that begins at a multiple of eight bytes.
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.append(&mut json);
        for laid in &mut tensors {
            laid.start += header.len() as u64;
        }
        Self { path, header, tensors }
    }

    /// One file of `tensors` that is the destination itself, and of `markers`: names of tensors without values.
    ///
    /// # Errors
    /// As [`lay_out`].
    pub(crate) fn only(
        tensors: Vec<PlannedTensor>,
        source: &dyn Source,
        options: &WriteOptions,
        (metadata, markers): (&BTreeMap<String, String>, &[&str]),
    ) -> Result<Self> {
        Ok(Self::with_markers(String::new(), in_order(tensors, source, options)?, metadata, markers))
    }
}

impl WeightFile {
    /// A file of `tensors`, and of others that keep their element types whatever is asked for.
    ///
    /// # Errors
    /// As [`lay_out`].
    pub(crate) fn with_exact(
        path: String,
        tensors: Vec<PlannedTensor>,
        exact: Vec<PlannedTensor>,
        source: &dyn Source,
        options: &WriteOptions,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let mut laid = in_order(tensors, source, options)?;
        laid.extend(in_order(exact, source, &WriteOptions::default())?);
        // Stable: each begins at a multiple of its width, and reading still goes forward.
        laid.sort_by_key(|laid| std::cmp::Reverse(laid.dtype.bitsize()));
        Ok(Self::new(path, laid, metadata))
    }
}

/// The tensors by falling width of their elements, so that each begins at a multiple of its width, then as they lie in the source, so
/// that reading goes forward.
fn in_order(tensors: Vec<PlannedTensor>, source: &dyn Source, options: &WriteOptions) -> Result<Vec<Laid>> {
    let mut laid = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let key = position(&tensor, source);
        laid.push((key, lay(tensor, source, options)?));
    }
    laid.sort_by(|(a_key, a), (b_key, b)| {
        let width = |laid: &Laid| std::cmp::Reverse(laid.dtype.bitsize());
        (width(a), a_key, &a.tensor.name).cmp(&(width(b), b_key, &b.tensor.name))
    });
    Ok(laid.into_iter().map(|(_, laid)| laid).collect())
}

fn lay(tensor: PlannedTensor, source: &dyn Source, options: &WriteOptions) -> Result<Laid> {
    let dtype = match options.dtype {
        Some(wanted) if wanted != tensor.dtype && is_float(tensor.dtype) => {
            super::dtype::check(tensor.dtype, wanted).map_err(|()| Error::NotConvertible {
                file: source.name().to_string(),
                tensor: tensor.name.clone(),
                dtype: tensor.dtype,
                wanted,
            })?
        }
        _ => tensor.dtype,
    };
    let bits = (tensor.elements() as u64).saturating_mul(dtype.bitsize() as u64);
    Ok(Laid { bytes: bits.div_ceil(8), tensor, dtype, start: 0 })
}

/// The file and the byte where the values of a tensor begin.
fn position(tensor: &PlannedTensor, source: &dyn Source) -> Option<(PathBuf, u64, usize)> {
    let (name, part) = match &tensor.values {
        Values::Whole(name) | Values::Transposed(name, _) => (name, 0),
        Values::Part { tensor, index, .. } => (tensor, *index),
        Values::Joined(names) => (names.first()?, 0),
    };
    let (path, range) = source.position(name)?;
    Some((path.to_path_buf(), range.start, part))
}
