use std::collections::BTreeMap;

use safetensors::Dtype;

/// The names, shapes and element types of a checkpoint's tensors, without their bytes: all that layouts are recognised by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    tensors: BTreeMap<String, Entry>,
}

/// One tensor of an [`Inventory`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The lengths of the axes, outermost first.
    pub shape: Vec<usize>,
    /// The element type.
    pub dtype: Dtype,
    /// The tensor's name in the source, where a layout calls it otherwise.
    pub stored_as: Option<String>,
}

impl Entry {
    /// A tensor that its source and its layout call alike.
    pub fn new(shape: impl Into<Vec<usize>>, dtype: Dtype) -> Self {
        Self { shape: shape.into(), dtype, stored_as: None }
    }
}

impl Inventory {
    /// Whether there is no tensor at all.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// The same tensors, each called what `canonical` makes of its name; it keeps its own where that gives none, or one that is taken.
    pub(crate) fn renamed(self, canonical: impl Fn(&str) -> Option<String>) -> Self {
        let mut renamed = Self::default();
        let mut others = Vec::new();
        for (name, entry) in self.tensors {
            match canonical(&name) {
                None => _ = renamed.tensors.insert(name, entry),
                Some(canonical) => others.push((canonical, name, entry)),
            }
        }
        for (canonical, name, mut entry) in others {
            if renamed.tensors.contains_key(&canonical) {
                renamed.tensors.insert(name, entry);
            } else {
                entry.stored_as.get_or_insert(name);
                renamed.tensors.insert(canonical, entry);
            }
        }
        renamed
    }

    /// Lets `name` stand for the tensor that the source calls `source`, which is no longer listed itself.
    pub(crate) fn replace(&mut self, name: &str, source: &str) {
        if let Some(mut entry) = self.tensors.remove(source) {
            entry.stored_as = Some(source.to_string());
            self.tensors.insert(name.to_string(), entry);
        }
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The names that begin with `prefix`, sorted.
    pub fn names_under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.tensors
            .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
            .map(|(name, _)| name.as_str())
            .take_while(move |name| name.starts_with(prefix))
    }

    /// Whether any name begins with `prefix`.
    pub fn has_under(&self, prefix: &str) -> bool {
        self.names_under(prefix).next().is_some()
    }
}

impl FromIterator<(String, Entry)> for Inventory {
    fn from_iter<T: IntoIterator<Item = (String, Entry)>>(tensors: T) -> Self {
        Self { tensors: tensors.into_iter().collect() }
    }
}

/// The part of an [`Inventory`] that is one model, by the names that the model itself gives its tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) inventory: &'a Inventory,
    /// What stands before the model's own names, for instance `model.diffusion_model.`
    pub(crate) prefix: &'a str,
}

impl<'a> View<'a> {
    pub(crate) fn get(&self, name: &str) -> Option<&'a Entry> {
        self.inventory.get(&format!("{}{name}", self.prefix))
    }

    /// The shape of the tensor called `name`; empty where there is none.
    pub(crate) fn shape(&self, name: &str) -> &'a [usize] {
        self.get(name).map_or(&[], |entry| &entry.shape)
    }

    /// The length of one axis of the tensor called `name`.
    pub(crate) fn axis(&self, name: &str, axis: usize) -> Option<usize> {
        self.get(name)?.shape.get(axis).copied()
    }

    pub(crate) fn has_under(&self, prefix: &str) -> bool {
        self.inventory.has_under(&format!("{}{prefix}", self.prefix))
    }

    /// One more than the largest number that follows `prefix` in a name, as in `transformer_blocks.9.`; zero where there is none.
    pub(crate) fn count_under(&self, prefix: &str) -> usize {
        let prefix = format!("{}{prefix}", self.prefix);
        let number = |name: &str| name[prefix.len()..].split('.').next()?.parse::<usize>().ok();
        let largest = self.inventory.names_under(&prefix).filter_map(number).max();
        // Nothing has so many parts; a name with an absurd number must not become that many rows.
        largest.map_or(0, |largest| largest.saturating_add(1).min(MAX_PARTS))
    }
}

/// The most blocks, layers or levels of one kind that are looked for in a model.
pub(crate) const MAX_PARTS: usize = 512;
