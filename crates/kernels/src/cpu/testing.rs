//! What tests of several modules share.

use candle_core::{DType, Device, Tensor};

use crate::Level;

pub(crate) fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_available())
}

/// Numbers from about -1 to 1 that look random and are the same in every run.
pub(crate) fn numbers(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The same numbers as a view into more of them, with strides of another order where there is more than one dimension.
pub(crate) fn as_view(tensor: &Tensor) -> Tensor {
    let last = tensor.rank() - 1;
    let wider = tensor.pad_with_zeros(last, 2, 3).unwrap();
    let flipped = wider.transpose(0, last).unwrap().contiguous().unwrap().transpose(0, last).unwrap();
    flipped.narrow(last, 2, tensor.dims()[last]).unwrap()
}

pub(crate) fn doubles(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Fails where a number is farther from the expected one than `bound` times what is expected, or than `bound` times 1.
pub(crate) fn assert_near(name: &str, found: &Tensor, expected: &[f64], bound: f64) {
    let found = doubles(found);
    assert_eq!(found.len(), expected.len(), "{name}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let allowed = bound * expected.abs().max(1.0);
        assert!(
            (found - expected).abs() <= allowed,
            "{name}: number {index} is {found}, expected {expected}"
        );
    }
}

/// How far a number of the dtype may be from what it was rounded from, and a little more.
pub(crate) fn bound(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1e-3,
        DType::BF16 => 8e-3,
        _ => 2e-6,
    }
}
