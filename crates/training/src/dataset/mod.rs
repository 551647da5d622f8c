//! Folders of pictures with captions: found, read, cut to one size, put in batches and read ahead.
//!
//! Everything random (order, crops, flips, one of several captions) follows from the seed and the place of a picture in the run alone, so that a
//! run goes on from a [`Position`] as if it had never stopped, and several processes share batches without a word.

mod batches;
mod buckets;
mod color_jitter;
mod digest;
mod examples;
mod fit;
mod listing;
mod loader;
mod metadata;
mod order;
mod picture_file;
mod transform;
mod warning;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use candle_diffusers_schedulers::TorchGenerator;
use image::RgbImage;

use crate::error::{Error, Result};
use color_jitter::ColorJitter;
use examples::{Example, Found};
use picture_file::read_picture;
use transform::resized;

pub use batches::{Batch, BatchOptions, Position};
pub use buckets::{BucketOptions, Buckets, bucket_sizes};
pub use examples::Captions;
pub use fit::{Area, Fit};
pub use listing::{CaptionFiles, Listing};
pub use loader::{BatchLoader, Waiting};
pub use transform::{Cut, Flip, TransformOptions};
pub use warning::Warning;

/// How a folder is read; the default is 512 pixels, captions from the folder, random crops.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetOptions {
    /// Where captions come from.
    pub captions: Captions,
    /// The column of the metadata that names the picture (`image_column`). As in Hugging Face's datasets, a column `NAME` may be called `NAME_file_name` in the file, and
    /// `image` just `file_name`. Metadata with another column are read whatever captions are.
    pub picture_column: String,
    /// Columns of the metadata that name more pictures for each example, which are cut alike: masks, conditions, edited pictures.
    pub picture_columns: Vec<String>,
    /// Without metadata: beside each picture stands one more, which is cut alike: the mask `cat.mask.png` of `cat.png`, or of `cat.src.jpg`, as in cloneofsimo's lora
    /// (`use_mask_captioned_data`).
    pub masks_beside: bool,
    /// Width and height of all pictures, or with `buckets` the root of their area. A multiple of 8.
    pub resolution: u32,
    /// Let pictures keep about their shape.
    pub buckets: Option<Buckets>,
    /// How pictures are brought to size.
    pub transform: TransformOptions,
    /// How often each picture comes in an epoch.
    pub repeats: usize,
    /// How often a caption is left out (0.1 is one in ten), so that a model learns to paint without one as guidance needs it.
    pub caption_dropout: f64,
    /// Each picture is cut, and its caption chosen, once for all by the seed, and not anew each time (`cached_latents` of cloneofsimo's lora).
    pub drawn_once: bool,
    /// What order, crops, flips and choices follow from.
    pub seed: u64,
    /// Leave out pictures that cannot be read, with a warning, instead of failing.
    pub skip_broken: bool,
    /// Folders that are not looked into where they lie in the one that is opened, whatever they are called there: what a run writes, or another folder of pictures. One that
    /// does not exist leaves nothing out, nor does the one that is opened; pictures that metadata names are found there too.
    pub left_out: Vec<PathBuf>,
}

impl Default for DatasetOptions {
    fn default() -> Self {
        Self {
            captions: Captions::default(),
            picture_column: "file_name".to_string(),
            picture_columns: Vec::new(),
            masks_beside: false,
            resolution: 512,
            buckets: None,
            transform: TransformOptions::default(),
            repeats: 1,
            caption_dropout: 0.0,
            drawn_once: false,
            seed: 0,
            skip_broken: false,
            left_out: Vec::new(),
        }
    }
}

/// The pictures of a folder.
#[derive(Clone, Debug)]
pub struct Dataset {
    options: DatasetOptions,
    examples: Vec<Example>,
    /// Pictures of the folder that its metadata does not name.
    unlisted: usize,
    warnings: Vec<Warning>,
    /// Whose batches these have the sizes of.
    like: Option<Arc<Dataset>>,
}

/// A picture ready to train on, and what it was made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Which picture of the dataset.
    pub index: usize,
    /// Its caption; empty where there is none.
    pub caption: String,
    /// Cut to the target size.
    pub picture: RgbImage,
    /// The pictures of `picture_columns`, or the mask, cut alike.
    pub others: Vec<RgbImage>,
    /// Height and width of the file's picture, as Stable Diffusion XL is told them.
    pub original_size: (u32, u32),
    /// Where the crop begins in the resized picture: top and left.
    pub crop_top_left: (u32, u32),
    /// Where the whole picture is ([`Fit::Whole`], [`Fit::RandomSize`]); none where a part of it is all that is seen.
    pub area: Option<Area>,
}

impl Sample {
    /// Height and width of the picture.
    pub fn target_size(&self) -> (u32, u32) {
        (self.picture.height(), self.picture.width())
    }

    /// Whether the picture is all that there is, without a grey canvas around it.
    fn is_full(&self) -> bool {
        let (height, width) = self.target_size();
        self.area.is_none_or(|area| (area.width, area.height) == (width, height))
    }

