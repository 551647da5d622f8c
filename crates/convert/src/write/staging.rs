//! A place beside the destination, where it is made before it is renamed.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::embedding::FILE_IN_FOLDER as EMBEDDING;
use crate::read_folder::is_diffusers_folder;
use crate::{Error, LoraFile, Result};

/// What the place of a destination `NAME` is called: `.NAME.partial-` and the number of the process.
const MARK: &str = ".partial-";

/// Held by the process that writes; the system lets go of it when that ends, however it ends.
const LOCK: &str = "lock";

/// What is being made.
const CONTENT: &str = "content";

/// What stood at the destination before, while it is replaced.
const REPLACED: &str = "replaced";

/// A folder beside the destination that goes when the value does.
#[derive(Debug)]
pub(crate) struct Staging {
    destination: PathBuf,
    folder: PathBuf,
    is_folder: bool,
    _lock: File,
}

impl Staging {
    /// Makes the place, and removes those that killed processes left for the same destination.
    ///
    /// # Errors
    /// When the destination exists and `overwrite` is not set or it is not of the kind that is written, or nothing can be written
    /// beside it.
    pub(crate) fn begin(destination: &Path, is_folder: bool, overwrite: bool) -> Result<Self> {
        let (parent, name) = parent_and_name(destination)?;
        let prefix = format!(".{}{MARK}", name.to_string_lossy());
        remove_stale(parent, &prefix, destination);
        check_free(destination, is_folder, overwrite)?;
        let folder = parent.join(format!("{prefix}{}", std::process::id()));
        let failed = |source| Error::Write { destination: destination.display().to_string(), source };
        fs::create_dir(&folder).map_err(failed)?;
        let lock = match lock(&folder) {
            Ok(lock) => lock,
            Err(error) => {
                fs::remove_dir_all(&folder).ok();
                return Err(failed(error));
            }
        };
        let staging = Self { destination: destination.to_path_buf(), folder, is_folder, _lock: lock };
        if is_folder {
            fs::create_dir(staging.content()).map_err(failed)?;
        }
        Ok(staging)
    }

    /// Fails where [`Staging::begin`] would because of what is there, for those who work long before they write.
    ///
    /// # Errors
    /// When the destination exists and may not be replaced, or there is no folder for it.
    pub(crate) fn check(destination: &Path, is_folder: bool, overwrite: bool) -> Result<()> {
        parent_and_name(destination)?;
        check_free(destination, is_folder, overwrite)
    }

