//! Batches of pictures, any of which can be made from its place in the run alone.

use candle_core::Tensor;
use candle_diffusers_pipelines::{from_pictures, normalize};
use image::RgbImage;

use super::examples::skipped;
use super::order::{batch_count, batches, generator};
use super::{Dataset, Sample, Warning};
use crate::error::{Error, Result};

/// How pictures are put in batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Pictures of one batch of this process (`train_batch_size`).
    pub batch_size: usize,
    /// Make incomplete batches whole by pictures that have come already. With several processes that is always done.
    pub fill: bool,
    /// The number of this process, from 0.
    pub process: usize,
    /// How many processes share each batch: together they see the pictures that one process with so many times the batch size sees.
    pub processes: usize,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self { batch_size: 1, fill: false, process: 0, processes: 1 }
    }
}

/// More pictures at once fit into no memory.
const MOST_OF_A_BATCH: usize = 65_536;

impl BatchOptions {
    /// Whether they are in range.
    ///
    /// # Errors
    /// When a batch has no pictures or, of all processes together, more than 65,536; or there is no such process.
    pub fn check(&self) -> Result<()> {
        let wrong = |field, found: usize, expected: String| {
            Err(Error::Field { field, found: found.to_string(), expected })
        };
        if self.processes == 0 {
            return wrong("processes", 0, "1 or more".to_string());
        }
        let most = MOST_OF_A_BATCH / self.processes;
        if !(1..=most).contains(&self.batch_size) {
            return wrong("train_batch_size", self.batch_size, format!("1 to {most}"));
        }
        if self.process >= self.processes {
            return wrong("process", self.process, format!("less than {}", self.processes));
        }
        Ok(())
    }
}

/// A place in a run, at which it can go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// How often all pictures have come.
    pub epoch: u64,
    /// Batches of this epoch that have come.
    pub batch: u64,
}

/// A batch of all processes, before it is read.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    /// The places of its pictures.
    places: Vec<usize>,
    /// Width and height that they are cut to.
    target: [u32; 2],
}

/// Pictures of one size.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// At least one.
    pub samples: Vec<Sample>,
    /// Where the next batch is.
    pub next: Position,
    /// Pictures that were left out.
    pub warnings: Vec<Warning>,
}

impl Batch {
    /// The pictures as a tensor (batch, 3, height, width) of float32 from -1 to 1, as a VAE encodes them; 0 around those that are smaller.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn pixel_values(&self) -> Result<Tensor> {
        let pictures: Vec<RgbImage> = self.samples.iter().map(|sample| sample.picture.clone()).collect();
        let pixel_values = normalize(&from_pictures(&pictures)?)?;
        if self.samples.iter().all(Sample::is_full) {
            return Ok(pixel_values);
        }
        let shown = self.samples.iter().map(Sample::shown).collect::<Result<Vec<_>>>()?;
        Ok(pixel_values.broadcast_mul(&Tensor::stack(&shown, 0)?)?)
    }

    /// The pictures of the picture column `column`, as [`pixel_values`](Self::pixel_values), but from 0 to 1.
    ///
    /// # Errors
    /// If there is no such column.
    pub fn other_pixel_values(&self, column: usize) -> Result<Tensor> {
        let pictures = self.samples.iter().filter_map(|sample| sample.others.get(column).cloned());
        Ok(from_pictures(&pictures.collect::<Vec<_>>())?)
    }

    /// The captions.
    pub fn captions(&self) -> Vec<&str> {
        self.samples.iter().map(|sample| sample.caption.as_str()).collect()
    }
}

impl Dataset {
    /// How many batches an epoch has.
    pub fn batches_per_epoch(&self, options: &BatchOptions) -> usize {
        let whole = options.batch_size.saturating_mul(options.processes).max(1);
        batch_count(&self.targets(), self.options.repeats, whole)
    }

    /// The batch at `position`.
    ///
    /// # Errors
    /// When an option or the position is out of range, or a picture cannot be read: where `skip_broken` is set, only if none of its size can.
    pub fn batch(&self, position: Position, options: &BatchOptions) -> Result<Batch> {
        let plan = self.epoch(position.epoch, options)?;
        self.planned_batch(&plan, position, options)
    }