    /// 1 where the picture is and 0 around it, `(1, height, width)`.
    fn shown(&self) -> Result<Tensor> {
        let (height, width) = self.target_size();
        let is_shown = |x: u32, y: u32| {
            self.area.is_none_or(|area| {
                (area.left..area.left + area.width).contains(&x)
                    && (area.top..area.top + area.height).contains(&y)
            })
        };
        let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let values: Vec<f32> = places.map(|(x, y)| if is_shown(x, y) { 1.0 } else { 0.0 }).collect();
        Ok(Tensor::from_vec(values, (1, height as usize, width as usize), &Device::Cpu)?)
    }
}

/// The order of an epoch is held in memory.
const MOST_OF_AN_EPOCH: usize = 100_000_000;

impl Dataset {
    /// Finds the pictures in `folder` and its subfolders with their captions, and reads how large each is.
    ///
    /// # Errors
    /// When an option is out of range; there is no picture that can be read; captions are missing or name pictures that are not there; or a
    /// picture cannot be read and `skip_broken` is not set.
    pub fn open(folder: impl AsRef<Path>, options: DatasetOptions) -> Result<Self> {
        if options.resolution == 0 || !options.resolution.is_multiple_of(8) {
            let (field, found) = ("resolution", options.resolution.to_string());
            let expected = format!("a multiple of 8, such as {}", (options.resolution / 8).max(1) * 8);
            return Err(Error::Field { field, found, expected });
        }
        if options.repeats == 0 {
            let (found, expected) = ("0".to_string(), "1 or more".to_string());
            return Err(Error::Field { field: "repeats", found, expected });
        }
        if !(0.0..=1.0).contains(&options.caption_dropout) {
            let (field, found) = ("caption_dropout", options.caption_dropout.to_string());
            return Err(Error::Field { field, found, expected: "between 0 and 1".to_string() });
        }
        let buckets = options.buckets.as_ref();
        let sizes = match buckets {
            Some(buckets) => Some((buckets, buckets.sizes(options.resolution)?)),
            None => None,
        };
        let mut warnings = Vec::new();
        let Found { mut examples, unlisted } = examples::find(folder.as_ref(), &options, &mut warnings)?;
        for example in &mut examples {
            let [width, height] = example.size;
            example.target = match &sizes {
                Some((buckets, sizes)) => buckets.choose(sizes, [width, height]),
                None => [options.resolution; 2],
            };
            if width < example.target[0] || height < example.target[1] {
                let (file, target) = (example.picture.display().to_string(), example.target);
                warnings.push(Warning::Enlarged { file, size: [width, height], target });
            }
        }
        let most = MOST_OF_AN_EPOCH / examples.len().max(1);
        if options.repeats > most {
            let (found, expected) =
                (options.repeats.to_string(), format!("at most {most} of so many pictures"));
            return Err(Error::Field { field: "repeats", found, expected });
        }
        Ok(Self { options, examples, unlisted, warnings, like: None })
    }

    /// Adds the pictures of another folder, which may have captions of another kind, behind these.
    ///
    /// # Errors
    /// When the other was opened with other options; what is left out may differ too.
    pub fn append(&mut self, other: Self) -> Result<()> {
        let (captions, left_out) = (self.options.captions.clone(), self.options.left_out.clone());
        let alike = DatasetOptions { captions, left_out, ..other.options };
        if alike != self.options {
            let expected = format!("{:?}, those of the first folder", self.options);
            return Err(Error::Field { field: "options of a folder", found: format!("{alike:?}"), expected });
        }
        self.examples.extend(other.examples);
        self.unlisted += other.unlisted;
        self.warnings.extend(other.warnings);
        Ok(())
    }

    /// Keeps `count` of the pictures, chosen by the seed, or all where there are no more (`max_train_samples`).
    ///
    /// # Errors
    /// When `count` is 0.
    pub fn choose(&mut self, count: usize) -> Result<()> {
        if count == 0 {
            let (found, expected) = ("0".to_string(), "1 or more".to_string());
            return Err(Error::Field { field: "max_train_samples", found, expected });
        }
        if count < self.examples.len() {
            let mut chosen =
                order::choose(self.examples.len(), count, self.options.seed)?.into_iter().peekable();
            let mut index = 0;
            self.examples.retain(|_| {
                index += 1;
                chosen.next_if_eq(&(index - 1)).is_some()
            });
        }
        Ok(())
    }

    /// Puts a text in the place of a word, which is not empty, wherever captions have it (`placeholder_token_at_data` of cloneofsimo's lora).
    pub fn replace_in_captions(&mut self, word: &str, text: &str) {
        for caption in self.examples.iter_mut().flat_map(|example| &mut example.captions) {
            *caption = caption.replace(word, text);
        }
    }

    /// Cuts the pictures of each batch to the size of the batch of `other` at the same place of a run, so that both can be joined: pictures of a class to the
    /// aspect-ratio buckets of what is learned. Both are to be read with the same [`BatchOptions`].
    pub fn cut_like(&mut self, other: Arc<Self>) {
        self.like = Some(other);
    }

