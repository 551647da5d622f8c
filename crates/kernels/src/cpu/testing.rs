//! What tests of several modules share.

use candle_core::{DType, Tensor};

pub(crate) use candle_diffusers_test_support::{numbers, values as doubles};

use crate::Level;

pub(crate) fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_available())
}

/// The same numbers as a view into more of them, with strides of another order where there is more than one dimension.
pub(crate) fn as_view(tensor: &Tensor) -> Tensor {
    let last = tensor.rank() - 1;
    let wider = tensor.pad_with_zeros(last, 2, 3).unwrap();
    let flipped = wider.transpose(0, last).unwrap().contiguous().unwrap().transpose(0, last).unwrap();
    flipped.narrow(last, 2, tensor.dims()[last]).unwrap()
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

/// Fails where a number is farther from its sum than `part` of what goes with it, the sum of the absolute terms, and what rounding to the dtype takes.
pub(crate) fn assert_sums(name: &str, found: &Tensor, expected: &[(f64, f64)], part: f64) {
    // Half of a unit in the last place, and of the smallest number.
    let (round, smallest) = match found.dtype() {
        DType::F16 => (2f64.powi(-11), 1e-7),
        DType::BF16 => (2f64.powi(-8), 1e-7),
        _ => (0.0, 0.0),
    };
    let found = doubles(found);
    assert_eq!(found.len(), expected.len(), "{name}");
    for (index, (found, (sum, scale))) in found.iter().zip(expected).enumerate() {
        let bound = part * scale + round * sum.abs() * 1.01 + smallest;
        assert!((found - sum).abs() <= bound, "{name}, number {index}: {found}, expected {sum}");
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
