//! In which dtype an operation computes.

use candle_core::{DType, Device, Tensor};

/// The dtype in which products of `x` are computed: candle has no bfloat16 products on the CPU, so there they are
/// computed in float32 and rounded once, which is also what bfloat16 hardware does.
pub(crate) fn product_dtype(x: &Tensor) -> DType {
    match (x.device(), x.dtype()) {
        (Device::Cpu, DType::BF16) => DType::F32,
        (_, dtype) => dtype,
    }
}

/// The dtype in which sums over many values (means, variances, softmax) of `x` are computed: never half precision.
pub(crate) fn sum_dtype(x: &Tensor) -> DType {
    match x.dtype() {
        DType::F16 | DType::BF16 => DType::F32,
        dtype => dtype,
    }
}
