//! The pictures of a run.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use candle_diffusers_loaders::Repository;
use candle_diffusers_pipelines::Filter;
use candle_diffusers_training::Error;
use candle_diffusers_training::dataset::{
    Batch, BatchLoader, BatchOptions, CaptionFiles, Captions, Dataset, DatasetOptions, Fit, Flip, Listing,
    Position, Sample, TransformOptions,
};
use candle_diffusers_training::recipes::{Example, LearnableProperty};

use serde_json::Value;

use super::belongs::usual;
use super::concepts::{Concept, classes};
use super::pace::Pace;
use super::processes::Started;
use super::{Interpolation, Property, Recipe, Template, TrainArguments, buckets, concepts, folders, words};
use crate::terminal;

/// Batches that are read before they are asked for.
const AHEAD: usize = 4;
/// Where the numbers of the class's pictures begin.
const CLASS_KEYS: u64 = 1 << 32;

/// The pictures to learn from, and those of their class where there are any.
pub(super) struct Data {
    own: Arc<Dataset>,
    class: Option<Arc<Dataset>>,
    /// How folders are read, but for captions and what belongs to each picture.
    options: DatasetOptions,
    batches: BatchOptions,
}

impl Data {
    /// Opens the folders to learn from: those of the things where there are any.
    pub(super) fn open(
        arguments: &TrainArguments,
        repository: &Repository,
        concepts: &[Concept],
        started: &Started,
    ) -> Result<Self> {
        folders::check_output(arguments, concepts)?;
        let resolution = match arguments.pictures.resolution {
            Some(resolution) => resolution,
            None => own_resolution(repository)?,
        };
        let folders =
            concepts.iter().map(|one| (one.instance_data_dir.as_path(), Some(one.instance_prompt.as_str())));
        let mut folders: Vec<_> = folders.collect();
        if folders.is_empty() {
            folders.extend(arguments.train_data_dir().map(|folder| (folder, None)));
        }
        let paths: Vec<&Path> = folders.iter().map(|(folder, _)| *folder).collect();
        check_columns(&paths, arguments, &folders::left_out(arguments, concepts))?;
        let other = columns(arguments).other.or(arguments.pictures.mask_column.as_ref());
        let options = DatasetOptions {
            transform: transform(arguments, is_told_crops(repository)?),
            ..dataset_options(arguments, concepts, resolution)?
        };
        let own = DatasetOptions {
            transform: TransformOptions { fit: fit(arguments), ..options.transform },
            picture_columns: other.into_iter().cloned().collect(),
            masks_beside: arguments.pictures.use_mask_captioned_data,
            ..options.clone()
        };
        let (own, captioned) = open_all(&folders, arguments, &own)?;
        let own = chosen(own, arguments)?;
        words::check_captions(arguments, &own, &listed(&paths), !captioned.is_empty())?;
        if !concepts.is_empty() {
            tell_unused(&captioned, &concepts::prompt_name(arguments, "--instance-prompt"));
        }
        Ok(Self { own, class: None, options, batches: batches(arguments, started)? })
    }

    /// Opens the folder to learn from, for a model that is told nothing of the pictures.
    pub(super) fn without_captions(
        arguments: &TrainArguments,
        resolution: u32,
        started: &Started,
    ) -> Result<Self> {
        folders::check_output(arguments, &[])?;
        let Some(folder) = arguments.train_data_dir() else {
            bail!("there is no folder of pictures to learn from")
        };
        check_columns(&[folder], arguments, &folders::left_out(arguments, &[]))?;
        let options =
            DatasetOptions { captions: Captions::None, ..dataset_options(arguments, &[], resolution)? };
        let own = Dataset::open(folder, options.clone())?;
        tell(folder, &own);
        let own = chosen(own, arguments)?;
        Ok(Self { own, class: None, options, batches: batches(arguments, started)? })
    }

    /// How many pictures the folder of a class has, and where it has captions of its own.
    pub(super) fn class_folder(
        &self,
        arguments: &TrainArguments,
        folder: &Path,
    ) -> Result<(usize, Option<CaptionFiles>)> {
        let listing = Listing::of(folder, &self.options.left_out)?;
        Ok((listing.pictures(), listing.caption_files(columns(arguments).caption)?))
    }

    /// Fails where the folder of a class cannot be learned from as it is.
    pub(super) fn check_class(&self, arguments: &TrainArguments, folder: &Path, prompt: &str) -> Result<()> {
        open(folder, Some(prompt), arguments, &self.class_options()).map(drop)
    }

