use std::env;
use std::sync::atomic::{AtomicU8, Ordering};

use candle_core::Result;

/// What products of float32 begin with: `highest`, `high` or `medium`.
const VARIABLE: &str = "CANDLE_DIFFUSERS_FLOAT32_MATMUL_PRECISION";
const UNSET: u8 = u8::MAX;

/// How exactly linear layers and some convolutions in float32 are computed on the CPU, in PyTorch's words. Sums are in float32 always.
///
/// A lower one is used where it is faster: where the processor has tiles of bfloat16 ([`Level::Amx`](crate::Level::Amx)), or, `Medium`, its
/// dot products ([`Level::Avx512Bf16`](crate::Level::Avx512Bf16)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Float32MatmulPrecision {
    /// As accurate as float32: where tiles compute it, six products of the factors' three bfloat16 parts.
    #[default]
    Highest,
    /// Nearly half of float32's digits or more: three products of two parts.
    High,
    /// Factors rounded to bfloat16.
    Medium,
}

impl Float32MatmulPrecision {
    const ALL: [Self; 3] = [Self::Highest, Self::High, Self::Medium];

    /// As PyTorch spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Highest => "highest",
            Self::High => "high",
            Self::Medium => "medium",
        }
    }

    /// The one of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn from_name(name: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|precision| precision.name() == name) {
            Some(precision) => Ok(precision),
            None => candle_core::bail!(
                "the precision of float32 products is {name:?}; it can be highest, high or medium"
            ),
        }
    }
}

static CURRENT: AtomicU8 = AtomicU8::new(UNSET);

/// Sets what linear layers and convolutions in float32 use from now on, in all of this process: those whose depth is a multiple of 32, where the processor has
/// tiles or (for `Medium`) dot products of bfloat16. Of convolutions, those of 1x1 alone, and for `Medium` without tiles all but the 3x3 ones that are computed by
/// Winograd's filtering. Attention and the gradients of weights stay in plain float32.
pub fn set_float32_matmul_precision(precision: Float32MatmulPrecision) {
    CURRENT.store(precision as u8, Ordering::Relaxed);
}

/// What was set last; else what the environment variable `CANDLE_DIFFUSERS_FLOAT32_MATMUL_PRECISION` names (`highest`, `high`, `medium`),
/// else `Highest`.
///
/// # Errors
/// When nothing was set and the variable names none of them.
pub fn float32_matmul_precision() -> Result<Float32MatmulPrecision> {
    let current = CURRENT.load(Ordering::Relaxed);
    if let Some(precision) = Float32MatmulPrecision::ALL.get(usize::from(current)) {
        return Ok(*precision);
    }
    let precision = match env::var(VARIABLE) {
        Ok(name) if !name.is_empty() => {
            Float32MatmulPrecision::from_name(&name).map_err(|problem| problem.context(VARIABLE))?
        }
        _ => Float32MatmulPrecision::Highest,
    };
    // Unless another thread has set one meanwhile.
    let _ = CURRENT.compare_exchange(UNSET, precision as u8, Ordering::Relaxed, Ordering::Relaxed);
    Ok(precision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_pytorchs() {
        for precision in Float32MatmulPrecision::ALL {
            assert_eq!(Float32MatmulPrecision::from_name(precision.name()).unwrap(), precision);
            assert_eq!(Float32MatmulPrecision::ALL[precision as usize], precision);
        }
        let problem = Float32MatmulPrecision::from_name("low").unwrap_err().to_string();
        assert!(problem.contains("\"low\"; it can be highest, high or medium"), "{problem}");
    }
}
