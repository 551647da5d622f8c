//! The stack machine of pickle protocols 0 to 5 (`pickletools.py` of CPython). It builds data and runs nothing.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use super::cursor::Cursor;
use super::error::{PickleError, Result, check_limit, malformed, shown};
use super::globals::Global;
use super::item::{Item, Node};
use super::limits::{MAX_PICKLE_INTEGER_BYTES, MAX_PICKLE_MEMO, MAX_PICKLE_VALUES};
use super::storage::Storages;
use super::{integers, text};

/// What one pickle says.
pub(super) struct Pickled {
    pub(super) root: Item,
    pub(super) arena: Vec<Node>,
    pub(super) storages: Storages,
    /// How many bytes the pickle takes.
    pub(super) consumed: usize,
}

/// Reads the pickle at the start of `bytes`, which lies at byte `base` of the file.
pub(super) fn read(bytes: &[u8], base: usize) -> Result<Pickled> {
    let mut machine = Machine {
        cursor: Cursor::new(bytes, base),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        arena: Vec::new(),
        storages: Storages::default(),
        pushed: 0,
        copied: Cell::new(0),
        position: base,
    };
    loop {
        machine.position = machine.cursor.position();
        let opcode = machine.cursor.byte("an opcode")?;
        if opcode == b'.' {
            let root = machine.pop()?;
            let Machine { arena, storages, cursor, .. } = machine;
            return Ok(Pickled { root, arena, storages, consumed: cursor.consumed() });
        }
        machine.step(opcode)?;
    }
}

pub(super) struct Machine<'a> {
    cursor: Cursor<'a>,
    stack: Vec<Item>,
    /// For each open mark, how long the stack was.
    marks: Vec<usize>,
    memo: HashMap<u64, Item>,
    pub(super) arena: Vec<Node>,
    pub(super) storages: Storages,
    /// How many values were pushed so far, also those that have been taken off since.
    pushed: usize,
    /// How many values calls have copied from one container to another.
    pub(super) copied: Cell<usize>,
    /// Where the current opcode is in the file.
    pub(super) position: usize,
}