    /// How many pictures there are, not counting repeats.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there are none, which [`open`](Self::open) does not let happen.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// How it was opened.
    pub fn options(&self) -> &DatasetOptions {
        &self.options
    }

    /// What a user should know of: pictures that are left out or enlarged.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// How many pictures of the folder are not among these because its metadata does not name them.
    pub fn unlisted(&self) -> usize {
        self.unlisted
    }

    /// The files of the pictures.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.examples.iter().map(|example| example.picture.as_path())
    }

    /// All captions of the picture at `index`, of which one is chosen at random each time; without words for its size ([`Fit::RandomSize`]).
    pub fn captions(&self, index: usize) -> &[String] {
        self.examples.get(index).map_or(&[], |example| example.captions.as_slice())
    }

    /// The widths and heights of batches. Of a dataset that is cut like another ([`cut_like`](Self::cut_like)) each picture may come in each of them.
    pub fn sizes(&self) -> Vec<[u32; 2]> {
        if let Some(other) = &self.like {
            return other.sizes();
        }
        let mut sizes = self.targets();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// Whether a picture is cut alike each time that it comes in a size, so that what a model makes of it can be kept.
    pub fn is_fixed(&self) -> bool {
        let transform = self.options.transform;
        let sizes = self.like.as_ref().map(|other| other.sizes());
        let is_only_cut =
            transform.fit == Fit::Cover && transform.flip == Flip::Never && !transform.color_jitter;
        let has_no_room = |example: &Example| {
            let targets = sizes.as_deref().unwrap_or(std::slice::from_ref(&example.target));
            targets.iter().all(|&target| resized(example.size, target).is_ok_and(|size| size == target))
        };
        self.options.drawn_once
            || transform.is_fixed()
            || (is_only_cut && self.examples.iter().all(has_no_room))
    }

    /// The picture at `index` as it comes each time where pictures are [cut alike](Self::is_fixed).
    ///
    /// # Errors
    /// Those of [`sample`](Self::sample).
    pub fn fixed_sample(&self, index: usize) -> Result<Sample> {
        self.sample(index, &mut order::fixed_generator(self.options.seed, index))
    }

    /// [`fixed_sample`](Self::fixed_sample), cut to this width and height.
    ///
    /// # Errors
    /// Those of [`sample_of_size`](Self::sample_of_size).
    pub fn fixed_sample_of_size(&self, index: usize, target: [u32; 2]) -> Result<Sample> {
        self.sample_of_size(index, target, &mut order::fixed_generator(self.options.seed, index))
    }

    /// Reads the picture at `index` and cuts it; what is random is drawn from `generator`.
    ///
    /// # Errors
    /// When there is no such picture, or it cannot be read.
    pub fn sample(&self, index: usize, generator: &mut TorchGenerator) -> Result<Sample> {
        let own = self.examples.get(index).map(|example| example.target);
        self.sample_of_size(index, own.unwrap_or([self.options.resolution; 2]), generator)
    }

    /// [`sample`](Self::sample), cut to this width and height.
    ///
    /// # Errors
    /// Those of [`sample`](Self::sample), and when a side is 0.
    pub fn sample_of_size(
        &self,
        index: usize,
        target: [u32; 2],
        generator: &mut TorchGenerator,
    ) -> Result<Sample> {
        let Some(example) = self.examples.get(index) else {
            let expected = format!("less than {}", self.examples.len());
            return Err(Error::Field { field: "index", found: index.to_string(), expected });
        };
        let picture = read_picture(&example.picture)?;
        let (width, height) = picture.dimensions();
        let transform = &self.options.transform;
        let cut = transform.choose([width, height], target, generator)?;
        let others = example.others.iter().map(|path| cut.apply(&read_picture(path)?));
        let others = others.collect::<Result<_>>()?;
        let jitter = transform.color_jitter.then(|| ColorJitter::draw(generator)).transpose()?;
        let whole = transform.fit != Fit::Cover;
        let words = transform.fit.words(cut.resized[0], cut.target[0]);
        let caption = self.choose_caption(&example.captions, words, generator)?;
        Ok(Sample {
            index,
            caption,
            picture: match jitter {
                Some(jitter) => cut.apply_changed(&picture, |resized| jitter.apply(resized))?,
                None => cut.apply(&picture)?,
            },
            others,
            original_size: (height, width),
            crop_top_left: cut.crop_top_left(),
            area: whole.then(|| cut.area()).flatten(),
        })
    }

    /// One of `captions`, behind one of `words` if there are any.
    fn choose_caption(
        &self,
        captions: &[String],
        words: &[&str],
        generator: &mut TorchGenerator,
    ) -> Result<String> {
        let dropout = self.options.caption_dropout;
        if dropout > 0.0 && f64::from(transform::uniform(generator)?) < dropout {
            return Ok(String::new());
        }
        let mut one_of = |count: usize| transform::below(count as u32, generator);
        let caption = match captions {
            [] => return Ok(String::new()),
            [caption] => caption,
            captions => &captions[one_of(captions.len())? as usize],
        };
        Ok(match words {
            [] => caption.clone(),
            words => format!("{}{caption}", words[one_of(words.len())? as usize]),
        })
    }
}
