//! LoRA files in the layouts that others read.

mod kohya;
mod made;
mod peft;

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;

use super::adapter_config::METADATA_KEY;
use super::{AdaptedLayer, LoraComponent, LoraError, LoraFile, LoraWeights, TensorRef, cloneofsimo};
use crate::plan::Values;
use crate::write::{Contents, Staging, WeightFile, write};
use crate::{Error, PlannedTensor, Progress, Report, Result, Source, Unplaced, WriteOptions};
use made::{Made, WithMade};

/// The layouts that LoRA files are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LoraFormat {
    /// One file as kohya-ss' sd-scripts and LyCORIS name it, which web UIs and nearly all other programs read; for Stable Diffusion
    /// XL with the original layout's block names.
    Kohya,
    /// One file as diffusers saves it, with ranks and alphas in the metadata.
    Diffusers,
    /// What PEFT saves: a folder with `adapter_config.json`, or the weights alone, with alpha folded in.
    Peft,
}

impl LoraFormat {
    /// As the command line spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kohya => "kohya",
            Self::Diffusers => "diffusers",
            Self::Peft => "peft",
        }
    }
}

impl LoraFormat {
    /// Fails where [`LoraFile::write`] would because of the destination: for those who compute long before they write.
    ///
    /// # Errors
    /// When the destination exists and may not be replaced, there is no folder for it, or it is none for this layout.
    pub fn check_destination(self, destination: &Path, options: &WriteOptions) -> Result<()> {
        let is_file = is_file(destination, self)?;
        Staging::check(destination, !is_file, options.overwrite)
    }
}

/// A tensor to be, and where its values are.
struct Planned {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    values: Place,
}

enum Place {
    /// A tensor of the source.
    Source(String),
    /// What is made of it, or of nothing.
    Made(Made),
}

/// What a destination will hold.
#[derive(Default)]
struct Output {
    /// The weight files by their paths in the destination; `""` where that is a file.
    files: Vec<(String, Vec<Planned>)>,
    texts: Vec<(String, Vec<u8>)>,
    metadata: BTreeMap<String, String>,
    notes: Vec<String>,
}

impl LoraFile {
    /// Writes the LoRA to `destination` in one of the layouts: a `.safetensors` file, or for PEFT a folder. It appears whole or not at
    /// all. Tensors are those of `source`, by the names that the layers have for them; `progress` is told of the bytes that are
    /// written, from several threads.
    ///
    /// # Errors
    /// When the layout has no place for a change, there are tensors that no rule understands, or the destination exists or cannot be
    /// written.
    pub fn write(
        &self,
        source: &dyn Source,
        destination: &Path,
        format: LoraFormat,
        options: &WriteOptions,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Report> {
        self.check_all_matched()?;
        let is_file = is_file(destination, format)?;
        let output = match format {
            LoraFormat::Kohya => kohya::output(self)?,
            LoraFormat::Diffusers => peft::diffusers(self)?,
            LoraFormat::Peft if is_file => peft::file(self)?,
            LoraFormat::Peft => peft::folder(self)?,
        };
        let mut notes = self.notes.clone();
        notes.extend(output.notes.iter().cloned());
        let with_made = WithMade::new(source);
        let (contents, with_made) = lay_out(output, with_made, options)?;
        let seen = write(destination, options, &contents, &with_made, progress)?;
        let texts = contents.texts.iter().map(|(path, text)| (path.clone(), text.len() as u64));
        let mut files: Vec<_> =
            contents.weights.iter().map(|file| (file.path.clone(), file.bytes())).chain(texts).collect();
        files.sort_unstable();
        let embedding = |name: &String| Unplaced {
            name: name.clone(),
            reason: "a textual inversion embedding, which no LoRA layout has a place for",
        };
        Ok(Report {
            title: self.title(),
            files,
            notes,
            left_out: self.embeddings.iter().map(embedding).collect(),
            not_finite: seen.not_finite,
            overflowed: seen.overflowed,
        })
    }

    /// Fails where there are tensors that no rule understands.
    pub(super) fn check_all_matched(&self) -> Result<()> {
        if self.unmatched.is_empty() {
            return Ok(());
        }
        Err(Error::UnknownTensors {
            file: self.source.clone(),
            title: self.title(),
            count: self.unmatched.len(),
            names: self.unmatched.iter().take(3).cloned().collect(),
        })
    }

    /// What it is, in one line: `LoRA for Stable Diffusion XL: 722 layers`.
    pub fn title(&self) -> String {
        let family = self.family.map_or(String::new(), |family| format!(" for {}", family.name()));
        format!("LoRA{family}: {} layers", self.layers.len())
    }

    /// The layers of each component that has any.
    fn by_component(&self) -> BTreeMap<LoraComponent, Vec<&AdaptedLayer>> {
        let mut by_component: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for layer in &self.layers {
            by_component.entry(layer.component).or_default().push(layer);
        }
        by_component
    }
}

/// Lays out what will be written; what is not in the source is given to `with_made`.
fn lay_out<'s>(
    output: Output,
    mut with_made: WithMade<'s>,
    options: &WriteOptions,
) -> Result<(Contents, WithMade<'s>)> {
    let mut files = Vec::with_capacity(output.files.len());
    for (path, planned) in output.files {
        // Numbers such as alpha keep their type: in another they would become other numbers.
        let (mut tensors, mut exact) = (Vec::new(), Vec::new());
        for Planned { name, shape, dtype, values } in planned {
            let is_exact = matches!(values, Place::Made(Made::Number(_)));
            let values = match values {
                Place::Source(name) => name,
                Place::Made(made) => with_made.add(made),
            };
            let tensor = PlannedTensor { name, shape, dtype, values: Values::Whole(values) };
            if is_exact { exact.push(tensor) } else { tensors.push(tensor) }
        }
        files.push((path, tensors, exact));
    }
    let mut contents = Contents { texts: output.texts, ..Contents::default() };
    for (path, tensors, exact) in files {
        let file = WeightFile::with_exact(path, tensors, exact, &with_made, options, &output.metadata)?;
        contents.weights.push(file);
    }
    Ok((contents, with_made))
}

