//! Storages, the runs of bytes that tensors look at, and the tensors that look at them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;

use super::dtypes::element_bytes;
use super::error::{PickleError, Result, check_limit, shown};
use super::limits::{MAX_PICKLE_RANK, MAX_PICKLE_REPEATED_BYTES};
use super::value::PickledTensor;

/// The storages that a pickle speaks of.
#[derive(Debug, Default)]
pub(super) struct Storages {
    roots: Vec<Root>,
    by_key: HashMap<Arc<str>, usize>,
    parts: Vec<Part>,
}

/// A run of bytes in the file.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) key: Arc<str>,
    pub(super) dtype: Dtype,
    /// What the pickle says.
    pub(super) bytes: usize,
    /// Where the bytes lie in the file, once that is known.
    place: Option<Range<usize>>,
}

/// A root, or in old files a part of one.
#[derive(Debug)]
struct Part {
    root: usize,
    dtype: Dtype,
    /// Counted from the start of the root.
    range: Range<usize>,
}

/// A tensor before it is known where its storage lies.
#[derive(Debug)]
pub(super) struct RawTensor {
    pub(super) storage: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    strides: Vec<usize>,
    /// From its first element to its last, counted in bytes from the start of the storage.
    span: Range<usize>,
}

/// What a pickle says of a tensor.
pub(super) struct Claim {
    pub(super) storage: usize,
    pub(super) dtype: Dtype,
    pub(super) offset: i64,
    pub(super) shape: Vec<i64>,
    pub(super) strides: Vec<i64>,
}

impl Storages {
    /// The storage with this key of `count` elements; `view` is the part of it that is meant, as first element and count.
    pub(super) fn add(
        &mut self,
        position: usize,
        key: Arc<str>,
        dtype: Dtype,
        count: i64,
        view: Option<(i64, i64)>,
    ) -> Result<usize> {
        let size = |count: i64| {
            usize::try_from(count).ok().and_then(|count| count.checked_mul(element_bytes(dtype)))
        };
        let impossible = |count: i64| PickleError::Malformed {
            position,
            what: format!("storage {} has {count} elements", shown(&key)),
        };
        let bytes = size(count).ok_or_else(|| impossible(count))?;
        let range = match view {
            None => 0..bytes,
            Some((offset, count)) => {
                let start = size(offset).ok_or_else(|| impossible(offset))?;
                let length = size(count).ok_or_else(|| impossible(count))?;
                let end = start.checked_add(length).filter(|&end| end <= bytes);
                start..end.ok_or_else(|| impossible(count))?
            }
        };
        let root = match self.by_key.get(&key) {
            Some(&root) => root,
            None => {
                self.by_key.insert(key.clone(), self.roots.len());
                self.roots.push(Root { key: key.clone(), dtype, bytes, place: None });
                self.roots.len() - 1
            }
        };
        if self.roots[root].bytes != bytes {
            let (expected, found) = (self.roots[root].bytes as u64, bytes as u64);
            return Err(PickleError::StorageSize { storage: shown(&key), expected, found });
        }
        self.parts.push(Part { root, dtype, range });
        Ok(self.parts.len() - 1)
    }

    /// The element type of a storage.
    pub(super) fn dtype(&self, storage: usize) -> Dtype {
        self.parts[storage].dtype
    }

    /// All runs of bytes, in the order in which the pickle first speaks of them.
    pub(super) fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// The run of bytes with this key.
    pub(super) fn find(&self, key: &str) -> Option<usize> {
        self.by_key.get(key).copied()
    }

    /// Says that the bytes of a root lie at `place` of the file.
    pub(super) fn put(&mut self, root: usize, place: Range<usize>) -> Result<()> {
        let root = &mut self.roots[root];
        if place.len() < root.bytes {
            let (expected, found) = (root.bytes as u64, place.len() as u64);
            return Err(PickleError::StorageSize { storage: shown(&root.key), expected, found });
        }
        root.place = Some(place);
        Ok(())
    }

    /// Checks that a tensor lies in its storage.
    pub(super) fn tensor(&self, position: usize, claim: &Claim) -> Result<RawTensor> {
        check_limit("axes in one tensor", claim.shape.len().max(claim.strides.len()), MAX_PICKLE_RANK)?;
        let part = &self.parts[claim.storage];
        let inside = || -> Option<(RawTensor, usize)> {
            let lengths = |values: &[i64]| -> Option<Vec<usize>> {
                values.iter().map(|&value| usize::try_from(value).ok()).collect()
            };
            let (shape, strides) = (lengths(&claim.shape)?, lengths(&claim.strides)?);
            if shape.len() != strides.len() {
                return None;
            }
            let item = element_bytes(claim.dtype);
            let elements = shape.iter().try_fold(1usize, |product, &length| product.checked_mul(length))?;
            let bytes = elements.checked_mul(item)?;
            let offset = usize::try_from(claim.offset).ok()?;
            let span = if elements == 0 {
                0..0
            } else {
                let reach = |sum: usize, (&length, &stride): (&usize, &usize)| {
                    (length - 1).checked_mul(stride).and_then(|reach| sum.checked_add(reach))
                };
                let last = shape.iter().zip(&strides).try_fold(offset, reach)?;
                offset.checked_mul(item)?..last.checked_add(1)?.checked_mul(item)?
            };
            if span.end > part.range.len() {
                return None;
            }
            Some((RawTensor { storage: claim.storage, dtype: claim.dtype, shape, strides, span }, bytes))
        };
        let Some((tensor, bytes)) = inside() else {
            return Err(PickleError::TensorOutside {
                position,
                shape: claim.shape.clone(),
                dtype: claim.dtype,
                strides: claim.strides.clone(),
                offset: claim.offset,
                storage: shown(&self.roots[part.root].key),
                bytes: part.range.len() as u64,
            });
        };
        let most = part.range.len().max(MAX_PICKLE_REPEATED_BYTES);
        check_limit("bytes in a tensor that repeats a smaller storage", bytes, most)?;
        Ok(tensor)
    }

    /// The tensor with its place in the file; `None` when its storage has none.
    pub(super) fn place(&self, tensor: &RawTensor) -> Option<PickledTensor> {
        let part = self.parts.get(tensor.storage)?;
        let start = self.roots.get(part.root)?.place.as_ref()?.start + part.range.start;
        let contiguous = is_row_major(&tensor.shape, &tensor.strides);
        Some(PickledTensor {
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            strides: tensor.strides.clone(),
            span: start + tensor.span.start..start + tensor.span.end,
            contiguous,
        })
    }

    /// The whole storage as a tensor of one axis.
    pub(super) fn whole(&self, storage: usize) -> Option<PickledTensor> {
        let part = self.parts.get(storage)?;
        let count = part.range.len() / element_bytes(part.dtype);
        let (shape, strides, span) = (vec![count], vec![1], 0..part.range.len());
        self.place(&RawTensor { storage, dtype: part.dtype, shape, strides, span })
    }
}

/// Whether the elements lie one after the other with the last axis fastest; the stride of an axis of length 1 does not matter.
fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut expected = 1;
    for (&length, &stride) in shape.iter().zip(strides).rev() {
        if length != 1 && stride != expected {
            return false;
        }
        expected *= length;
    }
    true
}