    /// Opens the folders of the classes, when their pictures are all there.
    pub(super) fn open_classes(&mut self, arguments: &TrainArguments, concepts: &[Concept]) -> Result<()> {
        if arguments.thing.with_prior_preservation {
            let folders = classes(arguments, concepts).map(|(folder, prompt)| (folder, Some(prompt)));
            let (mut class, captioned) =
                open_all(&folders.collect::<Vec<_>>(), arguments, &self.class_options())?;
            tell_unused(&captioned, &concepts::prompt_name(arguments, "--class-prompt"));
            if self.options.buckets.is_some() {
                class.cut_like(self.own.clone());
            }
            self.class = Some(Arc::new(class));
        }
        Ok(())
    }

    /// How folders of classes are read: by themselves of one size. With buckets their pictures take that of those beside which they come.
    fn class_options(&self) -> DatasetOptions {
        DatasetOptions { buckets: None, ..self.options.clone() }
    }

    /// The width and height that is trained at; of buckets, what their sizes have about the area of.
    pub(super) fn resolution(&self) -> u32 {
        self.options.resolution
    }

    /// The widths and heights of what is learned from.
    pub(super) fn sizes(&self) -> Vec<[u32; 2]> {
        self.own.sizes()
    }

    /// How many batches epochs and steps have.
    pub(super) fn pace(&self, arguments: &TrainArguments) -> Pace {
        let batches_per_epoch = self.own.batches_per_epoch(&self.batches).max(1) as u64;
        let batches_per_step = arguments.steps.gradient_accumulation_steps.max(1) as u64;
        Pace { batches_per_epoch, batches_per_step }
    }

    /// Steps in all: as many as were asked for, or else those of so many epochs.
    pub(super) fn max_steps(&self, arguments: &TrainArguments) -> u64 {
        // Settings are written as signed numbers.
        let most = i64::MAX as u64;
        let epochs =
            || self.pace(arguments).steps_per_epoch().saturating_mul(arguments.steps.num_train_epochs);
        arguments.steps.max_train_steps.unwrap_or_else(epochs).min(most)
    }

    /// What the pictures and their captions are known by, as settings that a run goes on with.
    pub(super) fn known_by(&self) -> BTreeMap<String, String> {
        let all = || [&self.own].into_iter().chain(&self.class);
        let pictures = all().map(|dataset| format!("{} ({})", dataset.len(), dataset.pictures_digest()));
        let pictures = pictures.collect::<Vec<_>>().join(" and ");
        let captions = all().map(|dataset| dataset.captions_digest()).collect::<Vec<_>>().join(" and ");
        [("pictures".to_string(), pictures), ("captions".to_string(), captions)].into()
    }

    /// How many kinds of pictures follow each other in a batch.
    pub(super) fn kinds(&self) -> usize {
        1 + usize::from(self.class.is_some())
    }

    /// Whether all pictures are cut alike each time, those of the class too.
    pub(super) fn is_fixed(&self) -> bool {
        self.own.is_fixed() && self.class.as_ref().is_none_or(|class| class.is_fixed())
    }

    /// How many pictures there are, with those of the class, which count once for each size that they come in.
    pub(super) fn len(&self) -> usize {
        self.own.len() + self.class.as_ref().map_or(0, |class| class.len() * class.sizes().len())
    }

    /// Whether all of them come in so many more steps; of those of the class that come in several sizes, whether as many.
    pub(super) fn all_come(&self, steps: u64, arguments: &TrainArguments) -> bool {
        let pace = self.pace(arguments);
        let pictures =
            pace.batches_in(steps).saturating_mul((self.batches.batch_size * self.batches.processes) as u64);
        let has_use_for = |class: &Arc<Dataset>| {
            let sizes = class.sizes().len();
            sizes == 1 || pictures >= (class.len() * sizes) as u64
        };
        steps >= pace.steps_per_epoch() && self.class.as_ref().is_none_or(has_use_for)
    }

    /// Some of them, with all their captions, as they come where they are cut alike each time. With --skip-broken those that cannot be read are left out: they are told when
    /// they come.
    pub(super) fn examples(&self, places: Range<usize>) -> Result<Vec<Example>> {
        let class = self.class.as_ref().map(|class| (class, class.sizes()));
        let mut examples = Vec::new();
        for place in places {
            let (dataset, first_key, sample) = match (place.checked_sub(self.own.len()), &class) {
                (Some(place), Some((class, sizes))) => {
                    let (index, size) = (place / sizes.len(), sizes[place % sizes.len()]);
                    (*class, CLASS_KEYS, class.fixed_sample_of_size(index, size))
                }
                _ => (&self.own, 0, self.own.fixed_sample(place)),
            };
            let sample = match sample {
                Ok(sample) => sample,
                Err(_) if self.options.skip_broken => continue,
                Err(error) => return Err(error.into()),
            };
            let captions = dataset.captions(sample.index);
            let batch = Batch { samples: vec![sample], next: Position::default(), warnings: Vec::new() };
            for example in self::examples(&batch, Some(first_key))? {
                let with = |caption: &String| Example { caption: caption.clone(), ..example.clone() };
                examples.extend(captions.iter().map(with));
                examples.push(example);
            }
        }
        Ok(examples)
    }

