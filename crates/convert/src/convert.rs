use std::fs;
use std::path::{Component as PathComponent, Path, PathBuf};

use crate::embedding::convert_embedding;
use crate::left_out::NO_LORA_LAYER;
use crate::model::{Kind, Layout, Model};
use crate::overrides::changed_configs;
use crate::pipeline_files::weights_stem;
use crate::plan::{Plan, PlannedTensor};
use crate::read_folder::is_diffusers_folder;
use crate::recorded::{markers_of, metadata_of};
use crate::write::{Contents, CopiedFile, WeightFile, lay_out, write};
use crate::{
    Checkpoint, EmbeddingError, EmbeddingFile, EmbeddingFormat, Error, LoraError, LoraFile, LoraFormat,
    PickledFile, Progress, ReadOptions, Result, SchedulerChoice, Source, Unplaced, WriteOptions,
};

/// How a checkpoint is converted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConvertOptions {
    /// How the source is understood.
    pub read: ReadOptions,
    /// The variant of a folder's weights that is read, for instance `fp16`, where there are such; that of `write` where `None`.
    pub source_variant: Option<String>,
    /// The scheduler of a pipeline; as the source says or its family usually has where `None`.
    pub scheduler: Option<SchedulerChoice>,
    /// How the destination is written.
    pub write: WriteOptions,
    /// The layout of a LoRA, kohya's where `None`; an error for other sources.
    pub lora_format: Option<LoraFormat>,
    /// The layout of an embedding, diffusers' where `None`; an error for other sources.
    pub embedding_format: Option<EmbeddingFormat>,
}

/// What was converted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What the source is, for instance `Stable Diffusion 1, inpainting`.
    pub title: String,
    /// The files that were written, relative to the destination (`""` where it is one file), with their sizes in bytes.
    pub files: Vec<(String, u64)>,
    /// What was assumed or should be known: one line each.
    pub notes: Vec<String>,
    /// The source's tensors that the destination does not have.
    pub left_out: Vec<Unplaced>,
    /// Tensors with values that are infinite or not numbers.
    pub not_finite: Vec<String>,
    /// Tensors of which values were too large for the new element type and became infinite.
    pub overflowed: Vec<String>,
}