    /// Where the file that will have the path `path` in the destination is now.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.content() } else { self.content().join(path) }
    }

    /// The destination, for messages.
    pub(crate) fn destination(&self) -> String {
        self.destination.display().to_string()
    }

    /// Makes a file of `bytes` zeros with `start` at its beginning.
    pub(crate) fn create(&self, path: &str, start: &[u8], bytes: u64) -> io::Result<()> {
        let mut file = self.new_file(path)?;
        file.set_len(bytes)?;
        file.write_all(start)
    }

    pub(crate) fn write_text(&self, path: &str, text: &[u8]) -> io::Result<()> {
        self.new_file(path)?.write_all(text)
    }

    pub(crate) fn copy(&self, from: &Path, path: &str) -> io::Result<()> {
        let mut to = self.new_file(path)?;
        io::copy(&mut File::open(from)?, &mut to).map(|_| ())
    }

    /// Waits until all that was made is on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        sync_all(&self.content())
    }

    /// Puts what was made in the place of the destination.
    ///
    /// # Errors
    /// When it cannot be renamed; what stood there before then stands there again.
    pub(crate) fn commit(self) -> Result<()> {
        let failed = |source| Error::Write { destination: self.destination(), source };
        let replaced = self.folder.join(REPLACED);
        // A file is replaced in one step. Of a folder the old one must go first; should the process be killed between the two steps,
        // the next run puts the old one back.
        let has_old = self.is_folder && fs::symlink_metadata(&self.destination).is_ok();
        if has_old {
            fs::rename(&self.destination, &replaced).map_err(failed)?;
        }
        if let Err(error) = fs::rename(self.content(), &self.destination) {
            if has_old {
                fs::rename(&replaced, &self.destination).map_err(failed)?;
            }
            return Err(failed(error));
        }
        Ok(())
    }

    fn content(&self) -> PathBuf {
        self.folder.join(CONTENT)
    }

    fn new_file(&self, path: &str) -> io::Result<File> {
        let path = self.path(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        OpenOptions::new().write(true).create_new(true).open(path)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next run.
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// Waits until the name of `destination` is on the disk.
pub(crate) fn sync_parent(destination: &Path) -> io::Result<()> {
    sync_folder(parent_of(destination))
}

/// Waits until a file, or a folder with all that is in it, is on the disk.
fn sync_all(path: &Path) -> io::Result<()> {
    if !path.is_dir() {
        // Some systems ask for the right to write.
        return OpenOptions::new().write(true).open(path)?.sync_all();
    }
    for entry in fs::read_dir(path)? {
        sync_all(&entry?.path())?;
    }
    sync_folder(path)
}

#[cfg(unix)]
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Elsewhere folders cannot be opened, and names are written with the files.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

/// The folder that the destination will be in, which must be there, and its name in it.
fn parent_and_name(destination: &Path) -> Result<(&Path, &OsStr)> {
    let refuse =
        |message: String| Error::Destination { destination: destination.display().to_string(), message };
    let name = destination.file_name().ok_or_else(|| refuse("it has no name".to_string()))?;
    let parent = parent_of(destination);
    if !parent.is_dir() {
        return Err(refuse(format!("there is no folder {} to put it in", parent.display())));
    }
    Ok((parent, name))
}

fn parent_of(destination: &Path) -> &Path {
    match destination.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn lock(folder: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(folder.join(LOCK))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        // Some network file systems have no locks; then nothing stale is found there either.
        Err(TryLockError::Error(_)) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(io::Error::from(io::ErrorKind::ResourceBusy)),
    }
}

/// Removes the places for `destination` whose processes are gone.
fn remove_stale(parent: &Path, prefix: &str, destination: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_place = entry.file_name().to_string_lossy().starts_with(prefix);
        let folder = entry.path();
        if !is_place || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let Ok(lock) = OpenOptions::new().write(true).create(true).truncate(false).open(folder.join(LOCK))
        else {
            continue;
        };
        if lock.try_lock().is_err() {
            // Its process is at work.
            continue;
        }
        let replaced = folder.join(REPLACED);
        if replaced.exists()
            && fs::symlink_metadata(destination).is_err()
            && fs::rename(replaced, destination).is_err()
        {
            // The only copy of what stood there: better left than lost.
            continue;
        }
        fs::remove_dir_all(&folder).ok();
    }
}

/// Whether the folder has the file of an embedding and nothing else.
fn is_embedding_folder(folder: &Path) -> bool {
    let is_embedding =
        |entry: io::Result<fs::DirEntry>| entry.is_ok_and(|entry| entry.file_name() == EMBEDDING);
    fs::read_dir(folder).is_ok_and(|mut entries| entries.all(is_embedding))
}

/// Fails where something stands at the destination that may not be replaced.
fn check_free(destination: &Path, is_folder: bool, overwrite: bool) -> Result<()> {
    let Ok(metadata) = fs::symlink_metadata(destination) else {
        return Ok(());
    };
    let refuse = |message: &str| {
        Err(Error::Destination {
            destination: destination.display().to_string(),
            message: message.to_string(),
        })
    };
    if !overwrite {
        return refuse("it exists already; choose another name, or overwrite it");
    }
    match (is_folder, metadata.is_dir()) {
        (true, false) => refuse("it is not a folder, and a folder is to be written; choose another name"),
        (false, true) => refuse("it is a folder, and a file is to be written; choose another name"),
        (true, true) => {
            let is_empty = fs::read_dir(destination).is_ok_and(|mut entries| entries.next().is_none());
            let is_ours = is_diffusers_folder(destination)
                || LoraFile::is_folder(destination)
                || is_embedding_folder(destination);
            if is_empty || is_ours {
                return Ok(());
            }
            refuse("it is a folder with something else than a model in it, which is not overwritten")
        }
        (false, false) => Ok(()),
    }
}
