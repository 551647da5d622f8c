//! What the operations on the CPU that are not products are made of: loops over chunks of 16 numbers, which compilers turn into the
//! vectors of the level in use, on all cores.

mod convert;
mod float;
mod instructions;
mod level;
mod memory;
mod pointwise;
#[cfg(test)]
pub(crate) mod testing;

use candle_core::{DType, Device, Tensor};

pub(crate) use convert::{convert, convert_to_fresh, to_floats};
pub(crate) use float::{Chunk, Float, LANES, by_float, chunk_by_chunk, load_tail, store, store_tail};
#[cfg(target_arch = "x86_64")]
pub(crate) use instructions::{Avx2, Avx512};
pub(crate) use instructions::{Instructions, Plain};
pub(crate) use level::{Work, run_at};
pub(crate) use memory::{CACHE_LINE, fill, prefetch, room, values};
pub(crate) use pointwise::{OnPart, Pointwise, map, map_two};

/// A task has at least so many numbers: of float32, 64 kB.
pub(crate) const TASK: usize = 1 << 14;

/// Whether the code of this crate computes what the tensors ask for: on the CPU, all in one dtype of float32 or half precision.
pub(crate) fn computes(tensors: &[&Tensor]) -> bool {
    let fits = |tensor: &&Tensor| {
        matches!(tensor.device(), Device::Cpu)
            && matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16)
            && tensor.dtype() == tensors[0].dtype()
    };
    !tensors.is_empty() && tensors.iter().all(fits)
}
