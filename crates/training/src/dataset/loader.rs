//! Batches read ahead on a thread of their own, so that a step finds its pictures ready.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::batches::Planned;
use super::{Batch, BatchOptions, Dataset, Position};
use crate::error::{Error, Result};

/// Batches without end, epoch after epoch.
#[derive(Debug)]
pub struct BatchLoader {
    batches: Option<Receiver<Result<Batch>>>,
    thread: Option<JoinHandle<()>>,
    started: Instant,
    waited: Duration,
}

/// How long steps have waited for pictures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Waiting {
    /// Time spent in [`BatchLoader::next_batch`].
    pub waited: Duration,
    /// Time since the loader was made.
    pub total: Duration,
}

impl Waiting {
    /// The part of all time that was spent waiting, from 0 to 1.
    pub fn share(&self) -> f64 {
        if self.total.is_zero() { 0.0 } else { self.waited.as_secs_f64() / self.total.as_secs_f64() }
    }
}

impl BatchLoader {
    /// Begins to read at `position`, up to `ahead` batches before they are asked for.
    ///
    /// # Errors
    /// When an option or the position is out of range, or the thread cannot be started.
    pub fn new(
        dataset: Arc<Dataset>,
        options: BatchOptions,
        position: Position,
        ahead: usize,
    ) -> Result<Self> {
        let plan = dataset.epoch(position.epoch, &options)?;
        if position.batch as usize >= plan.len() {
            let (found, expected) = (position.batch.to_string(), format!("less than {}", plan.len()));
            return Err(Error::Field { field: "batch", found, expected });
        }
        let (sender, batches) = sync_channel(ahead.max(1));
        let thread = thread::Builder::new()
            .name("pictures".to_string())
            .spawn(move || read(&dataset, &options, position, plan, &sender))
            .map_err(|error| Error::Field {
                field: "thread for pictures",
                found: error.to_string(),
                expected: "a thread that can be started".to_string(),
            })?;
        let (started, waited) = (Instant::now(), Duration::ZERO);
        Ok(Self { batches: Some(batches), thread: Some(thread), started, waited })
    }

    /// The next batch; waits for it where it is not ready.
    ///
    /// # Errors
    /// Those of [`Dataset::batch`]; after one, the loader gives no more.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let start = Instant::now();
        let batch = match &self.batches {
            Some(batches) => batches.recv().unwrap_or(Err(Error::ReadingEnded)),
            None => Err(Error::ReadingEnded),
        };
        self.waited += start.elapsed();
        batch
    }

    /// How long steps have waited for pictures until now.
    pub fn waiting(&self) -> Waiting {
        Waiting { waited: self.waited, total: self.started.elapsed() }
    }
}

impl Drop for BatchLoader {
    fn drop(&mut self) {
        // Without a receiver the thread ends at its next batch.
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

fn read(
    dataset: &Dataset,
    options: &BatchOptions,
    mut position: Position,
    mut plan: Vec<Planned>,
    sender: &SyncSender<Result<Batch>>,
) {
    loop {
        let batch = dataset.planned_batch(&plan, position, options);
        let next = batch.as_ref().ok().map(|batch| batch.next);
        if sender.send(batch).is_err() {
            return;
        }
        let Some(next) = next else { return };
        if next.epoch != position.epoch {
            match dataset.epoch(next.epoch, options) {
                Ok(next_plan) => plan = next_plan,
                Err(error) => {
                    _ = sender.send(Err(error));
                    return;
                }
            }
        }
        position = next;
    }
}