    /// Where a run is that has taken so many batches.
    pub(super) fn position(&self, batches: u64) -> Position {
        position(&self.own, &self.batches, batches)
    }

    /// All batches from the one after `taken`.
    pub(super) fn reader(&self, taken: u64) -> Result<Reader> {
        let batches = |dataset: &Arc<Dataset>, first_key: u64| -> Result<KeyedBatches> {
            let position = position(dataset, &self.batches, taken);
            let loader = BatchLoader::new(dataset.clone(), self.batches, position, AHEAD)?;
            Ok(KeyedBatches { loader, first_key: dataset.is_fixed().then_some(first_key) })
        };
        let class = self.class.as_ref().map(|class| batches(class, CLASS_KEYS)).transpose()?;
        Ok(Reader { own: batches(&self.own, 0)?, class })
    }
}

/// Batches of which each process has its share.
fn batches(arguments: &TrainArguments, started: &Started) -> Result<BatchOptions> {
    let options = BatchOptions {
        batch_size: arguments.steps.train_batch_size,
        fill: true,
        process: started.processes.rank(),
        processes: started.processes.size(),
    };
    options.check()?;
    Ok(options)
}

fn position(dataset: &Dataset, options: &BatchOptions, batches: u64) -> Position {
    let per_epoch = (dataset.batches_per_epoch(options) as u64).max(1);
    Position { epoch: batches / per_epoch, batch: batches % per_epoch }
}

/// Reads batches ahead.
pub(super) struct Reader {
    own: KeyedBatches,
    class: Option<KeyedBatches>,
}

/// Batches of pictures of one kind.
struct KeyedBatches {
    loader: BatchLoader,
    /// Numbers the pictures where they are cut alike each time.
    first_key: Option<u64>,
}

impl KeyedBatches {
    fn next(&mut self) -> Result<Vec<Example>> {
        examples(&self.loader.next_batch()?, self.first_key)
    }
}

impl Reader {
    /// The next batch: pictures to learn from, then as many of the class.
    pub(super) fn next(&mut self) -> Result<Vec<Example>> {
        let mut examples = self.own.next()?;
        if let Some(class) = &mut self.class {
            examples.extend(class.next()?);
        }
        Ok(examples)
    }

    /// How long steps have waited for pictures.
    pub(super) fn waited(&self) -> Duration {
        let class = self.class.as_ref().map_or(Duration::ZERO, |class| class.loader.waiting().waited);
        self.own.loader.waiting().waited + class
    }
}

/// `first_key` numbers pictures that are cut alike each time.
fn examples(batch: &Batch, first_key: Option<u64>) -> Result<Vec<Example>> {
    batch.warnings.iter().for_each(|warning| terminal::note_of_own(&format!("warning: {warning}")));
    let pixel_values = batch.pixel_values()?;
    let columns = batch.samples.first().map_or(0, |sample| sample.others.len());
    let others = (0..columns).map(|column| batch.other_pixel_values(column));
    let others = others.collect::<candle_diffusers_training::Result<Vec<_>>>()?;
    let example = |(index, sample): (usize, &Sample)| {
        Ok(Example {
            pixel_values: pixel_values.get(index)?,
            caption: sample.caption.clone(),
            original_size: sample.original_size,
            crop_top_left: sample.crop_top_left,
            key: first_key.map(|first| key(first, sample)),
            others: others.iter().map(|others| Ok(others.get(index)?)).collect::<Result<_>>()?,
            area: sample.area,
        })
    };
    batch.samples.iter().enumerate().map(example).collect()
}

/// The number of a picture as it is cut: one of the class may come in several sizes.
fn key(first_key: u64, sample: &Sample) -> u64 {
    let (height, width) = sample.target_size();
    // Sides are multiples of 8 up to 65536, and the first bit is for pictures that edits begin with.
    let size = (u64::from(width / 8) << 14) + u64::from(height / 8);
    (size << 33) + first_key + sample.index as u64
}

