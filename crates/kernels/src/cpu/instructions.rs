use half::f16;

use super::{Chunk, Float, LANES};
#[cfg(target_arch = "x86_64")]
use crate::Level;

/// Instructions that loops are compiled for, as far as the compiler does not find them by itself: those that convert float16. Who has a value
/// of such a type may use them.
pub(crate) trait Instructions: Copy {
    #[inline(always)]
    fn floats(self, values: &[f16; LANES]) -> Chunk {
        let mut chunk = [0.0; LANES];
        for lane in 0..LANES {
            chunk[lane] = values[lane].to_float();
        }
        chunk
    }

    /// The nearest float16, ties to even.
    #[inline(always)]
    fn halves(self, chunk: Chunk) -> [f16; LANES] {
        let mut values = [f16::ZERO; LANES];
        for lane in 0..LANES {
            values[lane] = f16::from_float(chunk[lane]);
        }
        values
    }
}

/// Those of any processor.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Instructions for Plain {}

/// Those of [`Level::Avx2`].
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// Those of [`Level::Avx512`].
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;

    impl Avx2 {
        #[inline]
        pub(crate) fn detect() -> Option<Self> {
            Level::Avx2.is_available().then_some(Self(()))
        }

        /// # Safety
        /// The processor must have AVX2, FMA and F16C.
        #[inline(always)]
        pub(crate) unsafe fn assume() -> Self {
            Self(())
        }
    }

    impl Instructions for Avx2 {
        #[inline(always)]
        fn floats(self, values: &[f16; LANES]) -> Chunk {
            let mut chunk = [0.0; LANES];
            for start in [0, 8] {
                // SAFETY: the processor has F16C, or there were no such value; both have 8 numbers from `start` on.
                unsafe {
                    let halves = _mm_loadu_si128(values.as_ptr().add(start).cast());
                    _mm256_storeu_ps(chunk.as_mut_ptr().add(start), _mm256_cvtph_ps(halves));
                }
            }
            chunk
        }

        #[inline(always)]
        fn halves(self, chunk: Chunk) -> [f16; LANES] {
            let mut values = [f16::ZERO; LANES];
            for start in [0, 8] {
                // SAFETY: as above.
                unsafe {
                    let halves = _mm256_cvtps_ph::<NEAREST>(_mm256_loadu_ps(chunk.as_ptr().add(start)));
                    _mm_storeu_si128(values.as_mut_ptr().add(start).cast(), halves);
                }
            }
            values
        }
    }

    impl Avx512 {
        #[inline]
        pub(crate) fn detect() -> Option<Self> {
            Level::Avx512.is_available().then_some(Self(()))
        }

        /// # Safety
        /// The processor must have AVX-512F.
        #[inline(always)]
        pub(crate) unsafe fn assume() -> Self {
            Self(())
        }
    }

    impl Instructions for Avx512 {
        #[inline(always)]
        fn floats(self, values: &[f16; LANES]) -> Chunk {
            let mut chunk = [0.0; LANES];
            // SAFETY: the processor has AVX-512F, or there were no such value; both have 16 numbers.
            unsafe {
                let halves = _mm256_loadu_si256(values.as_ptr().cast());
                _mm512_storeu_ps(chunk.as_mut_ptr(), _mm512_cvtph_ps(halves));
            }
            chunk
        }

        #[inline(always)]
        fn halves(self, chunk: Chunk) -> [f16; LANES] {
            let mut values = [f16::ZERO; LANES];
            // SAFETY: as above.
            unsafe {
                let halves = _mm512_cvtps_ph::<NEAREST>(_mm512_loadu_ps(chunk.as_ptr()));
                _mm256_storeu_si256(values.as_mut_ptr().cast(), halves);
            }
            values
        }
    }
}
