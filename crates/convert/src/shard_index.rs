use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::{Error, Result};

/// The index of a checkpoint that is split into several files: `*.safetensors.index.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIndex {
    source: String,
    weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Reads an index; `source` is its name in errors.
    ///
    /// What else it holds (`metadata.total_size`) is not looked at: some tools write it wrongly and nothing depends on it.
    ///
    /// # Errors
    /// When it is not JSON with a `weight_map` of names to names, when it lists no tensor, or when a shard is not a plain file
    /// name. Paths are refused altogether, so that neither `..`, nor an absolute path, nor a linked folder can lead outside.
    pub fn parse(source: impl Into<String>, json: &[u8]) -> Result<Self> {
        let source = source.into();
        let raw: RawIndex = serde_json::from_slice(json)
            .map_err(|e| Error::Index { file: source.clone(), message: e.to_string() })?;
        if raw.weight_map.is_empty() {
            return Err(Error::Index { file: source, message: "its weight_map lists no tensor".to_string() });
        }
        for (tensor, shard) in &raw.weight_map {
            if !is_plain_file_name(shard) {
                return Err(Error::ShardOutsideFolder {
                    file: source,
                    tensor: tensor.clone(),
                    shard: shard.clone(),
                });
            }
        }
        Ok(Self { source, weight_map: raw.weight_map })
    }

    /// The index file's name, for messages.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The file names of the shards, sorted, each once.
    pub fn shards(&self) -> Vec<&str> {
        self.weight_map.values().map(String::as_str).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Each tensor's name with the shard it is in, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &str)> {
        self.weight_map.iter().map(|(tensor, shard)| (tensor.as_str(), shard.as_str()))
    }
}

/// Whether `name` can only mean a file directly in the folder, on every system: no separators, drive letters or dots.
fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0'])
}
