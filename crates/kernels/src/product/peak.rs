//! How fast the processor multiplies when nothing has to be fetched: what products are measured by.

use std::hint::black_box;
use std::time::{Duration, Instant};

use candle_core::{DType, Result};

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::level::Level;

/// So many sums do not wait for each other.
const SUMS: usize = 24;
const ROUNDS: usize = 1 << 16;
const AT_LEAST: Duration = Duration::from_millis(300);

/// Multiplications and additions a second, of all threads together, at the level in use ([`Level::current`]): the most that a product in this
/// dtype could reach. Factors and sums stay in registers; the quickest of many short pieces of work counts.
///
/// In bfloat16 these are products of tiles or dot products of pairs where the level has them, and those of float32 where it has not. In float32 they are those of vectors: what is
/// computed in parts, by tiles, or by fewer multiplications, as a filtered convolution, may be faster.
///
/// # Errors
/// When `CANDLE_DIFFUSERS_CPU` names no level.
pub fn peak_operations_per_second(dtype: DType) -> Result<f64> {
    let level = Level::current()?;
    let rates = rayon::broadcast(|_| {
        let (start, mut best) = (Instant::now(), 0f64);
        while start.elapsed() < AT_LEAST {
            let piece = Instant::now();
            let operations = run(level, dtype);
            best = best.max(operations / piece.elapsed().as_secs_f64());
        }
        best
    });
    Ok(rates.into_iter().sum())
}

/// Does some arithmetic, and says how many operations.
fn run(level: Level, dtype: DType) -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        if dtype == DType::BF16 && level == Level::Amx && level.is_available() {
            // SAFETY: the processor has tiles, and this process may use them, by the line above.
            return unsafe { amx::multiply_registers(ROUNDS) };
        }
        if dtype == DType::BF16 && level >= Level::Avx512Bf16 && Level::Avx512Bf16.is_available() {
            // SAFETY: the processor has AVX-512F and AVX-512 BF16 by the line above.
            unsafe { x86::pairs() };
            return (ROUNDS * SUMS * 16 * 4) as f64;
        }
        if level >= Level::Avx512 && Level::Avx512.is_available() {
            // SAFETY: the processor has AVX-512F by the line above.
            unsafe { x86::avx512() };
            return (ROUNDS * SUMS * 16 * 2) as f64;
        }
        if level >= Level::Avx2 && Level::Avx2.is_available() {
            // SAFETY: the processor has AVX2 and FMA by the line above.
            unsafe { x86::avx2() };
            return (ROUNDS * x86::SUMS_OF_AVX2 * 8 * 2) as f64;
        }
    }
    let _ = (level, dtype);
    let mut sums = [[0f32; 4]; 8];
    let factor = black_box([0.5f32; 4]);
    for _ in 0..ROUNDS {
        for sums in &mut sums {
            for lane in 0..4 {
                sums[lane] = sums[lane] * factor[lane] + factor[lane];
            }
        }
    }
    black_box(sums);
    (ROUNDS * 8 * 4 * 2) as f64
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512bh, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_set1_epi32,
        _mm512_set1_ps,
    };
    use std::hint::black_box;

    use super::{ROUNDS, SUMS};

    /// There are 16 registers.
    pub(super) const SUMS_OF_AVX2: usize = 12;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn pairs() {
        // SAFETY: both are 512 bits, and any bits are either.
        let factor: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(black_box(0x3f00_3f00))) };
        let mut sums = [_mm512_set1_ps(0.0); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512() {
        let factor = _mm512_set1_ps(black_box(0.5));
        let mut sums = [_mm512_set1_ps(0.0); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2() {
        let factor = _mm256_set1_ps(black_box(0.5));
        let mut sums = [_mm256_set1_ps(0.0); SUMS_OF_AVX2];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_does_something() {
        for level in Level::ALL {
            for dtype in [DType::F32, DType::BF16] {
                assert!(run(level, dtype) > 0.0);
            }
        }
        assert!(peak_operations_per_second(DType::F32).unwrap() > 1e6);
    }
}