/// What pictures show: what the folder itself says of each, or else the prompt for all.
fn captions(
    folder: &Path,
    prompt: Option<&str>,
    arguments: &TrainArguments,
    left_out: &[PathBuf],
) -> Result<Captions> {
    let column = columns(arguments).caption;
    let is_wished = column != columns(&usual(arguments.recipe)?).caption;
    let find = || {
        let files = Listing::of(folder, left_out)?;
        Ok::<_, Error>(files.caption_files(column)?.is_some() || (is_wished && files.has_metadata()?))
    };
    // Where metadata cannot be read or lack the column that was asked for, opening the folder says so.
    let has_captions = || find().unwrap_or(true);
    Ok(match (prompt, words::in_made_captions(arguments)?) {
        (Some(prompt), _) if !has_captions() => Captions::Prompt(prompt.to_string()),
        (_, Some(words)) if arguments.word.use_template.is_some() || !has_captions() => {
            made_captions(arguments, &words)
        }
        _ => Captions::Folder { column: column.to_string() },
    })
}

/// Captions for pictures that have none, or whose own are not wanted.
fn made_captions(arguments: &TrainArguments, words: &str) -> Captions {
    let word = &arguments.word;
    let property = match (word.use_template, word.learnable_property) {
        (Some(Template::Null), _) => return Captions::Prompt(words.to_string()),
        (Some(Template::Style), _) | (None, Property::Style) => LearnableProperty::Style,
        (Some(Template::Object), _) | (None, Property::Object) => LearnableProperty::Object,
    };
    Captions::OneOf(property.captions(words))
}

/// Where metadata name what a recipe learns from.
struct Columns<'a> {
    picture: &'a String,
    other: Option<&'a String>,
    caption: &'a String,
}

fn columns(arguments: &TrainArguments) -> Columns<'_> {
    let pairs = &arguments.pairs;
    let own = Columns {
        picture: &arguments.pictures.image_column,
        other: None,
        caption: &arguments.pictures.caption_column,
    };
    match arguments.recipe {
        Recipe::Controlnet => Columns { other: Some(&pairs.conditioning_image_column), ..own },
        Recipe::InstructPix2pix => Columns {
            picture: &pairs.edited_image_column,
            other: Some(&pairs.original_image_column),
            caption: &pairs.edit_prompt_column,
        },
        _ => own,
    }
}

/// Refuses columns that were asked for where no folder has metadata. The usual ones, which a run's settings.toml names too, are no wish.
fn check_columns(folders: &[&Path], arguments: &TrainArguments, left_out: &[PathBuf]) -> Result<()> {
    // Of pairs all columns are needed: opening the folder says which.
    if arguments.recipe.has_pairs() {
        return Ok(());
    }
    let usual = usual(arguments.recipe)?;
    let (given, usual) = (columns(arguments), columns(&usual));
    let (flag, column) = match (given.caption != usual.caption, given.picture != usual.picture) {
        (true, _) => ("--caption-column", given.caption),
        (false, true) => ("--image-column", given.picture),
        (false, false) => return Ok(()),
    };
    for folder in folders {
        if Listing::of(folder, left_out)?.has_metadata()? {
            return Ok(());
        }
    }
    bail!(
        "{} has no metadata.csv or metadata.jsonl with {column}; write one, with a row for each picture, or leave {flag} out",
        listed(folders)
    )
}

