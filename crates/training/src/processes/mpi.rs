//! Processes that MPI connects: `mpirun -n 2 program`.

use std::cell::Cell;
use std::fmt;
use std::mem::ManuallyDrop;
use std::thread;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use mpi::Count;
use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::environment::{Threading, Universe};
use mpi::request::{Request, Scope, scope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

use super::{GradientBuckets, Processes};
use crate::error::{Error, Result};
use crate::values::{read, to_cpu_f32};

/// The processes that `mpirun` has started, whichever machines they are on. Every thread of the process may compute; MPI is called by the one that has made this, and while
/// gradients are summed by one of its own.
///
/// A process that ends before [`finish`](Processes::finish), by whatever, ends the run: `mpirun` kills the others.
pub struct MpiProcesses {
    /// Nothing drops it but `finish`: that waits for the others, which a process that fails must not.
    universe: Cell<Option<ManuallyDrop<Universe>>>,
}

impl fmt::Debug for MpiProcesses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MpiProcesses").field("rank", &self.rank()).field("size", &self.size()).finish()
    }
}

impl MpiProcesses {
    /// Connects this process with the others. A program does that once.
    ///
    /// # Errors
    /// When it has done so already.
    pub fn connect() -> Result<Self> {
        // One thread at a time: sums have their own.
        let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Serialized) else {
            return Err(Error::Connection("MPI has been started already".to_string()));
        };
        if threading < Threading::Serialized {
            let problem =
                "this MPI library was built without threads (MPI_THREAD_SERIALIZED); use one with them";
            return Err(Error::Connection(problem.to_string()));
        }
        Ok(Self { universe: Cell::new(Some(ManuallyDrop::new(universe))) })
    }
}

impl Processes for MpiProcesses {
    fn rank(&self) -> usize {
        world().rank() as usize
    }

    fn size(&self) -> usize {
        world().size() as usize
    }

    fn gather(&self, message: &[u8]) -> Result<Vec<Vec<u8>>> {
        let length = count(message.len())?;
        let (world, mut lengths) = (world(), vec![0; self.size()]);
        scope(|scope| {
            // One process may paint or write for minutes while the others wait for it.
            wait(world.immediate_all_gather_into(scope, &length, &mut lengths[..]), pause);
        });
        let mut starts = Vec::with_capacity(lengths.len());
        let mut all: Count = 0;
        for length in &lengths {
            starts.push(all);
            all = all.checked_add(*length).ok_or_else(too_much)?;
        }
        let mut messages = vec![0u8; all as usize];
        world.all_gather_varcount_into(
            message,
            &mut PartitionMut::new(&mut messages[..], &lengths[..], &starts[..]),
        );
        let parts = starts.iter().zip(&lengths);
        Ok(parts
            .map(|(start, length)| messages[*start as usize..(start + length) as usize].to_vec())
            .collect())
    }

    fn sum_during(&self, work: &mut dyn FnMut(), buckets: &mut dyn GradientBuckets) -> Result<()> {
        thread::scope(|threads| {
            // Numbers move on where MPI is looked at, which `work` does not.
            let sums = threads.spawn(|| {
                while let Some(values) = buckets.next()? {
                    buckets.put(sum(&values)?);
                }
                Ok(())
            });
            work();
            sums.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn finish(&self) {
        if let Some(universe) = self.universe.take() {
            drop(ManuallyDrop::into_inner(universe));
        }
    }
}

/// All processes, for this thread.
fn world() -> SimpleCommunicator {
    SimpleCommunicator::world()
}

/// The sum over all processes of a one-dimensional float32 tensor, on its device.
pub(super) fn sum(values: &Tensor) -> Result<Tensor> {
    count(values.elem_count())?;
    let own = to_cpu_f32(values)?;
    let mut sum = vec![0f32; own.elem_count()];
    read(&own, |own| {
        let (world, add) = (world(), SystemOperation::sum());
        scope(|scope| wait(world.immediate_all_reduce_into(scope, own, &mut sum[..], add), pause));
        Ok(())
    })?;
    Ok(Tensor::from_vec(sum, own.elem_count(), values.device())?)
}

/// Waits, and leaves the processor core to others between two looks, which MPI itself does not.
fn wait<'a, D: ?Sized, S: Scope<'a>>(mut request: Request<'a, D, S>, pause: impl Fn(Instant)) {
    let start = Instant::now();
    while let Err(unfinished) = request.test() {
        request = unfinished;
        pause(start);
    }
}

/// Between two looks at a request that was made at `start`.
fn pause(start: Instant) {
    const BRIEF: Duration = Duration::from_millis(2);
    if start.elapsed() < BRIEF {
        thread::yield_now();
    } else {
        thread::sleep(BRIEF / 10);
    }
}

/// MPI counts in 32 bits.
fn count(length: usize) -> Result<Count> {
    Count::try_from(length).map_err(|_| too_much())
}

fn too_much() -> Error {
    Error::Connection("MPI sends no more than 2147483647 values at once".to_string())
}
