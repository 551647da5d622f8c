//! Matrix products of float32 and half precision on the CPU: what `linear` and `conv2d` are computed with. The crate's README says how it works.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512bf16;
mod conv2d;
mod file_numbers;
mod finish;
mod geometry;
mod gradient;
#[cfg(test)]
mod gradient_tests;
#[cfg(test)]
mod input_gradient_tests;
mod level;
mod linear;
mod microkernel;
mod multiply;
mod packed;
mod panels;
mod parts;
#[cfg(test)]
mod parts_tests;
mod peak;
mod pixels;
mod portable;
mod precision;
mod rows;
mod shifted;
mod split;
#[cfg(test)]
mod tests;
mod transposed;
mod weight_panels;
mod winograd;
#[cfg(test)]
mod winograd_tests;
mod winograd_transforms;

use candle_core::op::BackpropOp;
use candle_core::{DType, Result, Storage, Tensor};

use crate::cpu::Float;
use multiply::After;

pub(crate) use gradient::{conv2d_weight_gradient, linear_weight_gradient};
pub use level::Level;
pub use packed::PackedWeight;
pub use peak::peak_operations_per_second;
pub use precision::{Float32MatmulPrecision, float32_matmul_precision, set_float32_matmul_precision};
pub use transposed::keep_transposed_weights;

/// Whether these products compute what the tensors ask for: on the CPU, in one dtype of at most 32 bits.
pub(crate) fn computes(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> bool {
    let fits = |tensor: &Tensor| tensor.device().is_cpu() && tensor.dtype() == weight.dtype();
    PackedWeight::packs(weight) && fits(x) && bias.is_none_or(fits)
}

/// Fails unless the input is one that the weight [`takes`](PackedWeight::takes), and the bias one number for each of its features; gives the
/// bias's numbers.
fn bias_values(
    operation: &str,
    x: &Tensor,
    weight: &PackedWeight,
    bias: Option<&Tensor>,
) -> Result<Option<Vec<f32>>> {
    let features = weight.shape().dims()[0];
    if let Some(bias) = bias
        && (bias.dims() != [features] || bias.dtype() != x.dtype())
    {
        candle_core::bail!(
            "{operation}: the bias is {:?} of {}, expected [{features}] of {}",
            bias.dims(),
            bias.dtype().as_str(),
            x.dtype().as_str()
        );
    }
    if !weight.takes(x, bias) {
        candle_core::bail!(
            "{operation}: a packed weight takes its own dtype, {}, on the CPU; the input is {} on {:?}",
            weight.dtype().as_str(),
            x.dtype().as_str(),
            x.device().location()
        );
    }
    bias.map(|bias| bias.to_dtype(DType::F32)?.to_vec1()).transpose()
}

/// Calls `function` with the numbers of a tensor on the CPU, in the order of its dimensions.
fn with_values<S: Float, T>(tensor: &Tensor, function: impl FnOnce(&[S]) -> Result<T>) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        candle_core::bail!("expected a tensor on the CPU, found one on {:?}", tensor.device().location());
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("{:?} is not contiguous", layout.shape());
    };
    function(&storage.as_slice::<S>()?[start..end])
}

/// Calls `function` with what is to be added as numbers, which must be as many as an output of this shape has.
fn with_addend<S: Float, T>(
    operation: &str,
    after: After<'_, Tensor>,
    shape: &[usize],
    function: impl FnOnce(After<'_, [S]>) -> Result<T>,
) -> Result<T> {
    match after {
        After::Nothing => function(After::Nothing),
        After::Geglu => function(After::Geglu),
        After::Activate(activation) => function(After::Activate(activation)),
        After::Add(addend) => {
            if addend.dims() != shape || addend.dtype() != S::DTYPE || !addend.device().is_cpu() {
                candle_core::bail!(
                    "{operation}: what is added is {:?} of {} on {:?}, expected {shape:?} of {} on the CPU",
                    addend.dims(),
                    addend.dtype().as_str(),
                    addend.device().location(),
                    S::DTYPE.as_str()
                );
            }
            with_values(addend, |addend: &[S]| function(After::Add(addend)))
        }
    }
}

/// A tensor on the CPU of as many numbers as the shape has.
fn to_tensor<S: Float>(values: Vec<S>, shape: &[usize]) -> Tensor {
    let storage = Storage::Cpu(S::to_cpu_storage_owned(values));
    Tensor::from_storage(storage, shape, BackpropOp::none(), false)
}
