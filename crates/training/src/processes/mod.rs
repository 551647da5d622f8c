//! Several processes that train one model together, each with its share of every batch (data parallel).
//!
//! All hold the whole model and take the same steps; what they must tell each other is little, so the trait that an engine implements is small. Nothing of
//! what they learn depends on how many they are: see [`BatchShare`].

mod gradients;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod share;

use std::fmt::Debug;

use candle_core::Tensor;

use crate::error::{Error, Result};

pub(crate) use gradients::{SumOverProcesses, mean_loss};
#[cfg(feature = "mpi")]
pub use mpi::MpiProcesses;
#[cfg(feature = "nccl")]
pub use nccl::NcclProcesses;
pub(crate) use share::SourceOfStep;
pub use share::{BatchShare, RandomSource, ShareOfRandom};

/// What is to be added up over all processes, one tensor after the other.
pub trait GradientBuckets: Send {
    /// Waits for the next one, and gives it: one-dimensional and float32. None after the last.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn next(&mut self) -> Result<Option<Tensor>>;

    /// Takes the sums, each once, in their order.
    fn put(&mut self, sum: Tensor);
}

/// The processes of a run: one ([`OneProcess`]), or several that MPI or NCCL connects.
///
/// All must call the same methods in the same order. A process that fails has still to come to their next meeting, to say so by [`fail`](Self::fail): the others
/// then get its problem as an [`Error::Process`] and do not wait for it. Nobody may meet after that.
pub trait Processes: Debug {
    /// The number of this process, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// Waits for all and gives what each has said, by rank. An engine's part of [`meet`](Self::meet).
    ///
    /// # Errors
    /// When the processes have lost each other.
    fn gather(&self, message: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Calls `work` once, on this thread, and while it goes on adds up over all processes what `buckets` gives, each as soon as it is there: on their device, to the
    /// same bits in each process.
    ///
    /// # Errors
    /// When the processes have lost each other, or `buckets` fails: only after `work`.
    fn sum_during(&self, work: &mut dyn FnMut(), buckets: &mut dyn GradientBuckets) -> Result<()>;

    /// Takes leave of the others, when all have come to their end or know of a problem.
    fn finish(&self) {}

    /// Whether this is the process that writes files and speaks for all.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Waits for all and gives what each has said, by rank.
    ///
    /// # Errors
    /// When a process has failed, or they have lost each other.
    fn meet(&self, message: &[u8]) -> Result<Vec<Vec<u8>>> {
        let messages = self.gather(&[&[WELL], message].concat())?;
        match failure(&messages) {
            Some(error) => Err(error),
            None => Ok(messages.into_iter().map(|message| message[1..].to_vec()).collect()),
        }
    }

    /// Tells all others, at their next meeting, what has gone wrong here; gives what all then know: the problem of the first process that has one.
    ///
    /// # Errors
    /// When they have lost each other.
    fn fail(&self, problem: &str) -> Result<Error> {
        let messages = self.gather(&[&[FAILED], problem.as_bytes()].concat())?;
        let own = || Error::Process { rank: self.rank(), problem: problem.to_string() };
        Ok(failure(&messages).unwrap_or_else(own))
    }
}

/// What a message of a meeting begins with.
const WELL: u8 = 0;
const FAILED: u8 = 1;

fn failure(messages: &[Vec<u8>]) -> Option<Error> {
    let (rank, message) = messages.iter().enumerate().find(|(_, message)| message.first() != Some(&WELL))?;
    let problem = String::from_utf8_lossy(message.get(1..).unwrap_or_default()).into_owned();
    Some(Error::Process { rank, problem })
}

/// A run of a single process.
#[derive(Clone, Copy, Debug, Default)]
pub struct OneProcess;

impl Processes for OneProcess {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn gather(&self, message: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![message.to_vec()])
    }

    fn sum_during(&self, work: &mut dyn FnMut(), buckets: &mut dyn GradientBuckets) -> Result<()> {
        work();
        while let Some(values) = buckets.next()? {
            buckets.put(values);
        }
        Ok(())
    }
}
