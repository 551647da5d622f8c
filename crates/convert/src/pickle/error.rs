use safetensors::Dtype;

/// What can be wrong with a pickled checkpoint; [`Error::Pickle`](crate::Error::Pickle) puts the file's name before it.
///
/// Positions are bytes from the start of the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PickleError {
    /// The file is neither of torch's formats.
    #[error(
        "not a PyTorch checkpoint: {found}; expected the zip archive that torch.save writes, or the pickles that it wrote \
         before torch 1.6"
    )]
    NotTorch {
        /// What the file is or looks like.
        found: String,
    },
    /// One of torch's formats that is not read.
    #[error("{format} is not read; {advice}")]
    Format {
        /// The format.
        format: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// The zip archive is damaged.
    #[error("the zip archive is damaged: {what}; download or copy the file again")]
    Archive {
        /// What is wrong.
        what: String,
    },
    /// An entry of the archive is compressed, which torch never does, or encrypted.
    #[error(
        "the archive's entry {entry} is {how}; torch.save stores entries as they are: unpack the archive and pack it \
         without compression, or load it in torch and save it again"
    )]
    Packed {
        /// The entry.
        entry: String,
        /// `compressed (method 8)` or `encrypted`.
        how: String,
    },
    /// Two entries of the archive share bytes.
    #[error("the zip archive is damaged: its entries {first} and {second} overlap")]
    EntriesOverlap {
        /// The entry that begins first.
        first: String,
        /// The other.
        second: String,
    },
    /// Values are stored most significant byte first.
    #[error("its values are stored in the byte order {found:?}; only \"little\" is read")]
    ByteOrder {
        /// What the entry `byteorder` says.
        found: String,
    },
    /// The pickle names a function or class that is not among the few that are known.
    #[error(
        "byte {position}: the pickle imports {name} from {module}, which is not part of a checkpoint's weights; nothing \
         of it was run. If you trust the file, load it in Python and save its tensors as safetensors"
    )]
    Import {
        /// Where.
        position: usize,
        /// The module.
        module: String,
        /// The function or class.
        name: String,
    },
    /// A known function is called with other arguments than torch gives it, or something that cannot be called is called.
    #[error("byte {position}: the pickle calls {callee} with {found}; {expected}")]
    Call {
        /// Where.
        position: usize,
        /// What is called.
        callee: String,
        /// The arguments.
        found: String,
        /// What it takes.
        expected: String,
    },
    /// An opcode that no checkpoint has.
    #[error("byte {position}: the pickle has the opcode {opcode:#04x}, {what}")]
    Opcode {
        /// Where.
        position: usize,
        /// The opcode.
        opcode: u8,
        /// Why it is refused.
        what: &'static str,
    },
    /// The pickle contradicts itself.
    #[error("byte {position}: the pickle is damaged: {what}")]
    Malformed {
        /// Where.
        position: usize,
        /// What is wrong.
        what: String,
    },
    /// The file ends in the middle.
    #[error(
        "cut short: {needed} bytes are needed at byte {position} for {what}, but {available} are there; download or copy \
         the file again"
    )]
    Truncated {
        /// Where.
        position: usize,
        /// What should be there.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes there.
        available: u64,
    },
    /// More of something than any checkpoint has.
    #[error("{found} {what}, at most {limit} are read: this is not a checkpoint that torch wrote")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much there is (or at least is).
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// A container that contains itself.
    #[error("the pickle has a {what} that contains itself")]
    Recursive {
        /// The container's type.
        what: &'static str,
    },
    /// An element type that is not read.
    #[error("byte {position}: {dtype} is an element type that is not read; known are {known}")]
    UnknownDtype {
        /// Where.
        position: usize,
        /// The type's name in torch.
        dtype: String,
        /// The names that are known.
        known: String,
    },
    /// The storage of a tensor is not in the file.
    #[error(
        "the values of storage {storage} should be in {place}, which is not there; the file is incomplete"
    )]
    StorageMissing {
        /// The storage's key.
        storage: String,
        /// Where it should be.
        place: String,
    },
    /// A storage is shorter than the pickle says, or its size is said in two ways.
    #[error("storage {storage} should have {expected} bytes, but has {found}")]
    StorageSize {
        /// The storage's key.
        storage: String,
        /// Bytes that the pickle says.
        expected: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A tensor reaches past the end of its storage, or its size is beyond counting.
    #[error(
        "byte {position}: a tensor of shape {shape:?} ({dtype}), strides {strides:?}, offset {offset} does not lie in its \
         storage {storage} of {bytes} bytes"
    )]
    TensorOutside {
        /// Where.
        position: usize,
        /// The tensor's shape.
        shape: Vec<i64>,
        /// Its element type.
        dtype: Dtype,
        /// Its strides, in elements.
        strides: Vec<i64>,
        /// Its first element.
        offset: i64,
        /// The storage's key.
        storage: String,
        /// The storage's size.
        bytes: u64,
    },
    /// Two tensors come out with the same name.
    #[error("there are two tensors called {tensor}")]
    Duplicate {
        /// The name.
        tensor: String,
    },
}

/// A `Result` whose error is [`PickleError`].
pub(super) type Result<T, E = PickleError> = std::result::Result<T, E>;

/// `text` as it may stand in a message: on one line, and not longer than a line.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 120;
    let mut shown: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push_str("...");
    }
    shown
}

/// An error of [`PickleError::Malformed`].
pub(super) fn malformed<T>(position: usize, what: impl Into<String>) -> Result<T> {
    Err(PickleError::Malformed { position, what: what.into() })
}

/// Fails when `found` is more than `limit`.
pub(super) fn check_limit(what: &'static str, found: usize, limit: usize) -> Result<()> {
    if found > limit {
        return Err(PickleError::Limit { what, found: found as u64, limit: limit as u64 });
    }
    Ok(())
}
