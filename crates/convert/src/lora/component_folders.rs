//! A folder with a folder of PEFT's for each model.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Value};

use super::LoraComponent;
use super::adapter_config::{CONFIG_FILE, METADATA_KEY, read_fields};
use crate::{Error, Inventory, Result, Source, open_file};

/// Their tensors, with the model's name and a dot before their names.
pub(super) struct ComponentFolders {
    name: String,
    parts: Vec<(String, Box<dyn Source>)>,
    metadata: BTreeMap<String, String>,
}

impl ComponentFolders {
    /// Opens the folders in `folder` that hold one of `weight_files`; `None` where none does.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(super) fn open(folder: &Path, weight_files: &[&str]) -> Result<Option<Self>> {
        let (mut parts, mut fields, mut metadata) = (Vec::new(), Map::new(), BTreeMap::new());
        for component in LoraComponent::ALL {
            let own = folder.join(component.folder());
            let Some(path) = weight_files.iter().map(|name| own.join(name)).find(|path| path.is_file())
            else {
                continue;
            };
            let source = open_file(&path)?;
            metadata.extend(source.metadata());
            let config = own.join(CONFIG_FILE);
            if fs::exists(&config)
                .map_err(|source| Error::Io { file: config.display().to_string(), source })?
            {
                let config = read_fields(source.name(), &config)?;
                let prefixed = |(field, value)| (format!("{}.{field}", component.folder()), value);
                fields.extend(config.into_iter().map(prefixed));
            }
            parts.push((format!("{}.", component.folder()), source));
        }
        if parts.is_empty() {
            return Ok(None);
        }
        if !fields.is_empty() {
            metadata.insert(METADATA_KEY.to_string(), Value::Object(fields).to_string());
        }
        Ok(Some(Self { name: folder.display().to_string(), parts, metadata }))
    }

    fn find<'t>(&self, tensor: &'t str) -> Option<(&dyn Source, &'t str)> {
        self.parts
            .iter()
            .find_map(|(prefix, source)| Some((source.as_ref(), tensor.strip_prefix(prefix.as_str())?)))
    }
}

impl Source for ComponentFolders {
    fn name(&self) -> &str {
        &self.name
    }

    fn inventory(&self) -> Inventory {
        let mut all = Vec::new();
        for (prefix, source) in &self.parts {
            let inventory = source.inventory();
            let entry = |name: &str| Some((format!("{prefix}{name}"), inventory.get(name)?.clone()));
            all.extend(inventory.names().filter_map(entry));
        }
        all.into_iter().collect()
    }

    fn bytes(&self, tensor: &str) -> Result<Cow<'_, [u8]>> {
        let (source, name) = self.find(tensor).ok_or_else(|| Error::not_readable(&self.name, tensor))?;
        source.bytes(name)
    }

    fn position(&self, tensor: &str) -> Option<(&Path, Range<u64>)> {
        let (source, name) = self.find(tensor)?;
        source.position(name)
    }

    fn release(&self, tensor: &str) {
        if let Some((source, name)) = self.find(tensor) {
            source.release(name);
        }
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        self.metadata.clone()
    }
}
