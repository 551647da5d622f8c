//! The processes of a run: one, or as many as `mpirun` has started.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::Device;
use candle_diffusers_training::{BatchShare, Error, OneProcess, Processes, StepReport, Trainer};

use crate::device;
use crate::progress::Progress;
use crate::terminal::{self, Told};

/// Where those who start processes say how many there are: Open MPI; MPICH and its relatives; Slurm.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];
/// Where they say which of a machine's processes one is, from 0.
const LOCAL_RANKS: [&str; 3] = ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];

fn number(variables: &[&str]) -> Option<usize> {
    variables.iter().find_map(|variable| std::env::var(variable).ok()?.parse().ok())
}

/// The processes and the device of this one, where it had to be opened to connect them.
pub(super) struct Started {
    pub(super) processes: Rc<dyn Processes>,
    device: Option<Device>,
}

/// Connects this process with the others that were started with it. Only the first one speaks.
pub(super) fn start(progress: &Progress) -> Result<Started> {
    let size = number(&SIZES).unwrap_or(1);
    if size <= 1 {
        return Ok(Started { processes: Rc::new(OneProcess), device: None });
    }
    let started = connect(size)?;
    if !started.processes.is_first() {
        terminal::be_silent();
        progress.hide();
    }
    Ok(started)
}

#[cfg(not(feature = "mpi"))]
fn connect(size: usize) -> Result<Started> {
    anyhow::bail!(
        "this is one of {size} processes, but the program was built without MPI and would train {size} times the same; build it with --features mpi"
    )
}

#[cfg(all(feature = "mpi", not(feature = "nccl")))]
fn connect(_: usize) -> Result<Started> {
    let mpi = candle_diffusers_training::MpiProcesses::connect()?;
    Ok(Started { processes: Rc::new(mpi), device: None })
}

#[cfg(feature = "nccl")]
fn connect(size: usize) -> Result<Started> {
    let mpi = candle_diffusers_training::MpiProcesses::connect()?;
    let device = own_device(size)?;
    let processes = match &device {
        Device::Cuda(cuda) => Rc::new(candle_diffusers_training::NcclProcesses::connect(mpi, cuda)?) as Rc<_>,
        _ => Rc::new(mpi) as Rc<_>,
    };
    Ok(Started { processes, device: Some(device) })
}

/// The device that the program was built for; of several processes on a machine with several GPUs each has its own.
fn own_device(size: usize) -> Result<Device> {
    let choice = (size > 1 && cfg!(feature = "cuda"))
        .then(|| device::DeviceChoice::Cuda(number(&LOCAL_RANKS).unwrap_or_default()));
    device::open(choice)
}

impl Started {
    /// The device of this process.
    pub(super) fn device(&self) -> Result<Device> {
        self.device.clone().map_or_else(|| own_device(self.processes.size()), Ok)
    }

    /// Whether this process writes files and speaks.
    pub(super) fn is_first(&self) -> bool {
        self.processes.is_first()
    }

    /// Which part of batches of so many kinds of pictures this process sees.
    pub(super) fn share(&self, parts: usize) -> BatchShare {
        BatchShare { process: self.processes.rank(), processes: self.processes.size(), parts }
    }

    /// Lets the first process do something for all.
    pub(super) fn first_alone(&self, action: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.is_first() {
            action()?;
        }
        self.processes.meet(&[])?;
        Ok(())
    }

    /// Lets the first process do something before the others, where they would be in each other's way.
    pub(super) fn first_before_others<T>(&self, action: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.is_first() {
            let result = action()?;
            self.processes.meet(&[])?;
            return Ok(result);
        }
        self.processes.meet(&[])?;
        action()
    }

    /// Whether it is so in any process.
    pub(super) fn any(&self, own: bool) -> Result<bool> {
        Ok(self.processes.meet(&[u8::from(own)])?.iter().any(|message| message == &[1]))
    }

    /// Fails where the processes do not begin alike, as when each machine has a folder of its own under the same name.
    pub(super) fn check_same_beginning(
        &self,
        trainer: &Trainer,
        pictures: &BTreeMap<String, String>,
    ) -> Result<()> {
        if self.processes.size() == 1 {
            return Ok(());
        }
        let mut hasher = DefaultHasher::new();
        pictures.hash(&mut hasher);
        let (run, pictures) = (trainer.digest()?.to_le_bytes(), hasher.finish().to_le_bytes());
        let all = self.processes.meet(&[run, pictures].concat())?;
        for (rank, other) in all.iter().enumerate() {
            let what = match (other[..8] == all[0][..8], other[8..] == all[0][8..]) {
                (true, true) => continue,
                (_, false) => "other pictures or captions",
                (false, true) => "other weights or another checkpoint",
            };
            let problem = format!("begins with {what} than process 0; all need the same folders");
            return Err(Error::Process { rank, problem }.into());
        }
        Ok(())
    }

    /// What says how far the run is where `mpirun` passes on lines, so that no bar can be drawn.
    pub(super) fn notes(&self, progress: &Progress) -> Notes {
        Notes { is_needed: self.processes.size() > 1 && progress.is_hidden(), last: Instant::now(), steps: 0 }
    }

    /// Ends the run of all processes, once one of them has failed or all have come to the end. A problem is told once, by the first.
    pub(super) fn end(&self, result: Result<()>, progress: &Progress) -> Result<()> {
        let processes = self.processes.as_ref();
        if processes.size() == 1 {
            return result;
        }
        let result = match result {
            Ok(()) => processes.meet(&[]).map(drop).map_err(anyhow::Error::from),
            Err(error) => Err(tell(processes, error)),
        };
        let Err(error) = result else {
            processes.finish();
            return Ok(());
        };
        if matches!(error.downcast_ref(), Some(Error::Connection(_))) {
            // The others cannot be told; whoever started the processes ends them when this one has failed.
            return Err(error);
        }
        // Before it leaves: when one process has ended with an error, the rest are killed.
        progress.suspend(|| terminal::note(&format!("error: {}", terminal::one_line(&error))));
        processes.finish();
        Err(anyhow::Error::msg(Told))
    }
}

/// Tells the others of an error that is this process's own.
fn tell(processes: &dyn Processes, error: anyhow::Error) -> anyhow::Error {
    if matches!(error.downcast_ref(), Some(Error::Process { .. } | Error::Connection(_))) {
        return error;
    }
    match processes.fail(&terminal::one_line(&error)) {
        Ok(Error::Process { rank, .. }) if rank == processes.rank() => error,
        Ok(known) | Err(known) => known.into(),
    }
}

/// A line about the steps, now and then.
pub(super) struct Notes {
    is_needed: bool,
    last: Instant,
    steps: u32,
}

impl Notes {
    pub(super) fn step(&mut self, report: &StepReport, total: u64) {
        const BETWEEN: Duration = Duration::from_secs(10);
        self.steps += 1;
        let time = self.last.elapsed();
        if !self.is_needed || time < BETWEEN {
            return;
        }
        let pace = time.as_secs_f64() / f64::from(self.steps);
        let (step, loss) = (report.step, report.loss);
        terminal::note(&format!("step {step} of {total}: loss {loss:.4}, {pace:.2} s/step"));
        (self.last, self.steps) = (Instant::now(), 0);
    }
}