/// Folders as a message names them.
fn listed(folders: &[&Path]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// As the recipe's script brings pictures to size.
fn transform(arguments: &TrainArguments, is_told_crops: bool) -> TransformOptions {
    let own_filter = match arguments.recipe {
        Recipe::TextToImage | Recipe::TextToImageLora | Recipe::DreamboothLora => Interpolation::Lanczos,
        Recipe::TextualInversion | Recipe::PivotalTuning | Recipe::InstructPix2pix => Interpolation::Bicubic,
        Recipe::Unconditional | Recipe::Dreambooth | Recipe::CustomDiffusion | Recipe::Controlnet => {
            Interpolation::Bilinear
        }
    };
    TransformOptions {
        filter: match arguments.pictures.image_interpolation_mode.unwrap_or(own_filter) {
            Interpolation::Bilinear => Filter::Bilinear,
            Interpolation::Bicubic => Filter::Bicubic,
            Interpolation::Lanczos => Filter::Lanczos,
        },
        center_crop: arguments.pictures.center_crop || arguments.recipe == Recipe::Controlnet,
        flip: match (arguments.pictures.random_flip, is_told_crops) {
            (false, _) => Flip::Never,
            (true, false) => Flip::AfterCrop,
            (true, true) => Flip::BeforeCrop,
        },
        fit: Fit::Cover,
        color_jitter: arguments.pivotal.color_jitter,
    }
}

/// How pictures of things fill what they are cut to. Custom Diffusion's script shows them whole, and those of the class as the other scripts do.
fn fit(arguments: &TrainArguments) -> Fit {
    if arguments.recipe != Recipe::CustomDiffusion || arguments.pictures.has_buckets() {
        return Fit::Cover;
    }
    if arguments.thing.noaug { Fit::Whole } else { Fit::RandomSize }
}

/// As many pictures as are to be learned from.
fn chosen(mut dataset: Dataset, arguments: &TrainArguments) -> Result<Arc<Dataset>> {
    if let Some(count) = arguments.pictures.max_train_samples {
        dataset.choose(count)?;
    }
    Ok(Arc::new(dataset))
}

/// Whether a model is told where pictures were cut, as Stable Diffusion XL is.
fn is_told_crops(repository: &Repository) -> Result<bool> {
    let unet: Value = repository.read_json("unet/config.json")?;
    Ok(unet["addition_embed_type"] == "text_time")
}

/// Several folders as one, each with the prompt for pictures that have no captions; and those folders that have captions of their own.
fn open_all<'a>(
    folders: &[(&'a Path, Option<&str>)],
    arguments: &TrainArguments,
    options: &DatasetOptions,
) -> Result<(Dataset, Vec<&'a Path>)> {
    let mut all: Option<Dataset> = None;
    let mut captioned = Vec::new();
    for (index, &(folder, prompt)) in folders.iter().enumerate() {
        let (dataset, is_captioned) = open(folder, prompt, arguments, options)?;
        // Several things may have one class.
        if !folders[..index].iter().any(|(before, _)| *before == folder) {
            tell(folder, &dataset);
            captioned.extend(is_captioned.then_some(folder));
        }
        match &mut all {
            Some(all) => all.append(dataset)?,
            None => all = Some(dataset),
        }
    }
    Ok((all.context("there is no folder of pictures to learn from")?, captioned))
}

/// Says of folders with captions that the prompt is not what their pictures show.
fn tell_unused(captioned: &[&Path], prompt: &str) {
    for folder in captioned {
        terminal::note(&format!("captions of {} are used instead of {prompt}", folder.display()));
    }
}

/// A folder, with the prompt for pictures that have no captions; and whether it has captions of its own.
fn open(
    folder: &Path,
    prompt: Option<&str>,
    arguments: &TrainArguments,
    options: &DatasetOptions,
) -> Result<(Dataset, bool)> {
    let captions = captions(folder, prompt, arguments, &options.left_out)?;
    let is_their_own = matches!(captions, Captions::Folder { .. });
    let mut dataset = Dataset::open(folder, DatasetOptions { captions, ..options.clone() })?;
    if is_their_own && let Some((called, words)) = words::at_data(arguments)? {
        dataset.replace_in_captions(&called, &words);
    }
    Ok((dataset, is_their_own))
}

/// Says what a user should know of the pictures of a folder.
fn tell(folder: &Path, dataset: &Dataset) {
    dataset.warnings().iter().for_each(|warning| terminal::note(&format!("warning: {warning}")));
    match dataset.unlisted() {
        0 => {}
        1 => terminal::note(&format!(
            "1 picture of {} is not in its metadata and is left out",
            folder.display()
        )),
        count => terminal::note(&format!(
            "{count} pictures of {} are not in its metadata and are left out",
            folder.display()
        )),
    }
}

/// How folders are read, but for captions and what belongs to each picture.
fn dataset_options(
    arguments: &TrainArguments,
    concepts: &[Concept],
    resolution: u32,
) -> Result<DatasetOptions> {
    let pictures = &arguments.pictures;
    Ok(DatasetOptions {
        resolution,
        picture_column: columns(arguments).picture.clone(),
        buckets: buckets::read(arguments, resolution)?,
        transform: transform(arguments, false),
        repeats: pictures.repeats,
        drawn_once: arguments.pivotal.cached_latents,
        seed: arguments.steps.seed,
        skip_broken: pictures.skip_broken,
        left_out: folders::left_out(arguments, concepts),
        ..Default::default()
    })
}

/// What the model was trained at: its sample size times what its VAE makes of a pixel.
fn own_resolution(repository: &Repository) -> Result<u32> {
    let unet: Value = repository.read_json("unet/config.json")?;
    let vae: Value = repository.read_json("vae/config.json")?;
    let blocks = vae["block_out_channels"].as_array().map_or(4, Vec::len);
    let size = unet["sample_size"].as_u64().unwrap_or(64);
    Ok((size << blocks.saturating_sub(1)) as u32)
}
