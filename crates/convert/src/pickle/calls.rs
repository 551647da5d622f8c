//! What the few known functions and classes make of their arguments.

use std::sync::Arc;

use safetensors::Dtype;

use super::dtypes;
use super::error::{PickleError, Result, malformed, shown};
use super::globals::{Global, Plain, Rebuild};
use super::item::{Item, Node};
use super::limits::{MAX_PICKLE_DEPTH, MAX_PICKLE_VALUES};
use super::machine::{Machine, text_of};
use super::storage::Claim;

/// The classes of tensors that are tensors and no more.
const TENSOR_CLASSES: &[&str] = &["torch.Tensor", "torch.nn.parameter.Parameter"];

impl Machine<'_> {
    /// What `global` would make of `arguments`.
    pub(super) fn call(&mut self, global: Global, arguments: Vec<Item>) -> Result<Item> {
        match global {
            Global::Rebuild(rebuild) => self.rebuild(rebuild, &arguments, 0),
            Global::Dict(_) => {
                let entries = self.dict_from(global, &arguments)?;
                Ok(self.add(Node::Dict { entries, state: None }))
            }
            Global::Plain(plain) => self.plain(plain, &arguments),
            Global::Reconstructor => match arguments.as_slice() {
                [Item::Global(class), Item::Global(Global::Opaque("builtins.object")), _] => {
                    self.call(*class, Vec::new())
                }
                [Item::Global(class), Item::Global(_), state] => {
                    let state = state.clone();
                    self.call(*class, vec![state])
                }
                _ => self.bad_call(global.name(), &arguments, "a class, its base and a state are expected"),
            },
            Global::Opaque(class) => Ok(self.add(Node::Object { class, arguments, state: None })),
            Global::Storage(_) | Global::Dtype(..) => {
                self.bad_call(global.name(), &arguments, "it is a value and nothing to call")
            }
        }
    }

    /// The storage that a persistent id speaks of: `('storage', class, key, location, elements)`, in old files with the part of
    /// it that is meant, `(key, first element, elements)` or None, behind.
    pub(super) fn persistent(&mut self, id: &Item) -> Result<Item> {
        let position = self.position;
        let Some(fields) = self.tuple(id) else {
            return malformed(position, format!("a storage is named by {}", id.kind(&self.arena)));
        };
        let (head, view) = match fields {
            [head @ .., view] if head.len() == 5 => (head, Some(view)),
            head => (head, None),
        };
        let [tag, Item::Global(Global::Storage(dtype)), key, _location, Item::Int(count)] = head else {
            let found = self.kinds(fields);
            return malformed(position, format!("a storage is named by {found}"));
        };
        let tag = text_of(tag);
        let (Some("storage"), Some(key)) = (tag.as_deref(), text_of(key)) else {
            let tag = shown(tag.as_deref().unwrap_or("no text"));
            return malformed(position, format!("an object outside the pickle is a {tag:?}, not a storage"));
        };
        let view = match view {
            None | Some(Item::None) => None,
            Some(view) => match self.tuple(view) {
                Some([_, Item::Int(offset), Item::Int(count)]) => Some((*offset, *count)),
                _ => {
                    return malformed(position, format!("a part of a storage is {}", view.kind(&self.arena)));
                }
            },
        };
        let (dtype, count) = (*dtype, *count);
        self.storages.add(position, key, dtype, count, view).map(Item::Storage)
    }

    fn rebuild(&mut self, rebuild: Rebuild, arguments: &[Item], depth: usize) -> Result<Item> {
        if depth > MAX_PICKLE_DEPTH {
            let limit = MAX_PICKLE_DEPTH as u64;
            return Err(PickleError::Limit { what: "wrappers around a tensor", found: depth as u64, limit });
        }
        match (rebuild, arguments) {
            (Rebuild::Tensor, [storage, offset, shape, strides])
            | (Rebuild::TensorV2, [storage, offset, shape, strides, ..]) => {
                self.tensor(rebuild, arguments, [storage, offset, shape, strides], None)
            }
            (Rebuild::TensorV3, [storage, offset, shape, strides, _, _, Item::Global(dtype), ..]) => {
                let Global::Dtype(_, dtype) = *dtype else {
                    let (position, dtype, known) = (self.position, dtype.name(), dtypes::known());
                    return Err(PickleError::UnknownDtype { position, dtype, known });
                };
                self.tensor(rebuild, arguments, [storage, offset, shape, strides], Some(dtype))
            }
            (Rebuild::Parameter | Rebuild::ParameterWithState, [tensor @ Item::Tensor(_), ..]) => {
                Ok(tensor.clone())
            }
            // Attributes that someone has given the tensor are its fourth argument; its values do not depend on them.
            (
                Rebuild::FromTypeV2,
                [Item::Global(Global::Rebuild(inner)), Item::Global(class), inner_arguments, _],
            ) if TENSOR_CLASSES.iter().any(|known| *class == Global::Opaque(known)) => {
                let inner_arguments = self.arguments(inner_arguments)?;
                self.rebuild(*inner, &inner_arguments, depth + 1)
            }
            _ => self.bad_call(rebuild.name().to_string(), arguments, "torch gives it others"),
        }
    }

    fn tensor(
        &self,
        rebuild: Rebuild,
        arguments: &[Item],
        [storage, offset, shape, strides]: [&Item; 4],
        dtype: Option<Dtype>,
    ) -> Result<Item> {
        let (Item::Storage(storage), Item::Int(offset), Some(shape), Some(strides)) =
            (storage, offset, self.lengths(shape)?, self.lengths(strides)?)
        else {
            let expected = "a storage, an offset, a shape and strides are expected";
            return self.bad_call(rebuild.name().to_string(), arguments, expected);
        };
        let dtype = dtype.unwrap_or(self.storages.dtype(*storage));
        let claim = Claim { storage: *storage, dtype, offset: *offset, shape, strides };
        self.storages.tensor(self.position, &claim).map(|tensor| Item::Tensor(Arc::new(tensor)))
    }

    fn lengths(&self, item: &Item) -> Result<Option<Vec<i64>>> {
        let Some(values) = self.sequence(item) else { return Ok(None) };
        let length = |item: &Item| match item {
            Item::Int(length) => Some(*length),
            _ => None,
        };
        Ok(self.bounded(values)?.iter().map(length).collect())
    }

    fn dict_from(&self, global: Global, arguments: &[Item]) -> Result<Vec<(Item, Item)>> {
        let pairs = match (global, arguments) {
            (_, []) | (Global::Dict("collections.defaultdict"), [_]) => return Ok(Vec::new()),
            (_, [one]) => one,
            _ => return self.bad_call(global.name(), arguments, "a dict or a list of pairs is expected"),
        };
        if let Some(entries) = self.dict_entries(pairs) {
            return self.bounded(entries).map(<[_]>::to_vec);
        }
        let pair = |pair: &Item| match self.sequence(pair)? {
            [key, value] => Some((key.clone(), value.clone())),
            _ => None,
        };
        let pairs = match self.sequence(pairs) {
            Some(pairs) => self.bounded(pairs)?.iter().map(pair).collect(),
            None => None,
        };
        match pairs {
            Some(pairs) => Ok(pairs),
            None => self.bad_call(global.name(), arguments, "a dict or a list of pairs is expected"),
        }
    }

    fn plain(&mut self, plain: Plain, arguments: &[Item]) -> Result<Item> {
        let bad = |machine: &Self, expected| machine.bad_call(plain.name().to_string(), arguments, expected);
        match (plain, arguments) {
            (Plain::Size | Plain::Tuple | Plain::List | Plain::Set | Plain::FrozenSet, [] | [_]) => {
                let values = match arguments {
                    [one] => match self.sequence(one) {
                        Some(values) => self.bounded(values)?.to_vec(),
                        None => return bad(self, "a list or tuple is expected"),
                    },
                    _ => Vec::new(),
                };
                let node = match plain {
                    Plain::List => Node::List(values),
                    Plain::Set | Plain::FrozenSet => Node::Set(values),
                    _ => Node::Tuple(values),
                };
                Ok(self.add(node))
            }
            (Plain::Bytes | Plain::ByteArray, []) => Ok(Item::Bytes(Arc::new([]))),
            (Plain::Bytes | Plain::ByteArray, [Item::Bytes(bytes)]) => Ok(Item::Bytes(bytes.clone())),
            // Protocols up to 2 have no byte strings: Python 3 writes them as text of the code points 0 to 255.
            (Plain::ByteArray | Plain::Encode, [Item::Text(text), Item::Text(encoding)])
                if matches!(&**encoding, "latin1" | "latin-1") =>
            {
                let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
                match bytes {
                    Some(bytes) => Ok(Item::Bytes(bytes.into())),
                    None => bad(self, "a text of the characters 0 to 255 is expected"),
                }
            }
            _ => bad(self, "other arguments are expected"),
        }
    }

    /// The values of the tuple that a call is given.
    pub(super) fn arguments(&self, item: &Item) -> Result<Vec<Item>> {
        match self.tuple(item) {
            Some(values) => self.bounded(values).map(<[_]>::to_vec),
            None => {
                malformed(self.position, format!("the arguments of a call are {}", item.kind(&self.arena)))
            }
        }
    }

    /// `values`, to be copied. Without a limit, short calls could copy one long list again and again.
    fn bounded<'v, T>(&'v self, values: &'v [T]) -> Result<&'v [T]> {
        self.copied.set(self.copied.get().saturating_add(values.len()));
        super::error::check_limit("values copied by one pickle", self.copied.get(), MAX_PICKLE_VALUES)?;
        Ok(values)
    }

    fn bad_call<T>(&self, callee: String, arguments: &[Item], expected: &str) -> Result<T> {
        Err(PickleError::Call {
            position: self.position,
            callee,
            found: self.kinds(arguments),
            expected: expected.to_string(),
        })
    }
}
