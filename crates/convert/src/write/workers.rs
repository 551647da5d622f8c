//! The tensors of all files, written by several threads.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::copy::{Unit, Worker, units};
use super::{Progress, Seen, Staging, WeightFile};
use crate::{Error, Result, Source};

/// More threads than this do not make a disk faster.
const MAX_THREADS: usize = 4;

/// Writes the weight files of a destination.
///
/// # Errors
/// When they cannot be written or the source cannot be read.
pub(super) fn write_weights(
    staging: &Staging,
    files: &[WeightFile],
    source: &dyn Source,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Seen> {
    for file in files {
        let created = staging.create(&file.path, &file.header, file.bytes());
        created.map_err(|error| Error::Write { destination: staging.destination(), source: error })?;
    }
    let units = units(files, source);
    let shared = Shared {
        staging,
        files,
        source,
        progress,
        total: files.iter().flat_map(|file| &file.tensors).map(|laid| laid.bytes).sum(),
        units: &units,
        next: AtomicUsize::new(0),
        done: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
        result: Mutex::new((None, Found::default())),
    };
    let threads =
        thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS).min(units.len().max(1));
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| shared.work());
        }
        shared.work();
    });
    let (error, found) = shared.result.into_inner().unwrap_or_else(PoisonError::into_inner);
    match error {
        Some(error) => Err(error),
        None => Ok(found.seen()),
    }
}

struct Shared<'a> {
    staging: &'a Staging,
    files: &'a [WeightFile],
    source: &'a dyn Source,
    progress: &'a (dyn Fn(Progress) + Sync),
    total: u64,
    units: &'a [Unit<'a>],
    next: AtomicUsize,
    done: AtomicU64,
    stopped: AtomicBool,
    /// The first failure, and what was seen in the tensors.
    result: Mutex<(Option<Error>, Found)>,
}

/// The names of tensors that a user is told of.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) not_finite: BTreeSet<String>,
    pub(super) overflowed: BTreeSet<String>,
}

impl Found {
    fn seen(self) -> Seen {
        Seen {
            not_finite: self.not_finite.into_iter().collect(),
            overflowed: self.overflowed.into_iter().collect(),
        }
    }
}

impl Shared<'_> {
    fn work(&self) {
        let mut worker = Worker::new(self.staging, self.files, self.source);
        while !self.stopped.load(Ordering::Relaxed) {
            let Some(unit) = self.units.get(self.next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            if let Err(error) = worker.write(unit) {
                self.stopped.store(true, Ordering::Relaxed);
                self.lock().0.get_or_insert(error);
                break;
            }
            let done = self.done.fetch_add(unit.bytes(), Ordering::Relaxed) + unit.bytes();
            (self.progress)(Progress { done, total: self.total });
        }
        let mut result = self.lock();
        result.1.not_finite.append(&mut worker.found.not_finite);
        result.1.overflowed.append(&mut worker.found.overflowed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Option<Error>, Found)> {
        // Nothing that holds the lock can fail half-way.
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
