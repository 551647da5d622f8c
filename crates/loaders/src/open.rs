use std::path::Path;

use crate::{Download, Error, Hub, HubId, ReadOptions, Repository, Result};

impl Repository {
    /// The model called `name`: a folder, a single-file checkpoint, or else the id of a pipeline on the hub (`owner/name`, `owner/name@revision`), which is downloaded
    /// into the cache as the environment says ([`Hub::from_env`]). `progress` is told how far a download is.
    ///
    /// # Errors
    /// When there is no such folder and the name can be no id, and as [`single_file`](Self::single_file) and [`Hub::pipeline`].
    pub fn open(
        name: impl AsRef<Path>,
        variant: Option<&str>,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<Self> {
        Self::open_without(name, variant, &[], progress)
    }

    /// As [`open`](Self::open), [without](Self::without) the components that are `left_out`, which are not downloaded either.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_without(
        name: impl AsRef<Path>,
        variant: Option<&str>,
        left_out: &[&str],
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<Self> {
        let opened =
            open_by(name.as_ref(), |id| Hub::from_env().without(left_out).pipeline(id, variant, progress));
        Ok(opened?.without(left_out))
    }

    /// As [`open`](Self::open), a repository of one model alone, such as a ControlNet.
    ///
    /// # Errors
    /// When there is no such folder and the name can be no id, and as [`single_file`](Self::single_file) and [`Hub::component`].
    pub fn open_component(
        name: impl AsRef<Path>,
        variant: Option<&str>,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<Self> {
        open_by(name.as_ref(), |id| Hub::from_env().component(id, variant, progress))
    }
}

/// What is called `name` on disk, or else on the hub.
fn open_by(name: &Path, from_hub: impl FnOnce(&HubId) -> Result<Repository>) -> Result<Repository> {
    match Repository::folder(name) {
        Err(Error::SingleFile { .. }) => Repository::single_file(name, &ReadOptions::default()),
        Err(Error::MissingFolder { folder }) => match hub_id(name) {
            Some(id) => from_hub(&id).map_err(no_folder_either),
            None => Err(Error::MissingFolder { folder }),
        },
        result => result,
    }
}

/// The hub id that `name` is, unless it is plainly meant as a path.
fn hub_id(name: &Path) -> Option<HubId> {
    let text = name.to_str()?;
    let is_file =
        [".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".json"].iter().any(|ending| text.ends_with(ending));
    if is_file || text.ends_with('/') { None } else { text.parse().ok() }
}

/// Says that the name was looked for on disk first: a folder's name that is misspelled looks like an id.
fn no_folder_either(error: Error) -> Error {
    const NO_FOLDER: &str = "there is no such file or folder";
    match error {
        Error::Hub { id, message } => Error::Hub { id, message: format!("{NO_FOLDER}, and {message}") },
        Error::NotInCache { id, cache, missing, reason } => {
            Error::NotInCache { id, cache, missing, reason: format!("{reason}, and {NO_FOLDER}") }
        }
        other => other,
    }
}