impl Machine<'_> {
    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            0x80 => self.protocol(),
            // FRAME: its length only helps who reads from a pipe.
            0x95 => self.cursor.take(8, "a frame's length").map(|_| ()),
            b'(' => self.mark(),
            b'0' => self.discard(),
            b'1' => self.pop_mark().map(|_| ()),
            b'2' => self.duplicate(),
            b'N' | 0x88 | 0x89 | b'I' | b'J' | b'K' | b'M' | b'L' | 0x8a | 0x8b | b'F' | b'G' => {
                self.number(opcode)
            }
            b'S' | b'T' | b'U' | b'V' | b'X' | 0x8c | 0x8d | b'B' | b'C' | 0x8e | 0x96 => self.string(opcode),
            b']' | b'l' | b')' | b't' | 0x85 | 0x86 | 0x87 | b'}' | b'd' | 0x8f | 0x91 => {
                self.container(opcode)
            }
            b'a' | b'e' | b's' | b'u' | 0x90 => self.fill(opcode),
            b'p' | b'q' | b'r' | 0x94 | b'g' | b'h' | b'j' => self.memo(opcode),
            b'c' | 0x93 | b'i' | b'o' | b'R' | 0x81 | 0x92 | b'b' => self.object(opcode),
            b'Q' => {
                let id = self.pop()?;
                let storage = self.persistent(&id)?;
                self.push(storage)
            }
            b'P' => self.refuse(opcode, "a storage named by a line of text, which torch does not write"),
            0x82..=0x84 => self.refuse(opcode, "which takes a class from a registry that is not in the file"),
            0x97 | 0x98 => self.refuse(opcode, "which takes bytes from outside the file"),
            _ => self.refuse(opcode, "which is none that pickle has"),
        }
    }

    fn protocol(&mut self) -> Result<()> {
        match self.cursor.byte("the protocol's number")? {
            0..=5 => Ok(()),
            number => malformed(self.position, format!("protocol {number}, only 0 to 5 are known")),
        }
    }

    fn number(&mut self, opcode: u8) -> Result<()> {
        const WHAT: &str = "a number";
        let position = self.position;
        let item = match opcode {
            b'N' => Item::None,
            0x88 => Item::Bool(true),
            0x89 => Item::Bool(false),
            b'J' => Item::Int(i64::from(i32::from_le_bytes(self.cursor.array(WHAT)?))),
            b'K' => Item::Int(i64::from(self.cursor.byte(WHAT)?)),
            b'M' => Item::Int(i64::from(u16::from_le_bytes(self.cursor.array(WHAT)?))),
            b'I' => integers::from_int_line(position, self.cursor.text_line()?)?,
            b'L' => integers::from_long_line(position, self.cursor.text_line()?)?,
            b'G' => Item::Float(f64::from_be_bytes(self.cursor.array(WHAT)?)),
            b'F' => text::float_line(position, self.cursor.text_line()?)?,
            _ => {
                let length = match opcode {
                    0x8a => usize::from(self.cursor.byte(WHAT)?),
                    _ => match usize::try_from(i32::from_le_bytes(self.cursor.array(WHAT)?)) {
                        Ok(length) => length,
                        Err(_) => return malformed(position, "an integer of a negative length"),
                    },
                };
                check_limit("bytes in one integer", length, MAX_PICKLE_INTEGER_BYTES)?;
                integers::from_bytes(self.cursor.take(length, WHAT)?)
            }
        };
        self.push(item)
    }

    fn string(&mut self, opcode: u8) -> Result<()> {
        const WHAT: &str = "a string's length";
        let position = self.position;
        match opcode {
            b'S' => {
                let line = self.cursor.line()?;
                let item = text::python2(text::unquote(position, line)?);
                return self.push(item);
            }
            b'V' => {
                let text = text::raw_unicode(position, self.cursor.line()?)?;
                return self.push(Item::Text(text.into()));
            }
            _ => {}
        }
        let length = match opcode {
            b'U' | 0x8c | b'C' => u64::from(self.cursor.byte(WHAT)?),
            b'X' | b'B' => u64::from(u32::from_le_bytes(self.cursor.array(WHAT)?)),
            b'T' => match u64::try_from(i32::from_le_bytes(self.cursor.array(WHAT)?)) {
                Ok(length) => length,
                Err(_) => return malformed(position, "a string of a negative length"),
            },
            _ => u64::from_le_bytes(self.cursor.array(WHAT)?),
        };
        let bytes = self.cursor.string(length)?;
        let item = match opcode {
            b'X' | 0x8c | 0x8d => match std::str::from_utf8(bytes) {
                Ok(text) => Item::Text(text.into()),
                Err(_) => return malformed(position, "a text that is not UTF-8"),
            },
            b'T' | b'U' => text::python2(bytes.to_vec()),
            _ => Item::Bytes(bytes.into()),
        };
        self.push(item)
    }

    fn container(&mut self, opcode: u8) -> Result<()> {
        let node = match opcode {
            b']' => Node::List(Vec::new()),
            b'l' => Node::List(self.pop_mark()?),
            b')' => Node::Tuple(Vec::new()),
            b't' => Node::Tuple(self.pop_mark()?),
            0x85..=0x87 => Node::Tuple(self.pop_many(usize::from(opcode - 0x84))?),
            0x8f => Node::Set(Vec::new()),
            0x91 => Node::Set(self.pop_mark()?),
            b'}' => Node::Dict { entries: Vec::new(), state: None },
            _ => {
                let items = self.pop_mark()?;
                Node::Dict { entries: pairs(self.position, items)?, state: None }
            }
        };
        self.push_node(node)
    }

    /// APPEND, APPENDS, SETITEM, SETITEMS, ADDITEMS: puts values into the container below them.
    fn fill(&mut self, opcode: u8) -> Result<()> {
        let position = self.position;
        let items = match opcode {
            b'a' => self.pop_many(1)?,
            b's' => self.pop_many(2)?,
            _ => self.pop_mark()?,
        };
        let Some(Item::Node(target)) = self.stack.last() else {
            return malformed(position, "values are put into something that is no container");
        };
        match (opcode, self.arena.get_mut(*target)) {
            (b's' | b'u', Some(Node::Dict { entries, .. })) => entries.extend(pairs(position, items)?),
            (b'a' | b'e', Some(Node::List(values))) | (0x90, Some(Node::Set(values))) => values.extend(items),
            (_, node) => {
                let kind = node.map_or("nothing", |node| node.kind());
                return malformed(position, format!("values are put into {kind}"));
            }
        }
        Ok(())
    }

    fn memo(&mut self, opcode: u8) -> Result<()> {
        const WHAT: &str = "a memo's number";
        let position = self.position;
        let index = match opcode {
            b'q' | b'h' => u64::from(self.cursor.byte(WHAT)?),
            b'r' | b'j' => u64::from(u32::from_le_bytes(self.cursor.array(WHAT)?)),
            0x94 => self.memo.len() as u64,
            _ => match self.cursor.text_line()?.parse() {
                Ok(index) => index,
                Err(_) => return malformed(position, "a memo's number that is none"),
            },
        };
        if matches!(opcode, b'g' | b'h' | b'j') {
            let Some(item) = self.memo.get(&index).cloned() else {
                return malformed(position, format!("memo {index} is used before it is set"));
            };
            return self.push(item);
        }
        let item = self.top()?.clone();
        self.memo.insert(index, item);
        check_limit("entries in the pickle's memo", self.memo.len(), MAX_PICKLE_MEMO)
    }

    fn object(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            b'c' | 0x93 => {
                let global = if opcode == b'c' { self.global_lines()? } else { self.global_from_stack()? };
                self.push(Item::Global(global))
            }
            b'i' => {
                let global = self.global_lines()?;
                let arguments = self.pop_mark()?;
                let made = self.call(global, arguments)?;
                self.push(made)
            }
            b'o' => {
                let mut arguments = self.pop_mark()?;
                if arguments.is_empty() {
                    return malformed(self.position, "an object without a class");
                }
                let class = arguments.remove(0);
                self.call_item(class, arguments)
            }
            b'b' => {
                let state = self.pop()?;
                self.build(state)
            }
            _ => {
                if opcode == 0x92 {
                    let named = self.pop()?;
                    if !matches!(self.dict_entries(&named), Some([])) {
                        return self.refuse(opcode, "an object made with named arguments");
                    }
                }
                let arguments = self.pop()?;
                let class = self.pop()?;
                let arguments = self.arguments(&arguments)?;
                self.call_item(class, arguments)
            }
        }
    }

    fn call_item(&mut self, class: Item, arguments: Vec<Item>) -> Result<()> {
        let Item::Global(global) = class else {
            return malformed(self.position, format!("{} is called", class.kind(&self.arena)));
        };
        let made = self.call(global, arguments)?;
        self.push(made)
    }

    /// BUILD: gives `state` to the object on top. It is kept as data; tensors have none that matters to their values.
    fn build(&mut self, given: Item) -> Result<()> {
        let position = self.position;
        let top = self.top()?.clone();
        if let Item::Node(node) = top
            && let Some(Node::Dict { state, .. } | Node::Object { state, .. }) = self.arena.get_mut(node)
        {
            *state = Some(Box::new(given));
            return Ok(());
        }
        malformed(position, format!("a state is given to {}", top.kind(&self.arena)))
    }

    fn global_lines(&mut self) -> Result<Global> {
        let module = self.cursor.text_line()?;
        let name = self.cursor.text_line()?;
        self.find(module, name)
    }

    fn global_from_stack(&mut self) -> Result<Global> {
        match <[Item; 2]>::try_from(self.pop_many(2)?) {
            Ok([Item::Text(module), Item::Text(name)]) => self.find(&module, &name),
            _ => malformed(self.position, "a class whose module and name are no texts"),
        }
    }

    fn find(&self, module: &str, name: &str) -> Result<Global> {
        if let Some(global) = Global::find(module, name) {
            return Ok(global);
        }
        let position = self.position;
        let is_torch_type = module == "torch.storage" || module == "torch";
        if is_torch_type && name.ends_with("Storage") {
            let (dtype, known) = (shown(&format!("{module}.{name}")), super::dtypes::known());
            return Err(PickleError::UnknownDtype { position, dtype, known });
        }
        Err(PickleError::Import { position, module: shown(module), name: shown(name) })
    }

    fn refuse(&self, opcode: u8, what: &'static str) -> Result<()> {
        Err(PickleError::Opcode { position: self.position, opcode, what })
    }

    /// Counts one more value.
    fn count(&mut self) -> Result<()> {
        self.pushed += 1;
        check_limit("values in one pickle", self.pushed, MAX_PICKLE_VALUES)
    }

    fn push(&mut self, item: Item) -> Result<()> {
        self.count()?;
        self.stack.push(item);
        Ok(())
    }

    fn push_node(&mut self, node: Node) -> Result<()> {
        let item = self.add(node);
        self.push(item)
    }

    /// Puts a container into the arena.
    pub(super) fn add(&mut self, node: Node) -> Item {
        self.arena.push(node);
        Item::Node(self.arena.len() - 1)
    }

    fn mark(&mut self) -> Result<()> {
        self.count()?;
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn duplicate(&mut self) -> Result<()> {
        let top = self.top()?.clone();
        self.push(top)
    }

    /// Values above the last mark only: what lies below belongs to whoever set the mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<&Item> {
        match self.stack.last() {
            Some(top) if self.stack.len() > self.floor() => Ok(top),
            _ => malformed(self.position, "it takes a value from an empty stack"),
        }
    }

    fn pop(&mut self) -> Result<Item> {
        self.top()?;
        match self.stack.pop() {
            Some(item) => Ok(item),
            None => malformed(self.position, "it takes a value from an empty stack"),
        }
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Item>> {
        match self.stack.len().checked_sub(count) {
            Some(start) if start >= self.floor() => Ok(self.stack.split_off(start)),
            _ => malformed(self.position, "it takes a value from an empty stack"),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Item>> {
        match self.marks.pop() {
            Some(start) => Ok(self.stack.split_off(start)),
            None => malformed(self.position, "it has no mark to go back to"),
        }
    }

    /// POP: takes off a value, or a mark that has nothing above it.
    fn discard(&mut self) -> Result<()> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(|_| ())
    }

    /// The values of a tuple.
    pub(super) fn tuple(&self, item: &Item) -> Option<&[Item]> {
        match item {
            Item::Node(node) => match self.arena.get(*node)? {
                Node::Tuple(values) => Some(values),
                _ => None,
            },
            _ => None,
        }
    }

    /// The values of a list or tuple.
    pub(super) fn sequence(&self, item: &Item) -> Option<&[Item]> {
        match item {
            Item::Node(node) => match self.arena.get(*node)? {
                Node::List(values) | Node::Tuple(values) => Some(values),
                _ => None,
            },
            _ => None,
        }
    }

    /// The entries of a dict.
    pub(super) fn dict_entries(&self, item: &Item) -> Option<&[(Item, Item)]> {
        match item {
            Item::Node(node) => match self.arena.get(*node)? {
                Node::Dict { entries, .. } => Some(entries),
                _ => None,
            },
            _ => None,
        }
    }

    /// The type of each of `items`, for messages.
    pub(super) fn kinds(&self, items: &[Item]) -> String {
        const SHOWN: usize = 12;
        let mut kinds: Vec<&str> = items.iter().take(SHOWN).map(|item| item.kind(&self.arena)).collect();
        if items.len() > SHOWN {
            kinds.push("...");
        }
        if kinds.is_empty() { "nothing".to_string() } else { format!("({})", kinds.join(", ")) }
    }
}

/// The text, if it is one.
pub(super) fn text_of(item: &Item) -> Option<Arc<str>> {
    match item {
        Item::Text(text) => Some(text.clone()),
        _ => None,
    }
}

/// Keys and values that lie one after the other.
fn pairs(position: usize, items: Vec<Item>) -> Result<Vec<(Item, Item)>> {
    if !items.len().is_multiple_of(2) {
        return malformed(position, "a dict has a key without a value");
    }
    let mut pairs = Vec::with_capacity(items.len() / 2);
    let mut items = items.into_iter();
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        pairs.push((key, value));
    }
    Ok(pairs)
}
