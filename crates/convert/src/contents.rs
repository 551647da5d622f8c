//! The bytes of a file: mapped, or in memory already.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use crate::{Error, Result};

/// All bytes of a file.
pub(crate) enum Contents {
    Mapped(Mmap),
    Memory(Cow<'static, [u8]>),
}

impl Contents {
    /// Maps the file at `path`.
    ///
    /// It must not be changed or cut short while this value lives; replacing it by renaming another over it is fine. Whoever makes
    /// this public says so.
    ///
    /// # Errors
    /// When it cannot be opened or is no file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { file: path.display().to_string(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(Error::NotAFile { file: path.display().to_string() });
        }
        if metadata.len() == 0 {
            // An empty file cannot be mapped on every system.
            return Ok(Self::Memory(Cow::Borrowed(&[])));
        }
        // SAFETY: a map's bytes must not change under the references handed out. The map is private and read-only, so nothing in
        // this process writes to it; what another process might do to the file is excluded by the contract in the docs above, as for
        // every program that maps its weights.
        unsafe { Mmap::map(&file) }.map(Self::Mapped).map_err(io)
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }

    /// Says that these bytes will hardly be looked at again, so that memory held for them can be used otherwise. Does nothing for
    /// files in memory and on systems other than Linux.
    pub(crate) fn release(&self, range: &Range<usize>) {
        if let Self::Mapped(map) = self {
            release_pages(map, range);
        }
    }
}

#[cfg(target_os = "linux")]
fn release_pages(map: &Mmap, range: &Range<usize>) {
    use memmap2::UncheckedAdvice;
    // SAFETY: MADV_DONTNEED throws away what was written to private pages; this map is read-only, so there is nothing of
    // that kind, and a page that another thread still reads comes back from the file with the same bytes.
    let released = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
    // It is advice: where the system does not take it, only memory use is higher.
    released.ok();
}

#[cfg(not(target_os = "linux"))]
fn release_pages(_: &Mmap, _: &Range<usize>) {}
