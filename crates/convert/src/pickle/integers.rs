use super::error::{Result, check_limit, malformed, shown};
use super::item::Item;

/// The most decimal digits of an integer that is written as text: those of 127 bits.
const MAX_DIGITS: usize = 39;

/// An integer in two's complement, least significant byte first.
pub(super) fn from_bytes(bytes: &[u8]) -> Item {
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let filler = if negative { 0xff } else { 0 };
    let mut length = bytes.len();
    // A last byte that only repeats the sign says nothing.
    while length > 1 && bytes[length - 1] == filler && (bytes[length - 2] & 0x80 != 0) == negative {
        length -= 1;
    }
    if length > 8 {
        return Item::BigInt(bytes[..length].into());
    }
    let mut value = [filler; 8];
    value[..length].copy_from_slice(&bytes[..length]);
    Item::Int(i64::from_le_bytes(value))
}

/// The argument of INT, by which protocol 0 also writes True (`01`) and False (`00`).
pub(super) fn from_int_line(position: usize, line: &str) -> Result<Item> {
    match line {
        "00" => Ok(Item::Bool(false)),
        "01" => Ok(Item::Bool(true)),
        line => from_decimal(position, line),
    }
}

/// The argument of LONG, which ends with an L.
pub(super) fn from_long_line(position: usize, line: &str) -> Result<Item> {
    from_decimal(position, line.strip_suffix('L').unwrap_or(line))
}

fn from_decimal(position: usize, line: &str) -> Result<Item> {
    check_limit("characters in a decimal integer", line.len(), MAX_DIGITS + 1)?;
    match line.parse::<i128>() {
        Ok(value) => Ok(from_bytes(&value.to_le_bytes())),
        Err(_) => malformed(position, format!("{:?} is no integer", shown(line))),
    }
}