/// Whether the destination is a file.
fn is_file(destination: &Path, format: LoraFormat) -> Result<bool> {
    let refuse =
        |message: String| Err(Error::Destination { destination: destination.display().to_string(), message });
    let ending = destination.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    match ending.to_ascii_lowercase().as_str() {
        "safetensors" => Ok(true),
        "ckpt" | "pt" | "pth" | "bin" => {
            refuse(format!("a .{ending} file is not written; name a .safetensors file"))
        }
        _ if format == LoraFormat::Peft => Ok(false),
        _ => refuse(format!(
            "a LoRA in the {} layout is one .safetensors file, not a folder; only --lora-format peft is a folder",
            format.name()
        )),
    }
}

/// A tensor of the source under another name.
fn whole(name: String, tensor: &TensorRef) -> Planned {
    Planned {
        name,
        shape: tensor.shape.clone(),
        dtype: tensor.dtype,
        values: Place::Source(tensor.name.clone()),
    }
}

/// The fewest words for a kind of change.
fn kind(layer: &AdaptedLayer) -> &'static str {
    match &layer.weights {
        LoraWeights::Lora { mid: None, .. } if layer.dora_is_per_input() => "DoRA lengths of input channels",
        LoraWeights::Lora { mid: None, .. } => "a product",
        LoraWeights::Lora { mid: Some(_), .. } => "a product of three (lora_mid)",
        LoraWeights::Loha { .. } => "LoHa",
        LoraWeights::Lokr { .. } => "LoKr",
        LoraWeights::Full { .. } => "a full difference",
    }
}

/// Fails unless all changes are plain products.
fn check_plain(lora: &LoraFile, format: LoraFormat) -> Result<()> {
    let is_other = |layer: &&AdaptedLayer| {
        !matches!(layer.weights, LoraWeights::Lora { mid: None, .. }) || layer.dora_is_per_input()
    };
    let others: Vec<&AdaptedLayer> = lora.layers.iter().filter(is_other).collect();
    let Some(first) = others.first() else { return Ok(()) };
    Err(LoraError::NoPlace {
        file: lora.source.clone(),
        format: format.name(),
        count: others.len(),
        layer: format!("{}.{}", first.component.folder(), first.name),
        what: kind(first),
    }
    .into())
}

/// The value that comes most often, the smallest of several such.
fn most_common<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(value, _)| value)
}

/// What trainers have written, without what is about the layout, and without sums of bytes that are no longer those.
fn kept_metadata(lora: &LoraFile) -> BTreeMap<String, String> {
    const DROPPED: [&str; 4] = ["format", METADATA_KEY, "sshs_model_hash", "sshs_legacy_hash"];
    // cloneofsimo's lists of classes and ranks.
    let is_numbered = |key: &str| {
        let component = key.split(':').next().unwrap_or(key);
        LoraComponent::ALL.iter().any(|known| known.folder() == component)
    };
    let kept = lora.metadata.iter().filter(|(key, value)| {
        !DROPPED.contains(&key.as_str()) && !is_numbered(key) && *value != cloneofsimo::EMBED
    });
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}
