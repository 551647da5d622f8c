//! Which files a folder has.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::metadata::Metadata;
use super::picture_file::has_picture_name;
use crate::error::{Error, Result};

/// The files of a folder of pictures, of which nothing but their names is known.
#[derive(Clone, Debug)]
pub struct Listing {
    pub(super) files: Vec<PathBuf>,
}

/// Where a folder itself says what its pictures show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptionFiles {
    /// In a `metadata.csv` or `metadata.jsonl`.
    Metadata,
    /// In text files that are named as pictures are.
    Texts,
}

impl Listing {
    /// The files in `folder` and its subfolders as [`Dataset::open`](super::Dataset::open) finds them with these
    /// [`left_out`](super::DatasetOptions::left_out), without hidden ones.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn of(folder: impl AsRef<Path>, left_out: &[PathBuf]) -> Result<Self> {
        let folder = folder.as_ref();
        let files = list_files(folder, left_out).map_err(|error| Error::Folder {
            folder: folder.display().to_string(),
            problem: format!("cannot be read: {error}"),
        })?;
        Ok(Self { files })
    }

    /// How many of them are pictures by their names.
    pub fn pictures(&self) -> usize {
        self.files.iter().filter(|file| has_picture_name(file)).count()
    }

    /// Whether there is a `metadata.csv` or `metadata.jsonl`.
    ///
    /// # Errors
    /// When metadata cannot be read.
    pub fn has_metadata(&self) -> Result<bool> {
        Ok(!Metadata::find(&self.files)?.is_empty())
    }

    /// Where captions are, in metadata in this column; none where the folder has none.
    ///
    /// # Errors
    /// When metadata cannot be read.
    pub fn caption_files(&self, column: &str) -> Result<Option<CaptionFiles>> {
        let metadata = Metadata::find(&self.files)?;
        if !metadata.is_empty() {
            let has_column = metadata.iter().any(|metadata| metadata.has(column));
            return Ok(has_column.then_some(CaptionFiles::Metadata));
        }
        let has_text = self.files.iter().any(|file| has_picture_name(file) && caption_file(file).is_file());
        Ok(has_text.then_some(CaptionFiles::Texts))
    }
}

/// Where the caption of a picture is without metadata: `cat.txt` for `cat.png`.
pub(super) fn caption_file(picture: &Path) -> PathBuf {
    picture.with_extension("txt")
}

/// All files below `folder` but hidden ones, sorted. A folder that links lead to is looked into once, by its own name where that is below `folder` too.
fn list_files(folder: &Path, left_out: &[PathBuf]) -> std::io::Result<Vec<PathBuf>> {
    let mut seen: HashSet<PathBuf> =
        left_out.iter().filter_map(|folder| folder.canonicalize().ok()).collect();
    // The folder that is asked for is never left out.
    seen.remove(&folder.canonicalize()?);
    let (mut files, mut folders, mut links) = (Vec::new(), vec![folder.to_path_buf()], BTreeSet::new());
    while let Some(folder) = folders.pop().or_else(|| links.pop_first()) {
        if !seen.insert(folder.canonicalize()?) {
            continue;
        }
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            if !path.is_dir() {
                files.push(path);
            } else if entry.file_type()?.is_symlink() {
                links.insert(path);
            } else {
                folders.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
