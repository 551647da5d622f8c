use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_diffusers_convert::{Checkpoint, Model, ReadOptions, ShardIndex, Source, TensorFile};
use serde::de::DeserializeOwned;

use crate::single_file::SingleFile;
use crate::{Error, Result, StateDict, find_weights};

/// The longest file that is read as a whole. Configs, vocabularies and indices of shards are all smaller; weights are mapped.
const MAX_READ_BYTES: u64 = 64 << 20;

/// Where the files of a model come from: a folder on disk, files in memory, or one file in the original layout, which looks as
/// the folder would that it can be converted to.
///
/// Paths within it are relative and use `/`, as in `unet/config.json`.
#[derive(Debug, Clone)]
pub struct Repository {
    name: String,
    files: Files,
    left_out: Vec<String>,
}

#[derive(Debug, Clone)]
enum Files {
    Folder(PathBuf),
    Memory(&'static [(&'static str, &'static [u8])]),
    Single(Arc<SingleFile>),
}

impl Repository {
    /// The folder at `path`.
    ///
    /// # Errors
    /// When there is no such folder, or `path` is a file.
    pub fn folder(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let name = path.display().to_string();
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => Ok(Self::new(name, Files::Folder(path))),
            Ok(_) => Err(Error::SingleFile { path: name }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::MissingFolder { folder: name })
            }
            Err(source) => Err(Error::Io { file: name, source }),
        }
    }

    /// Files in memory, for a model that is part of the program: path and contents of each.
    pub fn embedded(name: impl Into<String>, files: &'static [(&'static str, &'static [u8])]) -> Self {
        Self::new(name.into(), Files::Memory(files))
    }

    /// The single-file checkpoint at `path`: `.safetensors`, or what `torch.save` wrote (`.ckpt`, `.pt`, `.bin`).
    ///
    /// Nothing is written anywhere: configs, scheduler and tokenizers are made in memory, as `diffuse convert` would write them, and tensors
    /// are read from where they are in the file. A file of one model (a VAE, a text encoder) is a repository whose top is
    /// the model, as its folder would be.
    ///
    /// # Errors
    /// When the file is missing or damaged, or what it holds is not a checkpoint that is known and whole; a file that goes beside a
    /// model (a LoRA, an embedding) is named as that.
    pub fn single_file(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Self> {
        let path = path.as_ref();
        let file = SingleFile::open(path, options)?;
        Ok(Self::new(path.display().to_string(), Files::Single(Arc::new(file))))
    }

    fn new(name: String, files: Files) -> Self {
        Self { name, files, left_out: Vec::new() }
    }

    /// This repository without the `components` of its pipeline, as if model_index.json did not name them: pipelines can do without
    /// some (`safety_checker`, `feature_extractor`).
    pub fn without(mut self, components: &[&str]) -> Self {
        self.left_out.extend(components.iter().map(|component| component.to_string()));
        self
    }

    pub(crate) fn is_without(&self, component: &str) -> bool {
        self.left_out.iter().any(|name| name == component)
    }

    /// What the single file holds, and what was assumed of it; `None` for other repositories.
    pub fn single_file_model(&self) -> Option<&Model> {
        match &self.files {
            Files::Single(file) => Some(file.model()),
            _ => None,
        }
    }

    /// This repository under another name in messages; a downloaded one is called by its hub id, not by its place in the cache.
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The folder's path or the name that it was given, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder on disk, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.files {
            Files::Folder(folder) => Some(folder),
            Files::Memory(_) | Files::Single(_) => None,
        }
    }

    /// How `path` is called in messages: the repository's name and the path.
    pub fn display(&self, path: &str) -> String {
        match &self.files {
            _ if path.is_empty() => self.name.clone(),
            Files::Single(_) => format!("{} ({path})", self.name),
            _ => format!("{}/{path}", self.name.trim_end_matches('/')),
        }
    }

    /// Whether there is a file called `path`.
    pub fn exists(&self, path: &str) -> bool {
        match &self.files {
            Files::Folder(folder) => folder.join(path).is_file(),
            Files::Memory(files) => files.iter().any(|(name, _)| *name == path),
            Files::Single(file) => file.text(path).is_some(),
        }
    }

    /// The names of the files and folders directly in `folder` (`""` for the top), sorted; none where there is no such folder.
    ///
    /// Names that are not UTF-8 are left out: no model file has one.
    pub fn list(&self, folder: &str) -> Vec<String> {
        let names: BTreeSet<String> = match &self.files {
            Files::Folder(root) => fs::read_dir(root.join(folder))
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect(),
            Files::Memory(files) => names_in(folder, files.iter().map(|(path, _)| *path)),
            Files::Single(file) => names_in(folder, file.paths()),
        };
        names.into_iter().collect()
    }

    /// The contents of the file `path`.
    ///
    /// # Errors
    /// When there is no such file, it cannot be read, is no regular file (one that never ends, or waits for a writer), or is
    /// larger than any file beside the weights.
    pub fn read(&self, path: &str) -> Result<Cow<'static, [u8]>> {
        match &self.files {
            Files::Folder(folder) => match read_regular(&folder.join(path)) {
                Ok(bytes) => Ok(Cow::Owned(bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.missing(path)),
                Err(source) => Err(Error::Io { file: self.display(path), source }),
            },
            Files::Memory(_) => self.memory(path).map(Cow::Borrowed),
            Files::Single(file) => {
                let text = file.text(path).ok_or_else(|| self.missing(path))?;
                Ok(Cow::Owned(text.to_vec()))
            }
        }
    }

    /// The JSON file `path`, as a [`serde_json::Value`] or any type that serde reads.
    ///
    /// # Errors
    /// When there is no such file, or it is not JSON of the type's form; the message says the line.
    pub fn read_json<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let bytes = self.read(path)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::Json { file: self.display(path), message: error.to_string() })
    }

    /// The weights of the component in `folder` (`unet`; `""` where the repository is the component), none of them read yet: of its
    /// own files as [`find_weights`] finds them, or in a single file wherever they are.
    ///
    /// # Errors
    /// As [`find_weights`] and [`open_checkpoint`](Self::open_checkpoint).
    pub fn state_dict(&self, folder: &str, variant: Option<&str>) -> Result<StateDict> {
        if let Files::Single(file) = &self.files {
            if let Some(variant) = variant {
                tracing::warn!("{} is a single file, which has no variant {variant}", self.name);
            }
            let component = file.component(folder).ok_or_else(|| Error::MissingWeights {
                folder: self.name.clone(),
                expected: format!("component {folder:?}"),
                advice: format!("it is {}", file.model().title()),
            })?;
            return Ok(StateDict::from_source(component));
        }
        let checkpoint: Arc<dyn Source> =
            Arc::new(self.open_checkpoint(&find_weights(self, folder, variant)?)?);
        Ok(StateDict::from_source(checkpoint))
    }

    /// The checkpoint `path`: a `.safetensors` file, or an index (`.json`) with its shards beside it. On disk it is mapped.
    ///
    /// # Errors
    /// When a file is missing or damaged: see [`candle_diffusers_convert::Error`].
    pub fn open_checkpoint(&self, path: &str) -> Result<Checkpoint> {
        if !self.exists(path) {
            return Err(self.missing(path));
        }
        if !path.ends_with(".json") {
            return self.open_tensor_file(path).map(Checkpoint::from_file).map_err(Error::from);
        }
        let index = ShardIndex::parse(self.display(path), &self.read(path)?)?;
        let folder = path.rsplit_once('/').map(|(folder, _)| format!("{folder}/")).unwrap_or_default();
        Ok(Checkpoint::from_index(&index, |shard| self.open_tensor_file(&format!("{folder}{shard}")))?)
    }

    fn open_tensor_file(&self, path: &str) -> candle_diffusers_convert::Result<TensorFile> {
        match &self.files {
            Files::Folder(folder) => TensorFile::open(folder.join(path)),
            Files::Memory(_) | Files::Single(_) => {
                let not_found = |_| candle_diffusers_convert::Error::Io {
                    file: self.display(path),
                    source: io::ErrorKind::NotFound.into(),
                };
                TensorFile::from_bytes(self.display(path), self.memory(path).map_err(not_found)?)
            }
        }
    }

    fn memory(&self, path: &str) -> Result<&'static [u8]> {
        let Files::Memory(files) = &self.files else { return Err(self.missing(path)) };
        files
            .iter()
            .find(|(name, _)| *name == path)
            .map(|(_, bytes)| *bytes)
            .ok_or_else(|| self.missing(path))
    }

    fn missing(&self, path: &str) -> Error {
        Error::MissingFile { repository: self.name.clone(), path: path.to_string() }
    }
}

/// The names of what is directly in `folder` where the files are called `paths`.
fn names_in<'a>(folder: &str, paths: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let inside = |path: &'a str| match folder {
        "" => Some(path),
        folder => path.strip_prefix(folder)?.strip_prefix('/'),
    };
    paths.filter_map(|path| inside(path)?.split('/').next().map(str::to_string)).collect()
}

fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_READ_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_READ_BYTES {
        return Err(io::Error::other(format!("larger than {MAX_READ_BYTES} bytes, which no such file is")));
    }
    Ok(bytes)
}
