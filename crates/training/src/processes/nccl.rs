//! Processes with a GPU each: MPI starts them and carries what they say, NCCL adds their gradients up.

use std::fmt;

use candle_core::cuda::cudarc::nccl::{Comm, Id, ReduceOp};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Storage, Tensor};

use super::{GradientBuckets, MpiProcesses, Processes, mpi};
use crate::error::{Error, Result};

/// Processes of [`MpiProcesses`] that have a CUDA device of their own each: what is on the devices is added up there. No machine with GPUs has run this yet; the
/// compiler has checked it.
///
/// NCCL's sums and candle's kernels are in one queue of the device, the sums after the backward pass: on a GPU models compute by candle's operations, which hand out gradients at
/// its end.
pub struct NcclProcesses {
    mpi: MpiProcesses,
    device: CudaDevice,
    communicator: Comm,
}

impl fmt::Debug for NcclProcesses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NcclProcesses").field("mpi", &self.mpi).finish_non_exhaustive()
    }
}

impl NcclProcesses {
    /// Connects the devices of all processes, which call this together.
    ///
    /// # Errors
    /// When NCCL cannot connect them, for instance since two processes have the same device.
    pub fn connect(mpi: MpiProcesses, device: &CudaDevice) -> Result<Self> {
        // NCCL's processes find each other by a number that the first one makes.
        let own = if mpi.is_first() {
            Id::new().map_err(nccl)?.internal().map(|byte| byte as u8)
        } else {
            [0; 128]
        };
        let first = mpi.meet(&own)?.swap_remove(0);
        let mut id = [0; 128];
        id.iter_mut().zip(first).for_each(|(id, byte)| *id = byte as _);
        let stream = device.cuda_stream();
        let communicator = Comm::from_rank(stream, mpi.rank(), mpi.size(), Id::uninit(id)).map_err(nccl)?;
        Ok(Self { mpi, device: device.clone(), communicator })
    }
}

impl Processes for NcclProcesses {
    fn rank(&self) -> usize {
        self.mpi.rank()
    }

    fn size(&self) -> usize {
        self.mpi.size()
    }

    fn gather(&self, message: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.mpi.gather(message)
    }

    fn sum_during(&self, work: &mut dyn FnMut(), buckets: &mut dyn GradientBuckets) -> Result<()> {
        // On a GPU all gradients come at the end of the backward pass, which is only queued by then.
        work();
        while let Some(values) = buckets.next()? {
            buckets.put(self.sum(&values)?);
        }
        Ok(())
    }

    fn finish(&self) {
        self.mpi.finish();
    }
}

impl NcclProcesses {
    fn sum(&self, values: &Tensor) -> Result<Tensor> {
        if !values.device().is_cuda() {
            return mpi::sum(values);
        }
        let count = values.elem_count();
        let mut sum = self.device.alloc_zeros::<f32>(count)?;
        {
            let (storage, layout) = values.storage_and_layout();
            let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets())
            else {
                return Err(Error::Connection("gradients are not contiguous on a CUDA device".to_string()));
            };
            let own = storage.as_cuda_slice::<f32>()?.slice(start..end);
            self.communicator.all_reduce(&own, &mut sum, &ReduceOp::Sum).map_err(nccl)?;
        }
        let storage = CudaStorage::wrap_cuda_slice(sum, self.device.clone());
        Ok(Tensor::from_storage(Storage::Cuda(storage), count, BackpropOp::none(), false))
    }
}

fn nccl(error: candle_core::cuda::cudarc::nccl::result::NcclError) -> Error {
    Error::Connection(format!("NCCL: {error:?}"))
}
