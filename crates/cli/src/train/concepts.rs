//! The things that are learned: one by flags, or several by a list.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::TrainArguments;

/// A thing, and its class where that is kept. The names are those of diffusers' lists.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Concept {
    pub(super) instance_data_dir: PathBuf,
    pub(super) instance_prompt: String,
    pub(super) class_data_dir: Option<PathBuf>,
    pub(super) class_prompt: Option<String>,
}

impl Concept {
    /// The folder of the class and what it shows.
    pub(super) fn class(&self) -> Option<(&Path, &str)> {
        Some((self.class_data_dir.as_deref()?, self.class_prompt.as_deref()?))
    }
}

/// The folders of the classes that are kept, and what those show.
pub(super) fn classes<'a>(
    arguments: &TrainArguments,
    concepts: &'a [Concept],
) -> impl Iterator<Item = (&'a Path, &'a str)> {
    let are_kept = arguments.thing.with_prior_preservation;
    concepts.iter().filter_map(Concept::class).filter(move |_| are_kept)
}

/// The things that a recipe learns; none where it learns from captions.
pub(super) fn read(arguments: &TrainArguments) -> Result<Vec<Concept>> {
    let thing = &arguments.thing;
    let Some(file) = &thing.concepts_list else {
        let (Some(folder), Some(prompt)) = (&thing.instance_data_dir, &thing.instance_prompt) else {
            return Ok(Vec::new());
        };
        return Ok(vec![Concept {
            instance_data_dir: folder.clone(),
            instance_prompt: prompt.clone(),
            class_data_dir: thing.class_data_dir.clone(),
            class_prompt: thing.class_prompt.clone(),
        }]);
    };
    let name = format!("--concepts-list {}", file.display());
    let text = fs::read(file).with_context(|| name.clone())?;
    let concepts: Vec<Concept> = serde_json::from_slice(&text).with_context(|| {
        format!("{name} is no list of concepts, each with instance_data_dir and instance_prompt")
    })?;
    ensure!(!concepts.is_empty(), "{name} is an empty list, expected a concept or more");
    for (number, concept) in (1..).zip(&concepts) {
        ensure!(
            !thing.with_prior_preservation || concept.class().is_some(),
            "{name}: concept {number} lacks class_data_dir or class_prompt, which --with-prior-preservation needs"
        );
    }
    Ok(concepts)
}

/// What the prompt is called that a flag gives: one of a list is a field there.
pub(super) fn prompt_name(arguments: &TrainArguments, flag: &str) -> String {
    match arguments.thing.concepts_list {
        Some(_) => format!("{} of --concepts-list", flag.trim_start_matches('-').replace('-', "_")),
        None => flag.to_string(),
    }
}
