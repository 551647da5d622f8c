use std::mem::MaybeUninit;

use candle_core::WithDType;
use half::{bf16, f16};

use super::Instructions;

/// How many numbers a loop takes at a time: a vector of AVX-512, two of AVX2.
pub(crate) const LANES: usize = 16;

/// So many numbers in registers.
pub(crate) type Chunk = [f32; LANES];

/// A dtype that is computed with in float32.
///
/// The conversions have neither branches nor calls, so that loops over them become vectors; `half`'s ask the processor for its
/// abilities with each number.
pub(crate) trait Float: WithDType {
    fn to_float(self) -> f32;

    /// Rounded to the nearest, ties to even.
    fn from_float(value: f32) -> Self;

    #[inline(always)]
    fn load(values: &[Self; LANES], _: impl Instructions) -> Chunk {
        let mut chunk = [0.0; LANES];
        for lane in 0..LANES {
            chunk[lane] = values[lane].to_float();
        }
        chunk
    }

    /// The nearest numbers of the dtype, as [`from_float`](Self::from_float) gives them.
    #[inline(always)]
    fn nearest(chunk: Chunk, _: impl Instructions) -> [Self; LANES] {
        let mut values = [Self::zero(); LANES];
        for lane in 0..LANES {
            values[lane] = Self::from_float(chunk[lane]);
        }
        values
    }
}

impl Float for f32 {
    #[inline(always)]
    fn to_float(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_float(value: f32) -> Self {
        value
    }
}

impl Float for bf16 {
    #[inline(always)]
    fn to_float(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn from_float(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        // A NaN stays one, also when its only bits are those that go.
        let bits = if value.is_nan() { bits | 0x0040_0000 } else { rounded };
        Self::from_bits((bits >> 16) as u16)
    }
}

impl Float for f16 {
    #[inline(always)]
    fn to_float(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << 13;
        // 2^112 takes the exponent from its bias of 15 to that of 127; of subnormal numbers too.
        let value = (f32::from_bits(magnitude) * f32::from_bits((112 + 127) << 23)).to_bits();
        let value = if magnitude >= 0x7c00 << 13 { value | 0x7f80_0000 } else { value };
        f32::from_bits(value | (bits & 0x8000) << 16)
    }

    #[inline(always)]
    fn from_float(value: f32) -> Self {
        const SMALLEST_NORMAL: u32 = (127 - 14) << 23;
        /// 65520, half way to the number after the greatest.
        const OVERFLOW: u32 = 0x477f_f000;
        const INFINITY: u32 = 0x7f80_0000;
        let magnitude = value.to_bits() & 0x7fff_ffff;
        let normal = magnitude.wrapping_add(0xfff + ((magnitude >> 13) & 1)).wrapping_sub(112 << 23) >> 13;
        // The last bit of a number between 0.5 and 1 is that of a subnormal float16: the addition rounds to it.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
        let finite = if magnitude < SMALLEST_NORMAL { subnormal } else { normal };
        let rest = if magnitude > INFINITY { 0x7e00 } else { 0x7c00 };
        let bits = if magnitude < OVERFLOW { finite } else { rest };
        Self::from_bits((bits | (value.to_bits() >> 16 & 0x8000)) as u16)
    }

    #[inline(always)]
    fn load(values: &[Self; LANES], instructions: impl Instructions) -> Chunk {
        instructions.floats(values)
    }

    #[inline(always)]
    fn nearest(chunk: Chunk, instructions: impl Instructions) -> [Self; LANES] {
        instructions.halves(chunk)
    }
}

/// Writes a chunk as numbers of the dtype.
#[inline(always)]
pub(crate) fn store<T: Float>(
    chunk: Chunk,
    values: &mut [MaybeUninit<T>; LANES],
    instructions: impl Instructions,
) {
    chunk_by_chunk();
    *values = T::nearest(chunk, instructions).map(MaybeUninit::new);
}

/// Keeps the compiler from working at many chunks of a loop at once, a lane of each beside the other: it then gathers and scatters their numbers one by one, which took
/// a layer norm several times as long.
#[inline(always)]
pub(crate) fn chunk_by_chunk() {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: there is no instruction in it; it is only something that a loop cannot be vectorised around.
    unsafe {
        std::arch::asm!("", options(nomem, nostack, preserves_flags));
    }
}

/// Fewer numbers than a chunk, and zeros.
#[inline(always)]
pub(crate) fn load_tail<T: Float>(values: &[T]) -> Chunk {
    let mut chunk = [0.0; LANES];
    for (lane, value) in chunk.iter_mut().zip(values) {
        *lane = value.to_float();
    }
    chunk
}

/// Writes the first numbers of a chunk.
#[inline(always)]
pub(crate) fn store_tail<T: Float>(chunk: Chunk, values: &mut [MaybeUninit<T>]) {
    for (value, lane) in values.iter_mut().zip(chunk) {
        *value = MaybeUninit::new(T::from_float(lane));
    }
}

/// `$body` with `$T` as the type of a dtype that [`computes`](super::computes) takes.
macro_rules! by_float {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::F16 => {
                type $T = half::f16;
                $body
            }
            candle_core::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            dtype => candle_core::bail!("expected float32 or half precision, found {}", dtype.as_str()),
        }
    };
}
pub(crate) use by_float;
