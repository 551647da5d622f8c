//! The directory of a zip archive whose entries are stored as they are (APPNOTE.TXT 6.3.10, sections 4.3 and 4.4).

use std::collections::HashMap;
use std::ops::Range;

use super::error::{PickleError, Result, check_limit, shown};
use super::limits::MAX_ARCHIVE_ENTRIES;

/// The first bytes of every archive that torch writes: those of its first entry.
pub(super) const SIGNATURE: &[u8] = b"PK\x03\x04";
const DIRECTORY_SIGNATURE: &[u8] = b"PK\x01\x02";
const END_SIGNATURE: &[u8] = b"PK\x05\x06";
const END64_SIGNATURE: &[u8] = b"PK\x06\x06";
const LOCATOR64_SIGNATURE: &[u8] = b"PK\x06\x07";

const LOCAL_BYTES: usize = 30;
const DIRECTORY_BYTES: usize = 46;
const END_BYTES: usize = 22;
const END64_BYTES: usize = 56;
const LOCATOR64_BYTES: usize = 20;

/// Bit 0 of an entry's flags.
const ENCRYPTED: u16 = 1;
/// The header of the extra field that holds sizes and offsets beyond 32 bits.
const EXTRA_ZIP64: u16 = 1;

/// Where each entry's bytes lie in the file.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    entries: HashMap<&'a str, Range<usize>>,
}

struct Directory {
    range: Range<usize>,
    entries: u64,
}

struct Entry<'a> {
    name: &'a str,
    local: u64,
    size: u64,
}

impl<'a> Archive<'a> {
    /// Reads the directory of the archive `bytes`.
    ///
    /// An entry that comes out of here is stored as it is, lies inside `bytes`, and shares no byte with another.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let directory = find_directory(bytes)?;
        check_limit("entries in the zip archive", saturate(directory.entries), MAX_ARCHIVE_ENTRIES)?;
        let mut rest = &bytes[directory.range.clone()];
        let mut entries = HashMap::new();
        let mut spans: Vec<(Range<usize>, &str)> = Vec::new();
        for _ in 0..directory.entries {
            let (entry, after) = read_entry(rest)?;
            rest = after;
            let span = locate(bytes, &entry, directory.range.start)?;
            let data = span.end - saturate(entry.size)..span.end;
            spans.push((span, entry.name));
            if entries.insert(entry.name, data).is_some() {
                return damaged(format!("it has two entries called {}", shown(entry.name)));
            }
        }
        spans.sort_by_key(|(span, _)| (span.start, span.end));
        for pair in spans.windows(2) {
            if pair[1].0.start < pair[0].0.end {
                let (first, second) = (shown(pair[0].1), shown(pair[1].1));
                return Err(PickleError::EntriesOverlap { first, second });
            }
        }
        Ok(Self { entries })
    }

    /// Where the bytes of the entry called `name` lie in the file.
    pub(super) fn get(&self, name: &str) -> Option<Range<usize>> {
        self.entries.get(name).cloned()
    }

    /// All entries, in no order.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.entries.keys().copied()
    }
}

/// Finds the end record, which lies within 64 KiB of the file's end, and with it the directory.
fn find_directory(bytes: &[u8]) -> Result<Directory> {
    let earliest = bytes.len().saturating_sub(END_BYTES + usize::from(u16::MAX));
    let is_end = |&position: &usize| {
        let record = &bytes[position..];
        record.starts_with(END_SIGNATURE)
            && u16_at(record, 20).is_some_and(|comment| END_BYTES + usize::from(comment) == record.len())
    };
    let Some(end) = (earliest..bytes.len()).rev().find(is_end) else {
        return damaged("its directory, which is at the end of the file, is missing: the file is cut short");
    };
    let record = &bytes[end..];
    let (Some(entries), Some(size), Some(offset)) =
        (u16_at(record, 10), u32_at(record, 12), u32_at(record, 16))
    else {
        return damaged("its end record is cut short");
    };
    let (mut entries, mut size, mut offset, mut limit) =
        (u64::from(entries), u64::from(size), u64::from(offset), end);
    let locator = end.checked_sub(LOCATOR64_BYTES);
    if let Some(locator) = locator.filter(|&at| bytes[at..].starts_with(LOCATOR64_SIGNATURE)) {
        let Some(record) = u64_at(bytes, locator + 8)
            .and_then(|at| usize::try_from(at).ok())
            .filter(|&at| at.checked_add(END64_BYTES).is_some_and(|end| end <= locator))
            .map(|at| (at, &bytes[at..]))
            .filter(|(_, record)| record.starts_with(END64_SIGNATURE))
        else {
            return damaged("its 64-bit end record is not where it should be");
        };
        let (at, record) = record;
        limit = at;
        let field = |at| u64_at(record, at).unwrap_or(u64::MAX);
        (entries, size, offset) = (field(32), field(40), field(48));
    }
    let range = offset.checked_add(size).filter(|&end| end <= limit as u64);
    let Some(range_end) = range else {
        return damaged(format!("its directory of {size} bytes at byte {offset} does not lie in the file"));
    };
    // Both fit in a usize: they are at most `limit`.
    Ok(Directory { range: offset as usize..range_end as usize, entries })
}

