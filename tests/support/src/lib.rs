//! What the parity tests of all crates share: reading a fixture, comparing tensors with it, and numbers to try things on.
//!
//! A parity test is a folder `tests/parity/<name>/` of a crate: `export.py` asks the reference library, `<name>.safetensors`
//! is what it answered (committed), `mod.rs` compares. Only tests use this crate, so it panics where a test should fail.

// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used, clippy::panic)]

mod memory;
mod numbers;
mod original_checkpoint;
mod same_bits;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

pub use memory::{CountingAllocator, peak_bytes};
pub use numbers::numbers;
pub use original_checkpoint::OriginalCheckpoint;
pub use same_bits::assert_threads_change_no_bit;

/// The tensors of one fixture file, by name.
pub struct Fixture {
    tensors: HashMap<String, Tensor>,
    path: String,
}

impl Fixture {
    /// Reads `path`, usually `concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/ddim/ddim.safetensors")`.
    pub fn open(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)
            .unwrap_or_else(|e| panic!("{}: {e}; `cargo xtask fixtures` writes it", path.display()));
        Self { tensors, path: path.display().to_string() }
    }

    /// The tensor called `name`, as the file has it.
    pub fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("{}: no tensor {name}", self.path))
    }

    /// Whether there is a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The values of `name` as one row of float64.
    pub fn values(&self, name: &str) -> Vec<f64> {
        values(self.get(name))
    }

    /// The tensors whose names start with `prefix`, without it: a state dict.
    pub fn state_dict(&self, prefix: &str) -> HashMap<String, Tensor> {
        let strip = |(name, tensor): (&String, &Tensor)| {
            name.strip_prefix(prefix).map(|name| (name.to_string(), tensor.clone()))
        };
        self.tensors.iter().filter_map(strip).collect()
    }
}

/// The values of a tensor of any dtype as one row of float64.
pub fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).and_then(|t| t.flatten_all()).and_then(|t| t.to_vec1()).unwrap()
}

/// The largest absolute difference, divided by the largest absolute expected value (or 1, whichever is more).
///
/// The measure of every parity bound: a bound on it is relative to the tensor's scale, so that values near zero, where
/// rounding alone decides the last bits, do not fail a tensor that is right.
pub fn relative_difference(actual: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(actual.dims(), expected.dims(), "shapes differ: actual first, expected second");
    let (actual, expected) = (values(actual), values(expected));
    let scale = expected.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
    let mut worst: f64 = 0.0;
    for (a, e) in actual.iter().zip(&expected) {
        // Equal infinities are equal; any other value that is not finite on one side only is a failure.
        let difference = if a == e || (a.is_nan() && e.is_nan()) { 0.0 } else { (a - e).abs() };
        worst = worst.max(if difference.is_nan() { f64::INFINITY } else { difference });
    }
    worst / scale
}

/// Fails unless [`relative_difference`] is at most `bound`.
#[track_caller]
pub fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, bound: f64) {
    let difference = relative_difference(actual, expected);
    assert!(difference <= bound, "{what}: relative difference {difference:e}, at most {bound:e} expected");
}
