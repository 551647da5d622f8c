use std::ops::{Deref, Range};
use std::sync::Arc;

use safetensors::Dtype;

/// A value of a pickled checkpoint: plain data and tensors.
///
/// Values that the pickle uses in several places are shared, so a copy is cheap.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer of at most 64 bits.
    Int(i64),
    /// A longer integer: two's complement, least significant byte first.
    BigInt(Arc<[u8]>),
    /// A floating-point number.
    Float(f64),
    /// A text.
    Text(Arc<str>),
    /// A byte string.
    Bytes(Arc<[u8]>),
    /// A list.
    List(Arc<Sequence>),
    /// A tuple, also `torch.Size`.
    Tuple(Arc<Sequence>),
    /// A set or frozen set, in the order of the pickle.
    Set(Arc<Sequence>),
    /// A dictionary, also an `OrderedDict`.
    Dict(Arc<Dict>),
    /// A tensor or parameter.
    Tensor(Arc<PickledTensor>),
    /// A storage that is saved by itself, as a tensor of one axis.
    Storage(Arc<PickledTensor>),
    /// A class, element type or other constant by its name, for instance `torch.float16`.
    Name(Arc<str>),
    /// An object of one of the few other classes that are known: what it would have been made from.
    Object(Arc<Object>),
}

/// The values of a list, tuple or set.
#[derive(Debug)]
pub struct Sequence {
    pub(super) values: Vec<Value>,
    pub(super) tensors: u64,
}

/// A dictionary in the order of the pickle. A key that comes twice has its first place and its last value, as in Python.
#[derive(Debug)]
pub struct Dict {
    pub(super) entries: Vec<(Value, Value)>,
    /// The positions of the entries whose keys are texts, sorted by text.
    pub(super) by_text: Vec<usize>,
    pub(super) state: Option<Value>,
    pub(super) tensors: u64,
}

/// An object that is not built: its class and what the pickle would build it from.
#[derive(Debug)]
pub struct Object {
    pub(super) class: &'static str,
    pub(super) arguments: Vec<Value>,
    pub(super) state: Option<Value>,
    pub(super) tensors: u64,
}

/// A tensor of a pickled checkpoint: where its values lie and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PickledTensor {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// In elements; as many as the shape has axes.
    pub(super) strides: Vec<usize>,
    /// The bytes from its first element to its last.
    pub(super) span: Range<usize>,
    pub(super) contiguous: bool,
}

impl Value {
    /// The dictionary, if it is one.
    pub fn as_dict(&self) -> Option<&Dict> {
        match self {
            Value::Dict(dict) => Some(dict),
            _ => None,
        }
    }

    /// The values, if it is a list, tuple or set.
    pub fn as_sequence(&self) -> Option<&[Value]> {
        match self {
            Value::List(values) | Value::Tuple(values) | Value::Set(values) => Some(values),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The tensor, if it is one.
    pub fn as_tensor(&self) -> Option<&PickledTensor> {
        match self {
            Value::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// The value under the key `name`, if it is a dictionary that has it.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.as_dict()?.get(name)
    }

    /// How many tensors it has in it, each counted as often as it is used.
    pub fn tensor_count(&self) -> u64 {
        match self {
            Value::List(values) | Value::Tuple(values) | Value::Set(values) => values.tensors,
            Value::Dict(dict) => dict.tensors,
            Value::Object(object) => object.tensors,
            Value::Tensor(_) => 1,
            _ => 0,
        }
    }

    /// A few words on what it is, for messages: `dict of 3`, `int 470000`.
    pub fn summary(&self) -> String {
        match self {
            Value::None => "None".to_string(),
            Value::Bool(value) => if *value { "True" } else { "False" }.to_string(),
            Value::Int(value) => format!("int {value}"),
            Value::BigInt(bytes) => format!("int of {} bytes", bytes.len()),
            Value::Float(value) => format!("float {value}"),
            Value::Text(text) => format!("text \"{}\"", super::error::shown(text)),
            Value::Bytes(bytes) => format!("byte string of {}", bytes.len()),
            Value::List(values) => format!("list of {}", values.len()),
            Value::Tuple(values) => format!("tuple of {}", values.len()),
            Value::Set(values) => format!("set of {}", values.len()),
            Value::Dict(dict) => format!("dict of {}", dict.len()),
            Value::Tensor(tensor) => format!("tensor of shape {:?} ({})", tensor.shape, tensor.dtype),
            Value::Storage(tensor) => format!("storage of {:?} ({})", tensor.shape, tensor.dtype),
            Value::Name(name) => name.to_string(),
            Value::Object(object) => format!("object of class {}", object.class),
        }
    }
}

impl Deref for Sequence {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.values
    }
}

impl Dict {
    /// How many keys it has.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has no key.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value under the text `name`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let key = |position: &usize| self.entries[*position].0.as_text();
        let found = self.by_text.binary_search_by(|position| key(position).cmp(&Some(name))).ok()?;
        Some(&self.entries[self.by_text[found]].1)
    }

    /// Keys and values, in the order of the pickle.
    pub fn iter(&self) -> impl Iterator<Item = (&Value, &Value)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    /// Attributes of the dictionary itself, for instance `_metadata` of a state dict.
    pub fn state(&self) -> Option<&Value> {
        self.state.as_ref()
    }
}

impl Object {
    /// The class, with its module.
    pub fn class(&self) -> &'static str {
        self.class
    }

    /// What its class would have been called with.
    pub fn arguments(&self) -> &[Value] {
        &self.arguments
    }

    /// The state that it would have been given after that.
    pub fn state(&self) -> Option<&Value> {
        self.state.as_ref()
    }
}

impl PickledTensor {
    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The lengths of the axes, outermost first; empty for a single number.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How far apart neighbours along each axis are, in elements.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// How many numbers the tensor has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// How many bytes its values take, row-major.
    pub fn bytes(&self) -> usize {
        self.elements() * self.element_bytes()
    }

    /// Where its values lie, in bytes from the start of the file, row-major and little-endian; `None` when they lie in another
    /// order (a transposed tensor), with gaps or repeated, so that they have to be gathered.
    pub fn range(&self) -> Option<Range<usize>> {
        self.contiguous.then(|| self.span.clone())
    }

    pub(super) fn element_bytes(&self) -> usize {
        super::dtypes::element_bytes(self.dtype)
    }
}
