//! Vectors of float32, one kind for each level, and what the steps of attention need of them.

/// A vector of float32.
///
/// # Safety
/// The processor must have the level of the vector; pointers are valid for `LANES` numbers.
pub(super) trait Vector: Copy {
    /// How many numbers a vector has.
    const LANES: usize;
    /// How many rows of two sums the registers hold, beside the factors.
    const ROWS: usize;

    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn splat(value: f32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * factor + term`.
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self;
    /// The greater of each pair; `other` where one of them is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// Two to the power of each number, which is 0 or less, or NaN. `polynomial` gives 2^r - 1 for |r| <= 1/2, without its last
    /// coefficient, which is 0, highest power first.
    unsafe fn exp2(self, polynomial: &[f32]) -> Self;
}

/// 1 + the polynomial at `r`.
#[inline(always)]
unsafe fn evaluate<V: Vector>(polynomial: &[f32], r: V) -> V {
    let [first, rest @ ..] = polynomial else {
        // SAFETY: the caller's promise.
        return unsafe { V::splat(1.0) };
    };
    // SAFETY: the caller's promise.
    unsafe {
        let mut sum = V::splat(*first);
        for next in rest {
            sum = sum.mul_add(r, V::splat(*next));
        }
        sum.mul_add(r, V::splat(1.0))
    }
}

/// Added to a float, it rounds it to a whole number, which the last bits of the sum are: 1.5 * 2^23.
const ROUND: f32 = 12_582_912.0;

/// Four numbers at a time for any processor of the target; those of aarch64 are the vectors of NEON.
#[derive(Clone, Copy)]
pub(super) struct Four([f32; 4]);

impl Four {
    #[inline(always)]
    fn zip(self, other: Self, function: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| function(self.0[lane], other.0[lane])))
    }
}

impl Vector for Four {
    const LANES: usize = 4;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller promises four numbers.
        Self(unsafe { from.cast::<[f32; 4]>().read() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller promises four numbers.
        unsafe { to.cast::<[f32; 4]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 4])
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    /// Rounded once where any processor of the target does both in one; elsewhere that would be a call for each number.
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        if cfg!(target_arch = "aarch64") {
            return Self(std::array::from_fn(|lane| self.0[lane].mul_add(factor.0[lane], term.0[lane])));
        }
        self.zip(factor, |a, b| a * b).zip(term, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn exp2(self, polynomial: &[f32]) -> Self {
        // SAFETY: any processor has this level.
        unsafe {
            let x = Self::splat(-127.0).max(self);
            let shifted = x.add(Self::splat(ROUND));
            let r = x.sub(shifted.sub(Self::splat(ROUND)));
            // 2^-127 comes out as 0.
            let power = |shifted: f32| f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
            evaluate(polynomial, r).mul(Self(shifted.0.map(power)))
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{ROUND, Vector, evaluate};

    impl Vector for __m256 {
        const LANES: usize = 8;
        const ROWS: usize = 6;

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller promises AVX2 and FMA, and a pointer that is valid for 8 numbers.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller promises AVX2 and FMA, and a pointer that is valid for 8 numbers.
            unsafe { _mm256_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the caller promises AVX2 and FMA.
            unsafe { _mm256_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: the caller promises AVX2 and FMA.
            unsafe { _mm256_add_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: the caller promises AVX2 and FMA.
            unsafe { _mm256_sub_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: the caller promises AVX2 and FMA.
            unsafe { _mm256_mul_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
            // SAFETY: the caller promises AVX2 and FMA.
            unsafe { _mm256_fmadd_ps(self, factor, term) }
        }

        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: the caller promises AVX2 and FMA.
            unsafe { _mm256_max_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn exp2(self, polynomial: &[f32]) -> Self {
            // SAFETY: the caller promises AVX2 and FMA.
            unsafe {
                let x = Self::splat(-127.0).max(self);
                let shifted = x.add(Self::splat(ROUND));
                let r = x.sub(shifted.sub(Self::splat(ROUND)));
                // 2^-127 comes out as 0.
                let exponent = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127));
                let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent));
                evaluate(polynomial, r).mul(power)
            }
        }
    }

    impl Vector for __m512 {
        const LANES: usize = 16;
        const ROWS: usize = 14;

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller promises AVX-512F, and a pointer that is valid for 16 numbers.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller promises AVX-512F, and a pointer that is valid for 16 numbers.
            unsafe { _mm512_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the caller promises AVX-512F.
            unsafe { _mm512_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: the caller promises AVX-512F.
            unsafe { _mm512_add_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: the caller promises AVX-512F.
            unsafe { _mm512_sub_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: the caller promises AVX-512F.
            unsafe { _mm512_mul_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
            // SAFETY: the caller promises AVX-512F.
            unsafe { _mm512_fmadd_ps(self, factor, term) }
        }

        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: the caller promises AVX-512F.
            unsafe { _mm512_max_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn exp2(self, polynomial: &[f32]) -> Self {
            const TO_NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            // SAFETY: the caller promises AVX-512F.
            unsafe {
                // 2^-200 comes out as 0; negative infinity less itself would be NaN.
                let x = Self::splat(-200.0).max(self);
                let whole = _mm512_roundscale_ps::<TO_NEAREST>(x);
                _mm512_scalef_ps(evaluate(polynomial, x.sub(whole)), whole)
            }
        }
    }
}
