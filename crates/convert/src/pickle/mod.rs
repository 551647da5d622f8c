//! Checkpoints that `torch.save` wrote: `.ckpt`, `.pt`, `.pth` and `.bin` files.

mod build;
mod calls;
mod cursor;
mod dtypes;
mod error;
mod file;
mod flatten;
mod gather;
mod globals;
mod integers;
mod item;
mod legacy;
mod limits;
mod machine;
mod numpy;
mod storage;
mod text;
mod value;
mod zip;

pub use error::PickleError;
pub use file::PickledFile;
pub use flatten::Bookkeeping;
pub use limits::{
    MAX_ARCHIVE_ENTRIES, MAX_PICKLE_BYTES, MAX_PICKLE_DEPTH, MAX_PICKLE_EXPANDED, MAX_PICKLE_INTEGER_BYTES,
    MAX_PICKLE_MEMO, MAX_PICKLE_NAME_BYTES, MAX_PICKLE_RANK, MAX_PICKLE_REPEATED_BYTES,
    MAX_PICKLE_STRING_BYTES, MAX_PICKLE_TENSORS, MAX_PICKLE_VALUES,
};
pub use value::{Dict, Object, PickledTensor, Sequence, Value};
