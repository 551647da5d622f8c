//! Half precision to float32 and back, many numbers at a time.

use std::mem::MaybeUninit;

use super::{Float, Instructions, LANES, Work, run_at, store};
use crate::Level;

/// Writes the numbers in float32; both are equally long.
pub(crate) fn to_floats<T: Float>(values: &[T], floats: &mut [f32]) {
    to_floats_at(fastest(), values, floats);
}

/// The level makes no difference to the bits.
fn fastest() -> Level {
    Level::current().unwrap_or(Level::Portable)
}

fn to_floats_at<T: Float>(level: Level, values: &[T], floats: &mut [f32]) {
    run_at(level, Convert { from: values, to: floats });
}

#[cfg(test)]
fn round_at<T: Float>(level: Level, floats: &[f32], values: &mut [T]) {
    run_at(level, Convert { from: floats, to: values });
}

struct Convert<'a, From, To> {
    from: &'a [From],
    to: &'a mut [To],
}

impl<From: Float, To: Float> Work for Convert<'_, From, To> {
    type Output = ();

    #[inline(always)]
    fn run(self, instructions: impl Instructions) {
        convert(self.from, self.to, instructions);
    }
}

/// Numbers of one dtype as another's nearest; both are equally long.
#[inline(always)]
pub(crate) fn convert<From: Float, To: Float>(from: &[From], to: &mut [To], instructions: impl Instructions) {
    // SAFETY: both are laid out alike, and only numbers are written.
    let to = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast(), to.len()) };
    convert_to_fresh::<From, To>(from, to, instructions);
}

/// The same, to where nothing needs to be yet.
#[inline(always)]
pub(crate) fn convert_to_fresh<From: Float, To: Float>(
    from: &[From],
    to: &mut [MaybeUninit<To>],
    instructions: impl Instructions,
) {
    assert_eq!(from.len(), to.len());
    let Some(last) = from.len().checked_sub(LANES) else {
        for (to, from) in to.iter_mut().zip(from) {
            to.write(To::from_float(from.to_float()));
        }
        return;
    };
    let (chunks, _) = from.as_chunks::<LANES>();
    let (written, _) = to.as_chunks_mut::<LANES>();
    for (to, from) in written.iter_mut().zip(chunks) {
        store(From::load(from, instructions), to, instructions);
    }
    // The last chunk may begin within the one before.
    if from.len().is_multiple_of(LANES) {
        return;
    }
    if let (Some(from), Some(to)) = (from[last..].first_chunk(), to[last..].first_chunk_mut()) {
        store(From::load(from, instructions), to, instructions);
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::cpu::testing::levels;

    /// Enough for the loops of vectors, for what is less than one, and for one that begins within another.
    const LENGTHS: [usize; 9] = [0, 1, 3, 15, 16, 17, 31, 33, 100];

    #[test]
    fn every_half_number_becomes_itself() {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let brains: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        for level in levels() {
            let (mut from_halves, mut from_brains) = (vec![0.0; halves.len()], vec![0.0; brains.len()]);
            to_floats_at(level, &halves, &mut from_halves);
            to_floats_at(level, &brains, &mut from_brains);
            let same = |ours: f32, theirs: f32| {
                ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan())
            };
            for bits in 0..halves.len() {
                assert!(same(from_halves[bits], halves[bits].to_f32()), "{level:?}, float16 {bits:x}");
                assert!(same(from_brains[bits], brains[bits].to_f32()), "{level:?}, bfloat16 {bits:x}");
            }
            // And back: NaN stays NaN.
            let (mut halves_again, mut brains_again) = (halves.clone(), brains.clone());
            round_at(level, &from_halves, &mut halves_again);
            round_at(level, &from_brains, &mut brains_again);
            for bits in 0..halves.len() {
                let (half, again) = (halves[bits], halves_again[bits]);
                assert!(half.to_bits() == again.to_bits() || (half.is_nan() && again.is_nan()), "{bits:x}");
                let (brain, again) = (brains[bits], brains_again[bits]);
                assert!(brain.to_bits() == again.to_bits() || (brain.is_nan() && again.is_nan()), "{bits:x}");
            }
        }
    }

    #[test]
    fn rounding_is_to_the_nearest_and_to_the_even_of_two() {
        // Every exponent with mantissas around each tie of both dtypes, which are subnormal numbers, infinities and NaN too.
        let lows = [0, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0xf000, 0xffff];
        let floats: Vec<f32> = (0..=u16::MAX)
            .flat_map(|high| lows.map(|low| f32::from_bits(u32::from(high) << 16 | low)))
            .collect();
        for level in levels() {
            let (mut halves, mut brains) = (vec![f16::ZERO; floats.len()], vec![bf16::ZERO; floats.len()]);
            round_at(level, &floats, &mut halves);
            round_at(level, &floats, &mut brains);
            for ((value, half), brain) in floats.iter().zip(halves).zip(brains) {
                if value.is_nan() {
                    assert!(half.is_nan() && brain.is_nan(), "{level:?}, {value:?}");
                    continue;
                }
                assert_eq!(
                    half.to_bits(),
                    f16::from_f32(*value).to_bits(),
                    "{level:?}, float16 of {value:e}"
                );
                assert_eq!(
                    brain.to_bits(),
                    bf16::from_f32(*value).to_bits(),
                    "{level:?}, bfloat16 of {value:e}"
                );
            }
        }
    }

    #[test]
    fn a_number_is_rounded_alike_wherever_it_stands() {
        let floats: Vec<f32> = (0..100).map(|index| (index as f32 - 50.0) * 0.012_345).collect();
        for level in levels() {
            for length in LENGTHS {
                let (mut halves, mut brains) = (vec![f16::ZERO; length], vec![bf16::ZERO; length]);
                round_at(level, &floats[..length], &mut halves);
                round_at(level, &floats[..length], &mut brains);
                let (mut from_halves, mut from_brains) = (vec![0.0; length], vec![0.0; length]);
                to_floats_at(level, &halves, &mut from_halves);
                to_floats_at(level, &brains, &mut from_brains);
                for (index, value) in floats[..length].iter().enumerate() {
                    assert_eq!(halves[index], f16::from_f32(*value), "{level:?}, {index} of {length}");
                    assert_eq!(brains[index], bf16::from_f32(*value), "{level:?}, {index} of {length}");
                    assert_eq!(from_halves[index], halves[index].to_f32(), "{level:?}, {index} of {length}");
                    assert_eq!(from_brains[index], brains[index].to_f32(), "{level:?}, {index} of {length}");
                }
            }
        }
    }
}
