//! Matrix products of float32 on the CPU: what `linear` and `conv2d` are computed with. The crate's README says how it works.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod conv2d;
mod level;
mod linear;
mod microkernel;
mod multiply;
mod packed;
mod panels;
mod portable;
#[cfg(test)]
mod tests;

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor};

pub use level::Level;
pub use packed::PackedWeight;

/// Whether these products compute what the tensors ask for: on the CPU, in floats of at most 32 bits, and with nothing to
/// differentiate.
pub(crate) fn computes(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> bool {
    PackedWeight::takes(x, bias) && matches!(weight.device(), Device::Cpu) && !weight.track_op()
}

/// Fails unless the input is one that [`PackedWeight::takes`], and the bias one number for each of `features` in the dtype of `x`; gives the
/// bias's numbers.
fn bias_values(
    operation: &str,
    x: &Tensor,
    bias: Option<&Tensor>,
    features: usize,
) -> Result<Option<Vec<f32>>> {
    if !PackedWeight::takes(x, bias) {
        candle_core::bail!(
            "{operation}: a packed weight takes float32 or half precision on the CPU, without variables; the input is {} on {:?}{}",
            x.dtype().as_str(),
            x.device().location(),
            if x.track_op() { " and depends on a variable" } else { "" }
        );
    }
    let Some(bias) = bias else { return Ok(None) };
    if bias.dims() != [features] || bias.dtype() != x.dtype() {
        candle_core::bail!(
            "{operation}: the bias is {:?} of {}, expected [{features}] of {}",
            bias.dims(),
            bias.dtype().as_str(),
            x.dtype().as_str()
        );
    }
    Ok(Some(bias.to_dtype(DType::F32)?.to_vec1()?))
}

/// Calls `function` with the numbers of a float32 tensor on the CPU, in the order of its dimensions.
fn with_values<T>(tensor: &Tensor, function: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
        candle_core::bail!(
            "expected float32 on the CPU, found {:?} on {:?}",
            tensor.dtype(),
            tensor.device().location()
        );
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("{:?} is not contiguous", layout.shape());
    };
    function(&values[start..end])
}
