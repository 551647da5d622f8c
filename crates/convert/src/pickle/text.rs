//! The strings and numbers that protocol 0 writes as lines of text.

use super::error::{Result, malformed, shown};
use super::item::Item;

/// A string of Python 2, which was bytes: a text if it can be one.
pub(super) fn python2(bytes: Vec<u8>) -> Item {
    match String::from_utf8(bytes) {
        Ok(text) => Item::Text(text.into()),
        Err(error) => Item::Bytes(error.into_bytes().into()),
    }
}

/// The argument of FLOAT.
pub(super) fn float_line(position: usize, line: &str) -> Result<Item> {
    match line.parse() {
        Ok(value) => Ok(Item::Float(value)),
        Err(_) => malformed(position, format!("{:?} is no number", shown(line))),
    }
}

/// The argument of STRING: a literal of Python with its quotes and escapes.
pub(super) fn unquote(position: usize, line: &[u8]) -> Result<Vec<u8>> {
    let inner = match line {
        [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
        _ => return malformed(position, "a string without quotes"),
    };
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let [escape, after @ ..] = rest else { return malformed(position, "a string ends in an escape") };
        rest = after;
        bytes.push(match escape {
            b'\\' | b'\'' | b'"' => *escape,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'a' => 7,
            b'b' => 8,
            b'f' => 12,
            b'v' => 11,
            b'x' => match hexadecimal(after, 2) {
                Some(value) => {
                    rest = &after[2..];
                    // Two digits are at most 255.
                    value as u8
                }
                None => return malformed(position, "a string has an escape that is none"),
            },
            _ => return malformed(position, "a string has an escape that is none"),
        });
    }
    Ok(bytes)
}

/// The argument of UNICODE: Latin-1 with `\uXXXX` and `\UXXXXXXXX` (Python's codec raw-unicode-escape).
pub(super) fn raw_unicode(position: usize, line: &[u8]) -> Result<String> {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let [first, after @ ..] = rest {
        let digits = match after {
            [b'u', ..] if *first == b'\\' => 4,
            [b'U', ..] if *first == b'\\' => 8,
            _ => 0,
        };
        if digits == 0 {
            text.push(char::from(*first));
            rest = after;
            continue;
        }
        let Some(character) = hexadecimal(&after[1..], digits).and_then(char::from_u32) else {
            return malformed(position, "a text has an escape that is no character");
        };
        text.push(character);
        rest = &after[1 + digits..];
    }
    Ok(text)
}

/// The value of the first `count` bytes, all hexadecimal digits.
fn hexadecimal(bytes: &[u8], count: usize) -> Option<u32> {
    let digit = |value: u32, byte: &u8| {
        char::from(*byte).to_digit(16).and_then(|digit| value.checked_mul(16)?.checked_add(digit))
    };
    bytes.get(..count)?.iter().try_fold(0, digit)
}