/// Reads the directory's record at the start of `bytes`; also what follows it.
fn read_entry(bytes: &[u8]) -> Result<(Entry<'_>, &[u8])> {
    let record = bytes.get(..DIRECTORY_BYTES).filter(|record| record.starts_with(DIRECTORY_SIGNATURE));
    let Some(record) = record else { return damaged("its directory has fewer entries than it says") };
    let short = |at| u16_at(record, at).unwrap_or(0);
    let long = |at| u32_at(record, at).unwrap_or(0);
    let lengths = [short(28), short(30), short(32)].map(usize::from);
    let end = DIRECTORY_BYTES + lengths.iter().sum::<usize>();
    let Some(variable) = bytes.get(DIRECTORY_BYTES..end) else {
        return damaged("its directory is cut short");
    };
    let (name, rest) = variable.split_at(lengths[0]);
    let extra = &rest[..lengths[1]];
    let Ok(name) = std::str::from_utf8(name) else {
        return damaged("the name of an entry is not text");
    };
    let (flags, method) = (short(8), short(10));
    if flags & ENCRYPTED != 0 {
        return Err(PickleError::Packed { entry: shown(name), how: "encrypted".to_string() });
    }
    if method != 0 {
        let how = format!("compressed (method {method})");
        return Err(PickleError::Packed { entry: shown(name), how });
    }
    let (packed, size, local) = wide_fields(name, long(20), long(24), long(42), extra)?;
    if packed != size {
        return damaged(format!(
            "its entry {} has {packed} bytes in the file and {size} outside",
            shown(name)
        ));
    }
    Ok((Entry { name, local, size }, &bytes[end..]))
}

/// The sizes and the offset of an entry, each from the 64-bit extra field where its 32 bits are all ones.
fn wide_fields(name: &str, packed: u32, size: u32, local: u32, extra: &[u8]) -> Result<(u64, u64, u64)> {
    let mut wide = zip64_extra(extra);
    let mut field = |value: u32| -> Result<u64> {
        if value != u32::MAX {
            return Ok(u64::from(value));
        }
        let Some((first, rest)) = wide.split_first_chunk::<8>() else {
            return damaged(format!("its entry {} lacks the 64-bit sizes", shown(name)));
        };
        wide = rest;
        Ok(u64::from_le_bytes(*first))
    };
    // The order in the extra field: size, packed size, offset.
    let size = field(size)?;
    let packed = field(packed)?;
    let local = field(local)?;
    Ok((packed, size, local))
}

fn zip64_extra(mut extra: &[u8]) -> &[u8] {
    while let (Some(id), Some(length)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let Some(body) = extra.get(4..4 + usize::from(length)) else { break };
        if id == EXTRA_ZIP64 {
            return body;
        }
        extra = &extra[4 + usize::from(length)..];
    }
    &[]
}

/// The bytes from an entry's local header to the end of its data, which must end where the directory begins.
fn locate(bytes: &[u8], entry: &Entry<'_>, directory: usize) -> Result<Range<usize>> {
    let start = saturate(entry.local);
    let header = start.checked_add(LOCAL_BYTES).and_then(|end| bytes.get(start..end));
    let header = header.filter(|header| header.starts_with(SIGNATURE));
    let lengths = header.and_then(|header| Some((u16_at(header, 26)?, u16_at(header, 28)?)));
    let Some((name_length, extra_length)) = lengths else {
        return damaged(format!("its entry {} is not at byte {}", shown(entry.name), entry.local));
    };
    let name_start = start + LOCAL_BYTES;
    if bytes.get(name_start..name_start + usize::from(name_length)) != Some(entry.name.as_bytes()) {
        return damaged(format!("its entry {} has another name at byte {start}", shown(entry.name)));
    }
    let data = name_start + usize::from(name_length) + usize::from(extra_length);
    match (data as u64).checked_add(entry.size) {
        Some(end) if end <= directory as u64 => Ok(start..end as usize),
        _ => damaged(format!(
            "its entry {} of {} bytes at byte {data} does not end before the directory, which begins at byte {directory}",
            shown(entry.name),
            entry.size
        )),
    }
}

fn damaged<T>(what: impl Into<String>) -> Result<T> {
    Err(PickleError::Archive { what: what.into() })
}

/// `value` in this machine's size; what does not fit becomes the largest, which no length check lets through.
fn saturate(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}
