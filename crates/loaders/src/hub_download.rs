//! Single files from the hub into its cache.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiError, ApiRepo, Metadata};
use hf_hub::{CacheRepo, Repo};

use crate::Download;

/// How often a broken connection is taken up again.
const ATTEMPTS: usize = 5;

/// Downloads files of one commit, one after the other.
pub(crate) struct Downloader<'a> {
    api: Api,
    repository: ApiRepo,
    cache: CacheRepo,
    /// The commit and its folder in the cache.
    commit: &'a str,
    folder: PathBuf,
    progress: &'a mut dyn FnMut(Download<'_>),
    done: usize,
    total: usize,
}

impl<'a> Downloader<'a> {
    pub(crate) fn new(
        api: Api,
        repository: Repo,
        cache: CacheRepo,
        commit: &'a str,
        progress: &'a mut dyn FnMut(Download<'_>),
    ) -> Self {
        let folder = cache.pointer_path(commit);
        Self { repository: api.repo(repository), api, cache, commit, folder, progress, done: 0, total: 0 }
    }

    /// Sees to it that all `files` are in the commit's folder.
    pub(crate) fn fetch(&mut self, files: &[String]) -> Result<(), ApiError> {
        let missing: Vec<&String> = files.iter().filter(|file| !self.folder.join(file).is_file()).collect();
        self.total += missing.len();
        for file in missing {
            self.fetch_one(file)?;
            self.done += 1;
        }
        Ok(())
    }

    fn fetch_one(&mut self, file: &str) -> Result<(), ApiError> {
        let mut attempt = 1;
        loop {
            match self.try_fetch(file) {
                Err(error) if attempt < ATTEMPTS && is_transient(&error) => attempt += 1,
                result => return result,
            }
        }
    }

    fn try_fetch(&mut self, file: &str) -> Result<(), ApiError> {
        let metadata = self.metadata(file)?;
        let blob = self.cache.blob_path(metadata.etag());
        let size = metadata.size() as u64;
        let pointer = self.folder.join(file);
        if file_size(&blob) == Some(size) {
            // Another revision has the same file.
            return Ok(link(&blob, &pointer)?);
        }
        let partial = blob.with_extension("part");
        if file_size(&partial).is_some_and(|partial| partial >= size) {
            // There is nothing left to ask for, and the hub answers that with an error.
            fs::remove_file(&partial)?;
        }
        let progress = FileProgress {
            report: &mut *self.progress,
            file,
            size: 0,
            received: 0,
            number: self.done + 1,
            files: self.total,
        };
        self.repository.download_with_progress(file, progress)?;
        // A server that closes the connection early without having said a length looks like the end of the file.
        if file_size(&blob) != Some(size) {
            fs::remove_file(&pointer)?;
            fs::remove_file(&blob)?;
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
    }

    /// What the hub says of the file. The place in the cache is made of it, so it must not be a path.
    fn metadata(&self, file: &str) -> Result<Metadata, ApiError> {
        let metadata = self.api.metadata(&self.repository.url(file))?;
        let is_word =
            |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if !is_word(metadata.etag()) {
            return Err(ApiError::InvalidHeader("etag"));
        }
        if metadata.commit_hash() != self.commit {
            return Err(ApiError::InvalidHeader("x-repo-commit"));
        }
        Ok(metadata)
    }
}

/// Whether trying again may help: the connection broke, or a half file in the cache was no use.
fn is_transient(error: &ApiError) -> bool {
    match error {
        ApiError::IoError(_) | ApiError::InvalidResume => true,
        ApiError::RequestError(error) => !matches!(**error, ureq::Error::StatusCode(status) if status < 500),
        _ => false,
    }
}

fn file_size(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len())
}

/// Makes `pointer` stand for `blob`, by a relative link as the Python library does, or a copy where there are no links.
fn link(blob: &Path, pointer: &Path) -> io::Result<()> {
    let (Some(folder), Some(name)) = (pointer.parent(), blob.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    fs::create_dir_all(folder)?;
    #[cfg(unix)]
    {
        // Up from the file's folder within the commit, the commit and `snapshots`, to `blobs` beside it.
        let snapshots = blob.parent().and_then(Path::parent).map(|repository| repository.join("snapshots"));
        let depth = snapshots
            .and_then(|snapshots| folder.strip_prefix(snapshots).ok().map(|path| path.components().count()));
        let depth = depth.ok_or(io::ErrorKind::InvalidInput)?;
        let target: PathBuf =
            std::iter::repeat_n("..", depth + 1).collect::<PathBuf>().join("blobs").join(name);
        std::os::unix::fs::symlink(target, pointer)
    }
    #[cfg(not(unix))]
    {
        let _ = name;
        fs::copy(blob, pointer).map(drop)
    }
}

/// Hands the hub library's calls on as [`Download`]s.
struct FileProgress<'a> {
    report: &'a mut dyn FnMut(Download<'_>),
    file: &'a str,
    size: u64,
    received: u64,
    number: usize,
    files: usize,
}

impl FileProgress<'_> {
    fn tell(&mut self) {
        let Self { file, size, received, number, files, .. } = *self;
        (self.report)(Download { file, received, size, number, files });
    }
}

impl Progress for FileProgress<'_> {
    fn init(&mut self, size: usize, _: &str) {
        self.size = size as u64;
        self.received = 0;
    }

    fn update(&mut self, size: usize) {
        self.received += size as u64;
        self.tell();
    }

    fn finish(&mut self) {}
}