    /// The batches of an epoch.
    pub(super) fn epoch(&self, epoch: u64, options: &BatchOptions) -> Result<Vec<Planned>> {
        options.check()?;
        let whole = options.batch_size * options.processes;
        let fill = options.fill || options.processes > 1;
        let mut generator = generator(self.options.seed, epoch, 0);
        let batches = batches(&self.targets(), self.options.repeats, whole, fill, &mut generator)?;
        let targets = match &self.like {
            Some(other) => {
                let taken = epoch.saturating_mul(batches.len() as u64);
                other.targets_of_batches(taken, batches.len(), options)?
            }
            None => batches.iter().map(|places| self.examples[places[0]].target).collect(),
        };
        let planned = |(places, target)| Planned { places, target };
        Ok(batches.into_iter().zip(targets).map(planned).collect())
    }

    /// The sizes of the `count` batches after the first `taken` of a run.
    fn targets_of_batches(&self, taken: u64, count: usize, options: &BatchOptions) -> Result<Vec<[u32; 2]>> {
        let per_epoch = self.batches_per_epoch(options).max(1) as u64;
        let (mut epoch, mut skipped) = (taken / per_epoch, (taken % per_epoch) as usize);
        let mut targets = Vec::with_capacity(count);
        while targets.len() < count {
            let plan = self.epoch(epoch, options)?;
            targets.extend(plan.iter().skip(skipped).map(|batch| batch.target).take(count - targets.len()));
            (epoch, skipped) = (epoch.saturating_add(1), 0);
        }
        Ok(targets)
    }

    pub(super) fn planned_batch(
        &self,
        plan: &[Planned],
        position: Position,
        options: &BatchOptions,
    ) -> Result<Batch> {
        let Some(Planned { places, target }) = plan.get(position.batch as usize) else {
            let (found, expected) = (position.batch.to_string(), format!("less than {}", plan.len()));
            return Err(Error::Field { field: "batch", found, expected });
        };
        let first = options.process * options.batch_size;
        let own = places.iter().enumerate().skip(first).take(options.batch_size);
        let whole = (options.batch_size * options.processes) as u64;
        let (mut samples, mut warnings) = (Vec::new(), Vec::new());
        for (slot, &index) in own {
            let purpose = 1 + position.batch * whole + slot as u64;
            samples.push(self.readable_sample(index, *target, position.epoch, purpose, &mut warnings)?);
        }
        let next = if position.batch + 1 < plan.len() as u64 {
            Position { batch: position.batch + 1, ..position }
        } else {
            Position { epoch: position.epoch + 1, batch: 0 }
        };
        Ok(Batch { samples, next, warnings })
    }

    /// The picture at `index` cut to `target`, or the next one of the same size where it cannot be read and that is allowed.
    fn readable_sample(
        &self,
        index: usize,
        target: [u32; 2],
        epoch: u64,
        purpose: u64,
        warnings: &mut Vec<Warning>,
    ) -> Result<Sample> {
        let own = self.examples[index].target;
        let places = (index..self.examples.len()).chain(0..index);
        let mut first_error = None;
        for place in places.filter(|&place| self.examples[place].target == own) {
            let sample = match self.options.drawn_once {
                true => self.fixed_sample_of_size(place, target),
                false => {
                    let mut generator = generator(self.options.seed, epoch, purpose);
                    self.sample_of_size(place, target, &mut generator)
                }
            };
            match sample {
                Ok(sample) => return Ok(sample),
                Err(error) if self.options.skip_broken => {
                    warnings.push(skipped(&self.examples[place].picture, &error));
                    first_error.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(first_error.unwrap_or(Error::ReadingEnded))
    }

    /// The size that each picture is cut to by itself.
    pub(super) fn targets(&self) -> Vec<[u32; 2]> {
        self.examples.iter().map(|example| example.target).collect()
    }
}
