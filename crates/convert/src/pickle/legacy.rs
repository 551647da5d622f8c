//! The format of torch before 1.6 (`_legacy_save` in `torch/serialization.py`): five pickles one after the other (a magic
//! number, the format's version, the machine's sizes, the object, the storages' keys), then each storage's values, with
//! their number before them.

use super::error::{PickleError, Result, malformed, shown};
use super::item::{Item, Node};
use super::machine::{self, Pickled};

/// `MAGIC_NUMBER` in `torch/serialization.py`, least significant byte first.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// `PROTOCOL_VERSION` in `torch/serialization.py`.
const VERSION: i64 = 1001;
/// The longest pickle of the magic number: protocol 0 writes it as decimal.
const MAGIC_PICKLE_BYTES: usize = 64;

/// Whether `bytes` begin as a file of this format does.
pub(super) fn is_legacy(bytes: &[u8]) -> bool {
    let start = &bytes[..bytes.len().min(MAGIC_PICKLE_BYTES)];
    machine::read(start, 0).is_ok_and(|pickled| is_magic(&pickled.root))
}

/// Reads the file `bytes`. The values of all storages have their place when this returns.
pub(super) fn read(bytes: &[u8]) -> Result<Pickled> {
    let mut position = 0;
    let mut next = || {
        let pickled = machine::read(&bytes[position..], position)?;
        let start = position;
        position += pickled.consumed;
        Ok((pickled, start))
    };
    next()?;
    let (version, start) = next()?;
    match version.root {
        Item::Int(VERSION) => {}
        Item::Int(other) => {
            return malformed(start, format!("the format's version is {other}, not {VERSION}"));
        }
        other => return malformed(start, format!("the format's version is {}", other.kind(&version.arena))),
    }
    let (sizes, start) = next()?;
    check_sizes(&sizes, start)?;
    let (mut object, _) = next()?;
    let (keys, start) = next()?;
    place_storages(bytes, position, &mut object, &keys, start)?;
    Ok(object)
}

fn is_magic(item: &Item) -> bool {
    matches!(item, Item::BigInt(bytes) if **bytes == MAGIC)
}

/// The machine's sizes only matter in one point: torch writes values least significant byte first on every machine, so what it
/// says of its own order is not looked at, but they must be a dict as torch writes it.
fn check_sizes(sizes: &Pickled, start: usize) -> Result<()> {
    match &sizes.root {
        Item::Node(node) if matches!(sizes.arena.get(*node), Some(Node::Dict { .. })) => Ok(()),
        other => {
            malformed(start, format!("the machine's sizes are {}, not a dict", other.kind(&sizes.arena)))
        }
    }
}

/// Finds the place of each storage: they follow each other in the order of their keys.
fn place_storages(
    bytes: &[u8],
    mut position: usize,
    object: &mut Pickled,
    keys: &Pickled,
    keys_start: usize,
) -> Result<()> {
    let list = match &keys.root {
        Item::Node(node) => keys.arena.get(*node),
        _ => None,
    };
    let Some(Node::List(list)) = list else {
        return malformed(
            keys_start,
            format!("the storages' keys are {}, not a list", keys.root.kind(&keys.arena)),
        );
    };
    let mut placed = vec![false; object.storages.roots().len()];
    for key in list {
        let Item::Text(key) = key else {
            return malformed(keys_start, format!("a storage's key is {}", key.kind(&keys.arena)));
        };
        let Some(root) = object.storages.find(key) else {
            return malformed(
                keys_start,
                format!("storage {} is listed, but no tensor speaks of it", shown(key)),
            );
        };
        if std::mem::replace(&mut placed[root], true) {
            return malformed(keys_start, format!("storage {} is listed twice", shown(key)));
        }
        let storage = &object.storages.roots()[root];
        let expected = storage.bytes;
        let item = super::dtypes::element_bytes(storage.dtype) as i64;
        let Some(count) = bytes.get(position..).and_then(<[u8]>::first_chunk) else {
            return Err(cut(bytes, position, key, 8));
        };
        let count = i64::from_le_bytes(*count);
        position += 8;
        if count.checked_mul(item).and_then(|bytes| usize::try_from(bytes).ok()) != Some(expected) {
            return malformed(
                position - 8,
                format!("storage {} should have {expected} bytes, but has {count} elements", shown(key)),
            );
        }
        let end = position.checked_add(expected).filter(|&end| end <= bytes.len());
        let Some(end) = end else { return Err(cut(bytes, position, key, expected)) };
        object.storages.put(root, position..end)?;
        position = end;
    }
    match placed.iter().position(|placed| !placed) {
        Some(root) => {
            let storage = shown(&object.storages.roots()[root].key);
            Err(PickleError::StorageMissing { storage, place: "the list after the pickle".to_string() })
        }
        None => Ok(()),
    }
}

fn cut(bytes: &[u8], position: usize, key: &str, needed: usize) -> PickleError {
    PickleError::Truncated {
        position,
        what: format!("storage {}", shown(key)),
        needed: needed as u64,
        available: bytes.len().saturating_sub(position) as u64,
    }
}
