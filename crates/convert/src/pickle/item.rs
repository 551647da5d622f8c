use std::sync::Arc;

use super::globals::Global;
use super::storage::RawTensor;

/// A value on the pickle's stack. Containers lie in an arena, since the pickle changes them after it has used them.
#[derive(Debug, Clone)]
pub(super) enum Item {
    None,
    Bool(bool),
    Int(i64),
    BigInt(Arc<[u8]>),
    Float(f64),
    Text(Arc<str>),
    Bytes(Arc<[u8]>),
    Global(Global),
    /// An index into the arena.
    Node(usize),
    /// An index into [`Storages`](super::storage::Storages).
    Storage(usize),
    Tensor(Arc<RawTensor>),
}

/// A container in the arena.
#[derive(Debug)]
pub(super) enum Node {
    List(Vec<Item>),
    Tuple(Vec<Item>),
    Set(Vec<Item>),
    Dict { entries: Vec<(Item, Item)>, state: Option<Box<Item>> },
    Object { class: &'static str, arguments: Vec<Item>, state: Option<Box<Item>> },
}

impl Item {
    /// Its type, for messages.
    pub(super) fn kind(&self, arena: &[Node]) -> &'static str {
        match self {
            Item::None => "None",
            Item::Bool(_) => "a bool",
            Item::Int(_) | Item::BigInt(_) => "an int",
            Item::Float(_) => "a float",
            Item::Text(_) => "a text",
            Item::Bytes(_) => "a byte string",
            Item::Global(_) => "a class",
            Item::Storage(_) => "a storage",
            Item::Tensor(_) => "a tensor",
            Item::Node(node) => arena.get(*node).map_or("nothing", Node::kind),
        }
    }
}

impl Node {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Node::List(_) => "a list",
            Node::Tuple(_) => "a tuple",
            Node::Set(_) => "a set",
            Node::Dict { .. } => "a dict",
            Node::Object { .. } => "an object",
        }
    }
}
