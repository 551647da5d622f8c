//! Whether two repositories have the same model, so that it need not be loaded twice.

use serde_json::{Map, Value};

use crate::weights::join;
use crate::{Repository, Result};

/// Fields of a config that say who wrote it and with what, not what it is of.
const BOOKKEEPING: [&str; 4] =
    ["_name_or_path", "_diffusers_version", "transformers_version", "_commit_hash"];

/// Whether the component in `folder` (`text_encoder_2`) is the same in both: config, and bytes of all weights.
///
/// Weights are compared up to the first difference, which takes the time of reading them once.
///
/// # Errors
/// When files are missing or damaged.
pub fn is_same_component(
    one: &Repository,
    other: &Repository,
    folder: &str,
    variant: Option<&str>,
) -> Result<bool> {
    let config = |repository: &Repository| -> Result<Map<String, Value>> {
        let mut config: Map<String, Value> = repository.read_json(&join(folder, "config.json"))?;
        config.retain(|field, _| !BOOKKEEPING.contains(&field.as_str()));
        Ok(config)
    };
    if config(one)? != config(other)? {
        return Ok(false);
    }
    let [one, other] = [one.state_dict(folder, variant)?, other.state_dict(folder, variant)?];
    if one.inventory() != other.inventory() {
        return Ok(false);
    }
    for name in one.inventory().names() {
        let is_same = one.source().bytes(name)? == other.source().bytes(name)?;
        one.source().release(name);
        other.source().release(name);
        if !is_same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the files directly in `folder` (`tokenizer_2`) are the same in both, name by name and byte by byte.
///
/// # Errors
/// When a file cannot be read.
pub fn has_same_files(one: &Repository, other: &Repository, folder: &str) -> Result<bool> {
    let names = one.list(folder);
    if names != other.list(folder) {
        return Ok(false);
    }
    for name in names {
        let path = join(folder, &name);
        if one.read(&path)? != other.read(&path)? {
            return Ok(false);
        }
    }
    Ok(true)
}
