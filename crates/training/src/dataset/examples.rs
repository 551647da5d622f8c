//! Which pictures a folder has, and their captions.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::listing::{Listing, caption_file};
use super::metadata::Metadata;
use super::picture_file::{has_picture_name, picture_size};
use super::{DatasetOptions, Warning};
use crate::error::{Error, Result};

/// Names that an error message lists at most.
const LISTED: usize = 10;

/// Where captions come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Captions {
    /// This column of `metadata.csv` or `metadata.jsonl`, in the folder or in subfolders; without such a file, a text file beside each picture (`cat.txt` for `cat.png`).
    Folder {
        /// The column (`caption_column`).
        column: String,
    },
    /// The same for all pictures (`instance_prompt`).
    Prompt(String),
    /// Each time one of these: the templates of textual inversion.
    OneOf(Vec<String>),
    /// There are none.
    None,
}

impl Default for Captions {
    fn default() -> Self {
        Self::Folder { column: "text".to_string() }
    }
}

/// A picture that a run trains on.
#[derive(Clone, Debug)]
pub(super) struct Example {
    pub(super) picture: PathBuf,
    /// One is chosen each time; none where pictures have no captions.
    pub(super) captions: Vec<String>,
    /// The pictures of `picture_columns`.
    pub(super) others: Vec<PathBuf>,
    /// Width and height.
    pub(super) size: [u32; 2],
    /// Width and height that it is cut to.
    pub(super) target: [u32; 2],
}

/// What a folder has to train on.
pub(super) struct Found {
    /// With their sizes, in the order of the metadata, or else of their names.
    pub(super) examples: Vec<Example>,
    /// How many pictures are there that the metadata does not name.
    pub(super) unlisted: usize,
}

/// The pictures of a folder, and how many it has beside them.
pub(super) fn find(folder: &Path, options: &DatasetOptions, warnings: &mut Vec<Warning>) -> Result<Found> {
    let wrong = |problem: String| Error::Folder { folder: folder.display().to_string(), problem };
    let files = Listing::of(folder, &options.left_out)?.files;
    if files.is_empty() {
        return Err(wrong("is empty; put PNG, JPEG or WebP pictures there".to_string()));
    }
    let is_mask = |file: &Path| {
        options.masks_beside && file.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with(".mask"))
    };
    let pictures: Vec<&PathBuf> =
        files.iter().filter(|file| has_picture_name(file) && !is_mask(file)).collect();
    if pictures.is_empty() {
        let names = listed(files.iter().map(|file| name_in(folder, file)));
        return Err(wrong(format!("has no PNG, JPEG or WebP picture; there are {names}")));
    }
    let needs_metadata = names_pictures(options) || matches!(options.captions, Captions::Folder { .. });
    let metadata = if needs_metadata { Metadata::find(&files)? } else { Vec::new() };
    let examples = if !metadata.is_empty() {
        let examples = metadata.iter().map(|metadata| from_metadata(metadata, options));
        examples.collect::<Result<Vec<_>>>()?.concat()
    } else if options.picture_columns.is_empty() {
        from_files(folder, &pictures, options)?
    } else {
        let columns = options.picture_columns.join(", ");
        return Err(wrong(format!(
            "has no metadata.csv or metadata.jsonl with {columns}; write one, with a row for each picture"
        )));
    };
    let unlisted = if metadata.is_empty() { 0 } else { count_unlisted(&pictures, &metadata) };
    let examples = with_sizes(folder, examples, options.skip_broken, warnings)?;
    Ok(Found { examples, unlisted })
}

/// Whether metadata say which pictures there are, wherever captions come from: by more columns than one, or by one that has not its usual name.
fn names_pictures(options: &DatasetOptions) -> bool {
    !options.picture_columns.is_empty() || !["file_name", "image"].contains(&options.picture_column.as_str())
}

/// How many of the pictures no row of the metadata names, in whichever column.
fn count_unlisted(pictures: &[&PathBuf], metadata: &[Metadata]) -> usize {
    let place = |picture: &Path| picture.canonicalize().ok();
    let listed: HashSet<PathBuf> =
        metadata.iter().flat_map(Metadata::named_pictures).filter_map(|picture| place(&picture)).collect();
    pictures.iter().filter(|picture| place(picture).is_some_and(|place| !listed.contains(&place))).count()
}

fn from_metadata(metadata: &Metadata, options: &DatasetOptions) -> Result<Vec<Example>> {
    let folder = metadata.folder();
    let caption_column = match &options.captions {
        Captions::Folder { column } => Some(column.as_str()),
        Captions::Prompt(_) | Captions::OneOf(_) | Captions::None => None,
    };
    if let Some(column) = caption_column {
        metadata.check_column(column)?;
    }
    let picture_column = metadata.picture_column(&options.picture_column)?;
    let other_columns = options.picture_columns.iter().map(|column| metadata.picture_column(column));
    let other_columns = other_columns.collect::<Result<Vec<_>>>()?;
    let mut examples = Vec::new();
    for row in metadata.rows() {
        let captions = match &options.captions {
            Captions::Folder { column } => metadata.texts(row, column)?,
            Captions::Prompt(prompt) => vec![prompt.clone()],
            Captions::OneOf(prompts) => prompts.clone(),
            Captions::None => Vec::new(),
        };
        let path = |column: &str| Ok(folder.join(metadata.text(row, column)?));
        let others = other_columns.iter().map(|column| path(column)).collect::<Result<_>>()?;
        let picture = path(&picture_column)?;
        examples.push(Example { picture, captions, others, size: [0; 2], target: [0; 2] });
    }
    let named = examples.iter().flat_map(|example| [&example.picture].into_iter().chain(&example.others));
    let missing: Vec<String> =
        named.filter(|path| !path.is_file()).map(|path| name_in(folder, path)).collect();
    let file = metadata.file().display().to_string();
    if !missing.is_empty() {
        let problem = format!("names pictures that are not there: {}", listed(missing.into_iter()));
        return Err(Error::Metadata { file, problem });
    }
    if examples.is_empty() {
        return Err(Error::Metadata { file, problem: "names no picture".to_string() });
    }
    Ok(examples)
}

