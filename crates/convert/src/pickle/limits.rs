//! How much a pickled checkpoint may hold. Real ones stay far below; each limit is checked before memory is taken.

/// The longest pickle that is read, in bytes. The pickle of a checkpoint holds names and shapes only: Stable Diffusion's takes
/// under a megabyte, with the optimizer's state three.
pub const MAX_PICKLE_BYTES: usize = 64 << 20;

/// The most values (numbers, texts, containers, tensors) that one pickle may push on its stack: those of some 25,000 tensors. SDXL
/// with averaged weights and the optimizer's state has a third of that. Empty dicts, the largest, then take under 300 MB.
pub const MAX_PICKLE_VALUES: usize = 750_000;

/// The most entries of a pickle's memo, its table of values that are used again.
pub const MAX_PICKLE_MEMO: usize = 500_000;

/// How deep containers may lie in each other.
pub const MAX_PICKLE_DEPTH: usize = 100;

/// The most values there may be once those that are used in several places are counted in each.
pub const MAX_PICKLE_EXPANDED: u64 = 2_000_000;

/// The longest text or byte string, in bytes.
pub const MAX_PICKLE_STRING_BYTES: usize = 16 << 20;

/// The longest integer, in bytes.
pub const MAX_PICKLE_INTEGER_BYTES: usize = 1024;

/// The most tensors that a file may name, and the most other values that may lie among them.
pub const MAX_PICKLE_TENSORS: usize = 100_000;

/// The longest name of a tensor, in bytes, counting the containers it lies in.
pub const MAX_PICKLE_NAME_BYTES: usize = 1024;

/// The most axes of a tensor: torch's own limit.
pub const MAX_PICKLE_RANK: usize = 64;

/// The most bytes that a tensor may take whose elements repeat those of a smaller storage (`expand` in torch).
pub const MAX_PICKLE_REPEATED_BYTES: usize = 64 << 20;

/// The most entries of the zip archive.
pub const MAX_ARCHIVE_ENTRIES: usize = 100_000;
