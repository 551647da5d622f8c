use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::inventory::{Entry, Inventory};
use crate::{Checkpoint, Error, PickledFile, Result};

/// Where tensors come from: their names, shapes and element types at once, their bytes one by one.
pub trait Source: Send + Sync {
    /// The file or folder, for messages.
    fn name(&self) -> &str;

    /// The tensors that it has.
    fn inventory(&self) -> Inventory;

    /// The bytes of the tensor called `tensor`: row-major, little-endian; borrowed where they lie so in the file.
    ///
    /// # Errors
    /// When there is no such tensor or its bytes cannot be read.
    fn bytes(&self, tensor: &str) -> Result<Cow<'_, [u8]>>;

    /// Where in which file the bytes of the tensor called `tensor` lie as [`bytes`](Self::bytes) gives them; `None` where they do
    /// not lie so in any file.
    fn position(&self, _tensor: &str) -> Option<(&Path, Range<u64>)> {
        None
    }

    /// Says that the bytes of the tensor called `tensor` will hardly be asked for again.
    fn release(&self, _tensor: &str) {}

    /// What the source holds that is no tensor of a model, and why it is left out: one line each.
    fn beside(&self) -> Vec<String> {
        Vec::new()
    }

    /// The text that the source carries beside its tensors.
    fn metadata(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
}

impl Source for Checkpoint {
    fn name(&self) -> &str {
        self.source()
    }

    fn inventory(&self) -> Inventory {
        let entry =
            |info: &crate::TensorInfo| (info.name.clone(), Entry::new(info.shape.clone(), info.dtype));
        self.tensors().map(|(_, info)| entry(info)).collect()
    }

    fn bytes(&self, tensor: &str) -> Result<Cow<'_, [u8]>> {
        self.bytes(tensor).map(Cow::Borrowed).ok_or_else(|| Error::not_readable(self.source(), tensor))
    }

    fn position(&self, tensor: &str) -> Option<(&Path, Range<u64>)> {
        let (file, info) = self.get(tensor)?;
        Some((file.path()?, info.range.start as u64..info.range.end as u64))
    }

    fn release(&self, tensor: &str) {
        if let Some((file, _)) = self.get(tensor) {
            file.release(tensor);
        }
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        self.files().iter().flat_map(|file| file.metadata().clone()).collect()
    }
}

impl Source for PickledFile {
    fn name(&self) -> &str {
        self.source()
    }

    fn inventory(&self) -> Inventory {
        let entry = |(name, tensor): (&str, &crate::pickle::PickledTensor)| {
            (name.to_string(), Entry::new(tensor.shape(), tensor.dtype()))
        };
        self.tensors().map(entry).collect()
    }

    fn bytes(&self, tensor: &str) -> Result<Cow<'_, [u8]>> {
        self.bytes(tensor).ok_or_else(|| Error::not_readable(self.source(), tensor))
    }

    fn position(&self, tensor: &str) -> Option<(&Path, Range<u64>)> {
        let range = self.get(tensor)?.range()?;
        Some((self.path()?, range.start as u64..range.end as u64))
    }

    fn release(&self, tensor: &str) {
        self.release(tensor);
    }

    fn beside(&self) -> Vec<String> {
        self.bookkeeping().iter().map(|one| format!("left out: {}: {}", one.name, one.reason)).collect()
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        self.metadata().clone()
    }
}