/// Converts `source`, a checkpoint in one file or a diffusers folder, to `destination`: a folder in diffusers' layout, or, where its
/// name ends with `.safetensors`, a file in the original layout. A LoRA of any layout is converted to that of
/// [`ConvertOptions::lora_format`].
///
/// The destination appears whole or not at all. `progress` is told of the bytes that are written, from several threads.
///
/// # Errors
/// When the source is not a checkpoint that is known or is damaged, or the destination exists or cannot be written.
pub fn convert(
    source: &Path,
    destination: &Path,
    options: &ConvertOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report> {
    check_variant(&options.write)?;
    check_apart(source, destination)?;
    if let Some(opened) = open_lora(source)? {
        check_no_embedding_format(source, options)?;
        return convert_lora(opened.as_ref(), destination, options, progress);
    }
    if options.lora_format.is_some() {
        let file = source.display().to_string();
        return Err(LoraError::NotForLora { file }.into());
    }
    let to = layout_of_destination(destination)?;
    if let Some(opened) = open_embedding(source)? {
        let how = (to == Layout::Diffusers, options.embedding_format.unwrap_or_default());
        return convert_embedding(opened.as_ref(), destination, how, &options.write, progress);
    }
    check_no_embedding_format(source, options)?;
    let (mut model, opened): (Model, Box<dyn Source>) = if source.is_dir() {
        let variant = options.source_variant.as_deref().or(options.write.variant.as_deref());
        let (model, opened) = Model::from_folder_with(source, variant, &options.read)?;
        (model, Box::new(opened))
    } else {
        let opened = open_file(source)?;
        (Model::from_single_file(opened.as_ref(), &options.read)?, opened)
    };
    if let Some(dtype) = options.write.dtype {
        model.name_dtype(dtype);
    }
    if let Some(scheduler) = &options.scheduler {
        model.set_scheduler(scheduler);
    }
    let contents = contents(&model, to, source, opened.as_ref(), &options.write)?;
    let seen = write(destination, &options.write, &contents, opened.as_ref(), progress)?;
    let texts = contents.texts.iter().map(|(path, text)| (path.clone(), text.len() as u64));
    let mut files: Vec<_> =
        contents.weights.iter().map(|file| (file.path.clone(), file.bytes())).chain(texts).collect();
    files.sort_unstable();
    Ok(Report {
        title: model.title(),
        files,
        notes: model.notes,
        left_out: model.left_out,
        not_finite: seen.not_finite,
        overflowed: seen.overflowed,
    })
}

/// The tensors of a LoRA; `None` where `source` is something else.
fn open_lora(source: &Path) -> Result<Option<Box<dyn Source>>> {
    if source.is_dir() {
        let is_pipeline = source.join("model_index.json").is_file();
        let is_lora = !is_pipeline && LoraFile::is_folder(source);
        return if is_lora { LoraFile::open_source(source).map(Some) } else { Ok(None) };
    }
    let opened = open_file(source)?;
    Ok(LoraFile::looks_like_one(&opened.inventory()).then_some(opened))
}

fn convert_lora(
    source: &dyn Source,
    destination: &Path,
    options: &ConvertOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report> {
    let mut lora = LoraFile::read(source)?;
    let unknown = match options.read.allow_unknown {
        true => std::mem::take(&mut lora.unmatched),
        false => Vec::new(),
    };
    // Nearly every program reads kohya's.
    let format = options.lora_format.unwrap_or(LoraFormat::Kohya);
    let mut report = lora.write(source, destination, format, &options.write, progress)?;
    report.left_out.extend(unknown.into_iter().map(|name| Unplaced { name, reason: NO_LORA_LAYER }));
    report.left_out.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(report)
}

/// The tensors of an embedding; `None` where `source` is something else.
fn open_embedding(source: &Path) -> Result<Option<Box<dyn Source>>> {
    if source.is_dir() {
        let file = if is_diffusers_folder(source) { None } else { EmbeddingFile::in_folder(source) };
        return file.map(|file| open_file(&file)).transpose();
    }
    let opened = open_file(source)?;
    Ok(EmbeddingFile::looks_like_one(&opened.inventory()).then_some(opened))
}

/// Fails where a layout for embeddings is asked for, and the source is none.
fn check_no_embedding_format(source: &Path, options: &ConvertOptions) -> Result<()> {
    match options.embedding_format {
        None => Ok(()),
        Some(_) => Err(EmbeddingError::NotForEmbedding { file: source.display().to_string() }.into()),
    }
}

/// Opens a checkpoint that is one file: safetensors, or what `torch.save` wrote, by its first bytes.
///
/// # Errors
/// When it cannot be opened or is neither.
pub fn open_file(path: &Path) -> Result<Box<dyn Source>> {
    let io = |source| Error::Io { file: path.display().to_string(), source };
    let mut start = Vec::new();
    if path.is_file() {
        let file = fs::File::open(path).map_err(io)?;
        std::io::Read::read_to_end(&mut std::io::Read::take(file, 512), &mut start).map_err(io)?;
    }
    if PickledFile::looks_like_one(&start) {
        return Ok(Box::new(PickledFile::open(path)?));
    }
    Ok(Box::new(Checkpoint::open(path)?))
}

impl Report {
    /// What a user should be told, one line each: notes, what was left out and why, and what is wrong with the weights.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![self.title.clone()];
        lines.extend(self.notes.iter().cloned());
        let mut reasons: Vec<&str> = self.left_out.iter().map(|left_out| left_out.reason).collect();
        reasons.sort_unstable();
        reasons.dedup();
        for reason in reasons {
            let names: Vec<&str> = self
                .left_out
                .iter()
                .filter(|one| one.reason == reason)
                .map(|one| one.name.as_str())
                .collect();
            lines.push(format!("left out: {}: {reason}", first_names(&names)));
        }
        for (names, what) in [
            (&self.not_finite, "values that are infinite or not numbers"),
            (&self.overflowed, "values too large for the new element type, now infinite"),
        ] {
            if !names.is_empty() {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                lines.push(format!("warning: {what} in {}", first_names(&names)));
            }
        }
        lines
    }
}

fn first_names(names: &[&str]) -> String {
    const LISTED: usize = 3;
    let listed = names[..names.len().min(LISTED)].join(", ");
    if names.len() > LISTED { format!("{listed} and {} more", names.len() - LISTED) } else { listed }
}

/// All that the destination will hold.
fn contents(
    model: &Model,
    to: Layout,
    folder: &Path,
    source: &dyn Source,
    options: &WriteOptions,
) -> Result<Contents> {
    let plan = Plan::new(model, to);
    let mut contents = Contents::default();
    if to == Layout::Original {
        let tensors: Vec<PlannedTensor> = plan.tensors().map(|(_, tensor)| tensor.clone()).collect();
        contents.weights.push(WeightFile::only(
            tensors,
            source,
            options,
            (&metadata_of(model), &markers_of(model)),
        )?);
        return Ok(contents);
    }
    for (component, planned) in model.components.iter().zip(plan.components) {
        let folder = match model.kind {
            Kind::Pipeline(..) => format!("{}/", planned.folder),
            Kind::Alone(_) => String::new(),
        };
        let stem = weights_stem(component.place.model);
        let laid = lay_out(&folder, stem, planned.tensors, source, options)?;
        contents.weights.extend(laid.files);
        contents.texts.extend(laid.index);
    }
    match model.layout {
        Layout::Original => contents.texts.extend(model.text_files()),
        Layout::Diffusers => {
            let changed = changed_configs(folder, model)?;
            contents.copies = other_files(folder, model)?;
            contents.copies.retain(|copy| changed.iter().all(|(path, _)| *path != copy.to));
            contents.texts.extend(changed);
        }
    }
    Ok(contents)
}

/// The files of a folder that are not weights of the model's components.
fn other_files(folder: &Path, model: &Model) -> Result<Vec<CopiedFile>> {
    let weights_of = |sub: &str| match model.kind {
        Kind::Alone(_) => sub.is_empty(),
        Kind::Pipeline(..) => model.component(sub).is_some(),
    };
    let is_weights = |name: &str| {
        [".safetensors", ".bin", ".ckpt", ".pt", ".msgpack", ".h5", ".onnx"]
            .iter()
            .any(|ending| name.ends_with(ending))
            || (name.contains(".index.") || name.ends_with(".index.json"))
    };
    let mut copies = Vec::new();
    for sub in std::iter::once(String::new()).chain(names(folder, true)?) {
        for name in names(&folder.join(&sub), false)? {
            if (weights_of(&sub) || sub.is_empty()) && is_weights(&name) {
                continue;
            }
            let to = if sub.is_empty() { name.clone() } else { format!("{sub}/{name}") };
            copies.push(CopiedFile { from: folder.join(&to), to });
        }
    }
    Ok(copies)
}

/// The folders or the files in `folder`, without hidden ones, sorted.
fn names(folder: &Path, folders: bool) -> Result<Vec<String>> {
    let io = |source| Error::Io { file: folder.display().to_string(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        let is_wanted = if folders { path.is_dir() } else { path.is_file() };
        let name = entry.file_name().into_string().ok().filter(|name| is_wanted && !name.starts_with('.'));
        names.extend(name);
    }
    names.sort_unstable();
    Ok(names)
}

fn layout_of_destination(destination: &Path) -> Result<Layout> {
    let ending =
        destination.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    match ending.as_str() {
        "safetensors" => Ok(Layout::Original),
        "ckpt" | "pt" | "pth" | "bin" | "gguf" => Err(Error::Destination {
            destination: destination.display().to_string(),
            message: format!("a .{ending} file is not written, only a folder or a .safetensors file"),
        }),
        _ => Ok(Layout::Diffusers),
    }
}

/// Fails where writing the destination would destroy the source.
fn check_apart(source: &Path, destination: &Path) -> Result<()> {
    let (source, full) = (absolute(source), absolute(destination));
    if source.starts_with(&full) {
        return Err(Error::Destination {
            destination: destination.display().to_string(),
            message: "the source is there or in it; choose another name".to_string(),
        });
    }
    if full.starts_with(&source) && source.is_dir() {
        return Err(Error::Destination {
            destination: destination.display().to_string(),
            message: "it is in the source; choose a place outside".to_string(),
        });
    }
    Ok(())
}

/// The path without links and dots, as far as it exists.
fn absolute(path: &Path) -> PathBuf {
    if let Ok(path) = path.canonicalize() {
        return path;
    }
    match (path.parent(), path.components().next_back()) {
        (Some(parent), Some(PathComponent::Normal(name))) => {
            let parent = if parent == Path::new("") { Path::new(".") } else { parent };
            parent.canonicalize().unwrap_or_else(|_| parent.to_path_buf()).join(name)
        }
        _ => path.to_path_buf(),
    }
}

/// Fails for a variant or an element type that cannot be written.
fn check_variant(options: &WriteOptions) -> Result<()> {
    let is_word = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    match options.variant.as_deref().filter(|variant| !is_word(variant)) {
        None => Ok(()),
        Some(variant) => Err(Error::Destination {
            destination: format!("{variant:?}"),
            message: "a variant is one word of letters and digits, for instance fp16".to_string(),
        }),
    }
}
