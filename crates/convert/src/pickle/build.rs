//! From what the machine has built, where containers are numbers, to values that stand by themselves.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::error::{PickleError, Result, shown};
use super::item::{Item, Node};
use super::limits::{MAX_PICKLE_DEPTH, MAX_PICKLE_EXPANDED};
use super::machine::Pickled;
use super::storage::Storages;
use super::value::{Dict, Object, Sequence, Value};

/// The value that a pickle says, with its tensors where they lie in the file.
pub(super) fn build(pickled: &Pickled) -> Result<Value> {
    let mut builder = Builder {
        arena: &pickled.arena,
        storages: &pickled.storages,
        done: vec![None; pickled.arena.len()],
        open: vec![false; pickled.arena.len()],
    };
    builder.item(&pickled.root, 0).map(|built| built.value)
}

#[derive(Clone)]
struct Built {
    value: Value,
    /// How many values it is, those that are used in several places counted in each.
    expanded: u64,
    /// How many containers lie in each other at most.
    height: usize,
}

struct Builder<'a> {
    arena: &'a [Node],
    storages: &'a Storages,
    /// Containers that are used in several places are built once.
    done: Vec<Option<Built>>,
    /// Containers that are being built: one that is met again contains itself.
    open: Vec<bool>,
}

/// What a container's values come to together.
#[derive(Default)]
struct Totals {
    expanded: u64,
    height: usize,
    tensors: u64,
}

impl Builder<'_> {
    fn item(&mut self, item: &Item, depth: usize) -> Result<Built> {
        let value = match item {
            Item::None => Value::None,
            Item::Bool(value) => Value::Bool(*value),
            Item::Int(value) => Value::Int(*value),
            Item::BigInt(bytes) => Value::BigInt(bytes.clone()),
            Item::Float(value) => Value::Float(*value),
            Item::Text(text) => Value::Text(text.clone()),
            Item::Bytes(bytes) => Value::Bytes(bytes.clone()),
            Item::Global(global) => Value::Name(global.name().into()),
            Item::Tensor(tensor) => {
                let placed = self.storages.place(tensor);
                Value::Tensor(Arc::new(placed.ok_or_else(|| missing(tensor.storage))?))
            }
            Item::Storage(storage) => {
                let placed = self.storages.whole(*storage);
                Value::Storage(Arc::new(placed.ok_or_else(|| missing(*storage))?))
            }
            Item::Node(node) => return self.node(*node, depth),
        };
        Ok(Built { value, expanded: 1, height: 0 })
    }

    fn node(&mut self, index: usize, depth: usize) -> Result<Built> {
        if let Some(Some(built)) = self.done.get(index) {
            return Ok(built.clone());
        }
        let Some(node) = self.arena.get(index) else {
            return Ok(Built { value: Value::None, expanded: 1, height: 0 });
        };
        if std::mem::replace(&mut self.open[index], true) {
            return Err(PickleError::Recursive {
                what: node.kind().rsplit(' ').next().unwrap_or("container"),
            });
        }
        check_depth(depth + 1)?;
        let mut totals = Totals::default();
        let value = match node {
            Node::List(values) => Value::List(self.sequence(values, depth, &mut totals)?),
            Node::Tuple(values) => Value::Tuple(self.sequence(values, depth, &mut totals)?),
            Node::Set(values) => Value::Set(self.sequence(values, depth, &mut totals)?),
            Node::Dict { entries, state } => {
                Value::Dict(self.dict(entries, state.as_deref(), depth, &mut totals)?)
            }
            Node::Object { class, arguments, state } => {
                let arguments = self.values(arguments, depth, &mut totals)?;
                let state = self.state(state.as_deref(), depth, &mut totals)?;
                Value::Object(Arc::new(Object { class, arguments, state, tensors: totals.tensors }))
            }
        };
        let built = Built { value, expanded: totals.expanded + 1, height: totals.height + 1 };
        check_depth(built.height)?;
        self.open[index] = false;
        self.done[index] = Some(built.clone());
        Ok(built)
    }

    fn sequence(&mut self, items: &[Item], depth: usize, totals: &mut Totals) -> Result<Arc<Sequence>> {
        let values = self.values(items, depth, totals)?;
        Ok(Arc::new(Sequence { values, tensors: totals.tensors }))
    }

    fn dict(
        &mut self,
        items: &[(Item, Item)],
        state: Option<&Item>,
        depth: usize,
        totals: &mut Totals,
    ) -> Result<Arc<Dict>> {
        let mut entries: Vec<(Value, Value)> = Vec::with_capacity(items.len());
        let mut by_text: HashMap<Arc<str>, usize> = HashMap::new();
        let mut by_number: HashMap<i64, usize> = HashMap::new();
        for (key, value) in items {
            let key = self.value(key, depth, totals)?;
            let value = self.value(value, depth, totals)?;
            let place = match &key {
                Value::Text(text) => place(by_text.entry(text.clone()), entries.len()),
                Value::Int(number) => place(by_number.entry(*number), entries.len()),
                _ => entries.len(),
            };
            match entries.get_mut(place) {
                Some((_, old)) => {
                    totals.tensors -= old.tensor_count();
                    *old = value;
                }
                None => entries.push((key, value)),
            }
        }
        let state = self.state(state, depth, totals)?;
        let mut by_text: Vec<usize> = by_text.into_values().collect();
        by_text.sort_by(|&a, &b| entries[a].0.as_text().cmp(&entries[b].0.as_text()));
        Ok(Arc::new(Dict { entries, by_text, state, tensors: totals.tensors }))
    }

    fn values(&mut self, items: &[Item], depth: usize, totals: &mut Totals) -> Result<Vec<Value>> {
        let mut values = Vec::with_capacity(items.len());
        for item in items {
            values.push(self.value(item, depth, totals)?);
        }
        Ok(values)
    }

    fn state(&mut self, state: Option<&Item>, depth: usize, totals: &mut Totals) -> Result<Option<Value>> {
        state.map(|state| self.value(state, depth, totals)).transpose()
    }

    fn value(&mut self, item: &Item, depth: usize, totals: &mut Totals) -> Result<Value> {
        let built = self.item(item, depth + 1)?;
        totals.expanded += built.expanded;
        totals.height = totals.height.max(built.height);
        totals.tensors += built.value.tensor_count();
        if totals.expanded > MAX_PICKLE_EXPANDED {
            let what = "values, counted in each place where they are used,";
            return Err(PickleError::Limit { what, found: totals.expanded, limit: MAX_PICKLE_EXPANDED });
        }
        Ok(built.value)
    }
}

/// The place of a key: the one it has, or `next`.
fn place<K>(entry: Entry<'_, K, usize>, next: usize) -> usize {
    *entry.or_insert(next)
}

fn check_depth(depth: usize) -> Result<()> {
    super::error::check_limit("containers in each other", depth, MAX_PICKLE_DEPTH)
}

/// Every storage has been put in its place before values are built.
fn missing(storage: usize) -> PickleError {
    PickleError::StorageMissing { storage: shown(&storage.to_string()), place: "the file".to_string() }
}
