use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::{Error, Result, ShardIndex, TensorFile, TensorInfo};

/// All tensors of a model: one file, or several shards with an index.
#[derive(Debug)]
pub struct Checkpoint {
    source: String,
    files: Vec<TensorFile>,
    /// The file that each tensor is taken from.
    by_name: HashMap<String, usize>,
}

impl Checkpoint {
    /// Opens a checkpoint on disk: a `.safetensors` file, or an index (`.json`) with its shards beside it.
    ///
    /// # Errors
    /// As [`TensorFile::open`] and [`Checkpoint::from_index`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("json")) {
            return TensorFile::open(path).map(Self::from_file);
        }
        let source = path.display().to_string();
        let json = fs::read(path).map_err(|error| Error::Io { file: source.clone(), source: error })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::from_index(&ShardIndex::parse(source, &json)?, |shard| TensorFile::open(folder.join(shard)))
    }

    /// A checkpoint that is one file.
    pub fn from_file(file: TensorFile) -> Self {
        let by_name = file.tensors().iter().map(|info| (info.name.clone(), 0)).collect();
        Self { source: file.source().to_string(), files: vec![file], by_name }
    }

    /// Opens the shards of `index` with `open_shard`, which is given each file name once.
    ///
    /// Tensors that a shard has and the index does not list belong to the checkpoint as well, as in the reference library.
    ///
    /// # Errors
    /// When a shard cannot be opened, a listed tensor is not in its shard, or an unlisted one is in two shards.
    pub fn from_index(
        index: &ShardIndex,
        mut open_shard: impl FnMut(&str) -> Result<TensorFile>,
    ) -> Result<Self> {
        let shards = index.shards();
        let file = || index.source().to_string();
        let mut files = Vec::with_capacity(shards.len());
        for shard in &shards {
            let opened = open_shard(shard);
            files.push(opened.map_err(|error| Error::Shard {
                file: file(),
                shard: shard.to_string(),
                source: Box::new(error),
            })?);
        }
        let mut by_name = HashMap::new();
        for (tensor, shard) in index.tensors() {
            let holder = shards.binary_search(&shard).ok();
            let position =
                holder.filter(|&position| files[position].get(tensor).is_some()).ok_or_else(|| {
                    Error::NotInShard { file: file(), tensor: tensor.to_string(), shard: shard.to_string() }
                })?;
            by_name.insert(tensor.to_string(), position);
        }
        let mut unlisted: HashMap<String, usize> = HashMap::new();
        for (position, shard) in files.iter().enumerate() {
            for info in shard.tensors().iter().filter(|info| !by_name.contains_key(&info.name)) {
                if let Some(other) = unlisted.insert(info.name.clone(), position) {
                    return Err(Error::InTwoFiles {
                        tensor: info.name.clone(),
                        first: files[other].source().to_string(),
                        second: shard.source().to_string(),
                    });
                }
            }
        }
        by_name.extend(unlisted);
        Ok(Self { source: index.source().to_string(), files, by_name })
    }

    /// The name of the file or of the index, for messages.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The files: one, or the shards sorted by name.
    pub fn files(&self) -> &[TensorFile] {
        &self.files
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there is no tensor at all.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Each tensor with the file it is taken from, file by file in the order of their bytes.
    pub fn tensors(&self) -> impl Iterator<Item = (&TensorFile, &TensorInfo)> {
        self.files.iter().enumerate().flat_map(move |(position, file)| {
            let counts = move |info: &&TensorInfo| self.by_name.get(&info.name) == Some(&position);
            file.tensors().iter().filter(counts).map(move |info| (file, info))
        })
    }

    /// The tensor called `name` with the file it is taken from.
    pub fn get(&self, name: &str) -> Option<(&TensorFile, &TensorInfo)> {
        let file = self.files.get(*self.by_name.get(name)?)?;
        file.get(name).map(|info| (file, info))
    }

    /// The bytes of the tensor called `name`: row-major, little-endian, not aligned to anything.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.get(name)?.0.bytes(name)
    }
}