fn from_files(folder: &Path, pictures: &[&PathBuf], options: &DatasetOptions) -> Result<Vec<Example>> {
    let captions_of = |picture: &Path| -> Result<Option<Vec<String>>> {
        match &options.captions {
            Captions::Prompt(prompt) => Ok(Some(vec![prompt.clone()])),
            Captions::OneOf(prompts) => Ok(Some(prompts.clone())),
            Captions::None => Ok(Some(Vec::new())),
            Captions::Folder { .. } => {
                let file = caption_file(picture);
                if !file.is_file() {
                    return Ok(None);
                }
                let text = fs::read_to_string(&file).map_err(|error| Error::Metadata {
                    file: file.display().to_string(),
                    problem: format!("cannot be read: {error}"),
                })?;
                Ok(Some(vec![text.trim().to_string()]))
            }
        }
    };
    let (mut examples, mut without) = (Vec::new(), Vec::new());
    for &picture in pictures {
        match captions_of(picture)? {
            Some(captions) => {
                let others = if options.masks_beside { vec![mask_of(picture)] } else { Vec::new() };
                let picture = picture.clone();
                examples.push(Example { picture, captions, others, size: [0; 2], target: [0; 2] });
            }
            None => without.push(name_in(folder, picture)),
        }
    }
    let masks = examples.iter().flat_map(|example| &example.others);
    let missing: Vec<String> =
        masks.filter(|mask| !mask.is_file()).map(|mask| name_in(folder, mask)).collect();
    if !missing.is_empty() {
        let problem = format!("lacks masks: {}", listed(missing.into_iter()));
        return Err(Error::Folder { folder: folder.display().to_string(), problem });
    }
    if without.is_empty() {
        return Ok(examples);
    }
    let advice = match examples.is_empty() {
        true => "write them, as cat.txt for cat.png",
        false => "write them, or remove those of the others where one prompt is given for all",
    };
    let problem = format!(
        "has no metadata.csv or metadata.jsonl, and no captions in text files for {}; {advice}",
        listed(without.into_iter())
    );
    Err(Error::Folder { folder: folder.display().to_string(), problem })
}

/// `cat.mask.png` for `cat.png` and for `cat.src.jpg`.
fn mask_of(picture: &Path) -> PathBuf {
    let stem = picture.file_stem().unwrap_or_default().to_string_lossy();
    picture.with_file_name(format!("{}.mask.png", stem.strip_suffix(".src").unwrap_or(&stem)))
}

/// Reads the size of each picture; leaves out those that cannot be read where that is wanted.
fn with_sizes(
    folder: &Path,
    mut examples: Vec<Example>,
    skip_broken: bool,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Example>> {
    let sizes: Vec<Result<[u32; 2]>> = examples.par_iter().map(size_of_whole_example).collect();
    let problems: Vec<String> =
        sizes.iter().filter_map(|size| Some(size.as_ref().err()?.to_string())).collect();
    if problems.len() == examples.len() {
        let problem = format!("has no picture that can be read: {}", listed(problems.into_iter()));
        return Err(Error::Folder { folder: folder.display().to_string(), problem });
    }
    if !problems.is_empty() && !skip_broken {
        let problem = format!(
            "has pictures that cannot be read (remove them, or leave them out by skip_broken): {}",
            listed(problems.into_iter())
        );
        return Err(Error::Folder { folder: folder.display().to_string(), problem });
    }
    let mut sizes = sizes.into_iter();
    examples.retain_mut(|example| match sizes.next() {
        Some(Ok(size)) => {
            example.size = size;
            true
        }
        Some(Err(error)) => {
            warnings.push(skipped(&example.picture, &error));
            false
        }
        None => false,
    });
    Ok(examples)
}

fn size_of_whole_example(example: &Example) -> Result<[u32; 2]> {
    for other in &example.others {
        picture_size(other)?;
    }
    picture_size(&example.picture)
}

/// The warning that a picture is left out for this reason.
pub(super) fn skipped(picture: &Path, error: &Error) -> Warning {
    let (file, problem) = (picture.display().to_string(), error.to_string());
    let problem = problem.strip_prefix(&format!("{file}: ")).map_or(problem.clone(), str::to_string);
    Warning::Skipped { file, problem }
}

fn name_in(folder: &Path, file: &Path) -> String {
    file.strip_prefix(folder).unwrap_or(file).display().to_string()
}

/// The first names, and how many more there are.
fn listed(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    let more = names.len().saturating_sub(LISTED);
    let text = names[..names.len() - more].join(", ");
    if more == 0 { text } else { format!("{text} and {more} more") }
}
