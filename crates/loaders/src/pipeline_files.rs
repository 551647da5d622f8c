//! Which files of a repository a pipeline needs.

use std::collections::BTreeSet;

use crate::weights::{check_variant_name, choose_weights, join};
use crate::{Error, MODEL_INDEX, ModelIndex, Result};

/// What a tokenizer may consist of; the first two are its vocabulary.
const TOKENIZER_FILES: [&str; 6] = [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// The files that `index` asks for, out of all `files` of the repository called `name`: model_index.json, and of each component that is
/// loaded its config and the weights of `variant`. Shards are not in it, only their index.
///
/// # Errors
/// When a component lacks its config or its weights, or no component has weights of the variant.
pub(crate) fn pipeline_files(
    name: &str,
    files: &BTreeSet<String>,
    index: &ModelIndex,
    variant: Option<&str>,
) -> Result<Vec<String>> {
    check_variant_name(variant)?;
    let required = |path: String| match files.contains(&path) {
        true => Ok(path),
        false => Err(Error::MissingFile { repository: name.to_string(), path }),
    };
    let mut needed = vec![MODEL_INDEX.to_string()];
    let mut has_variant = false;
    for component in index.components.keys().map(String::as_str) {
        match component {
            "scheduler" => {
                needed.push(required(join(folder_of(files, component), "scheduler_config.json"))?);
            }
            "tokenizer" | "tokenizer_2" => {
                let paths = TOKENIZER_FILES.map(|file| join(component, file));
                needed.extend(paths.into_iter().filter(|path| files.contains(path)));
            }
            // What a safety checker sees pictures through.
            "feature_extractor" if index.components.contains_key("safety_checker") => {
                needed.push(required(join(component, "preprocessor_config.json"))?)
            }
            "unet" | "vae" | "text_encoder" | "text_encoder_2" | "safety_checker" | "vqvae" => {
                let folder = folder_of(files, component);
                needed.push(required(join(folder, "config.json"))?);
                let weights = choose_weights(&join(name, folder), &names_in(files, folder), variant)?;
                has_variant |= weights.of_variant;
                needed.push(join(folder, &weights.name));
            }
            // Not loaded: image encoders and the like.
            _ => {}
        }
    }
    match variant.filter(|_| !has_variant) {
        Some(variant) => Err(Error::MissingVariant {
            repository: name.to_string(),
            variant: variant.to_string(),
            advice: "leave the variant out to load the plain files".to_string(),
        }),
        None => Ok(needed),
    }
}

/// The files that loading the model at the top of the repository called `name` needs: its config and the weights of `variant`, as
/// [`pipeline_files`] gives them.
///
/// # Errors
/// When the config or the weights are not there.
pub(crate) fn component_files(
    name: &str,
    files: &BTreeSet<String>,
    variant: Option<&str>,
) -> Result<Vec<String>> {
    check_variant_name(variant)?;
    Ok(vec![component_config(name, files)?, choose_weights(name, &names_in(files, ""), variant)?.name])
}

/// The config at the top of the repository called `name`.
pub(crate) fn component_config(name: &str, files: &BTreeSet<String>) -> Result<String> {
    let path = "config.json".to_string();
    if files.contains(&path) {
        Ok(path)
    } else {
        Err(Error::MissingFile { repository: name.to_string(), path })
    }
}

/// The folder of a component: its own, or the top where that has none and is the model itself, as in the oldest unconditional ones.
fn folder_of<'a>(files: &BTreeSet<String>, component: &'a str) -> &'a str {
    let has_own = files.iter().any(|path| path.starts_with(&format!("{component}/")));
    let at_top = match component {
        "unet" => files.contains("config.json"),
        "scheduler" => files.contains("scheduler_config.json"),
        _ => false,
    };
    if at_top && !has_own { "" } else { component }
}

/// The names of the files directly in `folder`.
fn names_in(files: &BTreeSet<String>, folder: &str) -> Vec<String> {
    let inside = |path: &String| match folder {
        "" => Some(path.to_string()),
        _ => path.strip_prefix(folder)?.strip_prefix('/').map(str::to_string),
    };
    files.iter().filter_map(inside).filter(|name| !name.contains('/')).collect()
}
