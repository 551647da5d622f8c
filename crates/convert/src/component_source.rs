use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::plan::Values;
use crate::{Entry, Error, Inventory, Layout, Model, Plan, PlannedTensor, Result, Source};

/// One component of a model, with the names and shapes that it has in diffusers' layout, read from a source in whatever layout.
///
/// What a file in its folder would have, without the folder: nothing is written, and nothing read before it is asked for.
pub struct ComponentSource {
    source: Arc<dyn Source>,
    tensors: BTreeMap<String, PlannedTensor>,
}

impl ComponentSource {
    /// Each component of `model`, which was read from `source`, with its folder.
    pub fn all(model: &Model, source: &Arc<dyn Source>) -> Vec<(&'static str, Self)> {
        let component = |planned: crate::PlannedComponent| {
            let tensors = planned.tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
            (planned.folder, Self { source: Arc::clone(source), tensors })
        };
        Plan::new(model, Layout::Diffusers).components.into_iter().map(component).collect()
    }
}

impl Source for ComponentSource {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn inventory(&self) -> Inventory {
        let entry = |(name, tensor): (&String, &PlannedTensor)| {
            let mut entry = Entry::new(tensor.shape.clone(), tensor.dtype);
            entry.stored_as = tensor.values.tensors().first().filter(|stored| *stored != name).cloned();
            (name.clone(), entry)
        };
        self.tensors.iter().map(entry).collect()
    }

    fn bytes(&self, tensor: &str) -> Result<Cow<'_, [u8]>> {
        match self.tensors.get(tensor) {
            Some(planned) => planned.read(self.source.as_ref()),
            None => Err(Error::not_readable(self.name(), tensor)),
        }
    }

    fn position(&self, tensor: &str) -> Option<(&Path, Range<u64>)> {
        match &self.tensors.get(tensor)?.values {
            Values::Whole(stored) => self.source.position(stored),
            _ => None,
        }
    }

    fn release(&self, tensor: &str) {
        let stored = self.tensors.get(tensor).map_or(&[][..], |planned| planned.values.tensors());
        stored.iter().for_each(|stored| self.source.release(stored));
    }
}
