use super::error::{PickleError, Result, check_limit, malformed};
use super::limits::{MAX_PICKLE_BYTES, MAX_PICKLE_STRING_BYTES};

/// A place in one pickle of a file. Lengths are checked before anything is taken.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    /// Where `bytes` begins in the file.
    base: usize,
    /// Whether the file goes on after `bytes`, so that the end of `bytes` is a limit and not the end of the file.
    limited: bool,
}

impl<'a> Cursor<'a> {
    /// A cursor at the first of `bytes`, which begin at byte `base` of the file.
    pub(super) fn new(bytes: &'a [u8], base: usize) -> Self {
        let limited = bytes.len() > MAX_PICKLE_BYTES;
        Self { bytes: &bytes[..bytes.len().min(MAX_PICKLE_BYTES)], position: 0, base, limited }
    }

    /// The current byte, counted from the start of the file.
    pub(super) fn position(&self) -> usize {
        self.base + self.position
    }

    /// How many bytes of the pickle have been read.
    pub(super) fn consumed(&self) -> usize {
        self.position
    }

    /// The next `count` bytes.
    pub(super) fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.position..];
        let Some(taken) = rest.get(..count) else { return Err(self.end(count as u64, what)) };
        self.position += count;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    /// The next byte.
    pub(super) fn byte(&mut self, what: &str) -> Result<u8> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    /// A text or byte string of `count` bytes.
    pub(super) fn string(&mut self, count: u64) -> Result<&'a [u8]> {
        let limit = MAX_PICKLE_STRING_BYTES;
        if count > limit as u64 {
            let what = "bytes in one string";
            return Err(PickleError::Limit { what, found: count, limit: limit as u64 });
        }
        self.take(count as usize, "a string")
    }

    /// The rest of the line, without its end.
    pub(super) fn line(&mut self) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.position..];
        let window = &rest[..rest.len().min(MAX_PICKLE_STRING_BYTES + 1)];
        let Some(length) = window.iter().position(|&byte| byte == b'\n') else {
            check_limit("bytes in one line", window.len(), MAX_PICKLE_STRING_BYTES)?;
            return Err(self.end(rest.len() as u64 + 1, "a line"));
        };
        self.position += length + 1;
        Ok(&rest[..length])
    }

    /// The rest of the line as text.
    pub(super) fn text_line(&mut self) -> Result<&'a str> {
        let position = self.position();
        let Ok(line) = std::str::from_utf8(self.line()?) else {
            return malformed(position, "a line is not text");
        };
        Ok(line)
    }

    fn end(&self, needed: u64, what: &str) -> PickleError {
        if self.limited {
            let limit = MAX_PICKLE_BYTES as u64;
            return PickleError::Limit { what: "bytes and more in one pickle", found: limit, limit };
        }
        PickleError::Truncated {
            position: self.position(),
            what: what.to_string(),
            needed,
            available: (self.bytes.len() - self.position) as u64,
        }
    }
}
