//! Numbers of float32 as bfloat16 parts, the greatest first, in the order of panels: with the conversions of the levels that multiply such parts.

use super::level::Level;
use super::parts::Order;

/// Products in parts take depths that are multiples of this, one step of tiles.
pub(super) const STEP: usize = 32;

/// Splits the numbers of a panel (of pairs, `width` for each depth; of tiles, 32 rows) in so many parts, as [`Parts`](super::parts::Parts) says. A number
/// is the sum of three parts exactly, if it is 0 or at least 2^-100.
pub(super) fn split(floats: &[f32], order: Order, parts: usize, numbers: &mut [u16]) {
    assert!(floats.len().is_multiple_of(STEP) && Level::Avx512Bf16.is_available());
    let numbers = &mut numbers[..parts * floats.len()];
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the processor has these instructions by the line above.
    unsafe {
        match parts {
            1 => x86::split::<1>(floats, order, numbers),
            2 => x86::split::<2>(floats, order, numbers),
            _ => x86::split::<3>(floats, order, numbers),
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::avx512bf16::pairs_of;
    use super::{Order, STEP};

    const LANES: usize = 16;

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn split<const PARTS: usize>(floats: &[f32], order: Order, numbers: &mut [u16]) {
        match order {
            Order::Pairs { width } => split_pairs::<PARTS>(floats, width, numbers),
            Order::Tiles => split_tiles::<PARTS>(floats, numbers),
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn split_pairs<const PARTS: usize>(floats: &[f32], width: usize, numbers: &mut [u16]) {
        let mut numbers = by_part::<PARTS>(floats.len(), numbers);
        for pair in (0..floats.len()).step_by(2 * width) {
            for start in (0..width).step_by(LANES) {
                let count = LANES.min(width - start);
                let mask = u16::MAX >> (LANES - count);
                let rows = [pair + start, pair + width + start];
                let units = rows.map(|row| {
                    let row = &floats[row..row + count];
                    // SAFETY: only as many numbers are read as there are.
                    unsafe { _mm512_maskz_loadu_ps(mask, row.as_ptr()) }
                });
                let places = pair + 2 * start..pair + 2 * (start + count);
                for (part, numbers) in parts::<PARTS>(units).iter().zip(&mut numbers) {
                    let pairs = &mut numbers[places.clone()];
                    // SAFETY: only as many pairs are written as there are.
                    unsafe { _mm512_mask_storeu_epi32(pairs.as_mut_ptr().cast(), mask, *part) }
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn split_tiles<const PARTS: usize>(floats: &[f32], numbers: &mut [u16]) {
        let every_second = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let others = _mm512_add_epi32(every_second, _mm512_set1_epi32(1));
        let mut numbers = by_part::<PARTS>(floats.len(), numbers);
        for (row, steps) in floats.chunks_exact(floats.len() / STEP).enumerate() {
            for (tile, step) in steps.as_chunks::<STEP>().0.iter().enumerate() {
                // SAFETY: a step has two vectors.
                let (first, second) =
                    unsafe { (_mm512_loadu_ps(step.as_ptr()), _mm512_loadu_ps(step[LANES..].as_ptr())) };
                let units = [every_second, others].map(|order| _mm512_permutex2var_ps(first, order, second));
                let start = (tile * STEP + row) * STEP;
                for (part, numbers) in parts::<PARTS>(units).iter().zip(&mut numbers) {
                    let row = &mut numbers[start..start + STEP];
                    // SAFETY: a step of numbers is a vector.
                    unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), *part) }
                }
            }
        }
    }

    /// The numbers of each part, so many.
    fn by_part<const PARTS: usize>(length: usize, numbers: &mut [u16]) -> [&mut [u16]; PARTS] {
        let mut parts = numbers.chunks_exact_mut(length.max(1));
        std::array::from_fn(|_| parts.next().unwrap_or_default())
    }

    /// The parts of the first and of the second numbers of pairs, as pairs.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn parts<const PARTS: usize>([mut first, mut second]: [__m512; 2]) -> [__m512i; PARTS] {
        let mut parts = [_mm512_setzero_si512(); PARTS];
        for (index, part) in parts.iter_mut().enumerate() {
            if index + 1 == PARTS {
                *part = pairs_of(first, second);
                break;
            }
            *part = pairs_of(finite(first), finite(second));
            // A bfloat16 is the upper half of a float32.
            let upper = _mm512_and_si512(*part, _mm512_set1_epi32(-65_536));
            first = _mm512_sub_ps(first, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(*part)));
            second = _mm512_sub_ps(second, _mm512_castsi512_ps(upper));
        }
        parts
    }

    /// Those that are greater become the greatest bfloat16: so the last part alone is infinite. What is no number stays none.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn finite(numbers: __m512) -> __m512 {
        let greatest = _mm512_castsi512_ps(_mm512_set1_epi32(0x7f7f_0000));
        let least = _mm512_castsi512_ps(_mm512_set1_epi32(0xff7f_0000u32.cast_signed()));
        _mm512_max_ps(least, _mm512_min_ps(greatest, numbers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn float(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits) << 16)
    }

    /// The parts of a panel's numbers, those of each beside each other, in the order of the panel.
    fn parts_of(floats: &[f32], order: Order, parts: usize) -> Vec<Vec<f32>> {
        let mut numbers = vec![0; parts * floats.len()];
        split(floats, order, parts, &mut numbers);
        let place = |index: usize| match order {
            Order::Pairs { width } => {
                let (depth, item) = (index / width, index % width);
                2 * (depth / 2 * width + item) + depth % 2
            }
            Order::Tiles => {
                let (row, depth) = (index / (floats.len() / STEP), index % (floats.len() / STEP));
                (depth / STEP * STEP + row) * STEP + depth % STEP
            }
        };
        let part = |part: usize, index| float(numbers[part * floats.len() + place(index)]);
        (0..floats.len()).map(|index| (0..parts).map(|number| part(number, index)).collect()).collect()
    }

    const ORDERS: [Order; 4] =
        [Order::Pairs { width: 12 }, Order::Pairs { width: 16 }, Order::Pairs { width: 32 }, Order::Tiles];

    #[test]
    #[ignore = "prints times: cargo test --release -- --ignored --nocapture speed_of_splitting"]
    fn speed_of_splitting() {
        for order in ORDERS {
            let floats: Vec<f32> = (0..32 * 12 * 16).map(|index| (index as f32 * 0.37).sin()).collect();
            let mut numbers = vec![0; 3 * floats.len()];
            let mut best = [f64::INFINITY; 3];
            for _ in 0..2000 {
                for (parts, best) in (1..=3).zip(&mut best) {
                    let start = std::time::Instant::now();
                    split(&floats, order, parts, &mut numbers);
                    *best = best.min(start.elapsed().as_secs_f64() * 1e9 / floats.len() as f64);
                }
            }
            println!("{order:?}: 1, 2, 3 parts {best:.3?} ns a number");
        }
    }

    #[test]
    fn three_parts_are_the_number() {
        if !Level::Avx512Bf16.is_available() {
            return;
        }
        let mut bits = 12_345u32;
        let mut next = || {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits(bits)
        };
        for order in ORDERS {
            let finite = std::iter::from_fn(|| Some(next())).filter(|number| number.is_finite());
            let mut floats: Vec<f32> = finite.take(32 * 12 * 64).collect();
            floats[..4].copy_from_slice(&[0.0, -0.0, f32::MAX, f32::MIN]);
            for (number, parts) in floats.iter().zip(parts_of(&floats, order, 3)) {
                // The last part of smaller numbers is less than bfloat16 can hold.
                if *number == 0.0 || number.abs() >= 2f32.powi(-100) {
                    assert_eq!(parts[0] + (parts[1] + parts[2]), *number, "{order:?}: {number:e}, {parts:?}");
                    assert!(parts[1].abs() <= number.abs() / 128.0, "{order:?}: {number:e}, {parts:?}");
                    assert!(parts[2].abs() <= number.abs() / 16_384.0, "{order:?}: {number:e}, {parts:?}");
                }
            }
        }
    }

    #[test]
    fn float16_is_two_parts_and_bfloat16_one() {
        if !Level::Avx512Bf16.is_available() {
            return;
        }
        let halves = (0..=u16::MAX).map(|bits| half::f16::from_bits(bits).to_f32());
        let halves: Vec<f32> = halves.map(|number| if number.is_finite() { number } else { 1.0 }).collect();
        for (number, parts) in halves.iter().zip(parts_of(&halves, Order::Tiles, 2)) {
            assert_eq!(parts[0] + parts[1], *number);
        }
        let brains = (0..=u16::MAX).map(float).map(|number| if number.is_normal() { number } else { 1.0 });
        let brains: Vec<f32> = brains.collect();
        for (number, parts) in brains.iter().zip(parts_of(&brains, Order::Pairs { width: 32 }, 1)) {
            assert_eq!(parts[0], *number);
        }
    }

    #[test]
    fn infinity_stays_infinite_and_nan_none() {
        if !Level::Avx512Bf16.is_available() {
            return;
        }
        let mut floats = [1.0; 32 * 32];
        floats[..3].copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
        for order in [Order::Pairs { width: 32 }, Order::Tiles] {
            for count in 1..=3 {
                let parts = parts_of(&floats, order, count);
                let sum = |index: usize| parts[index].iter().sum::<f32>();
                assert!(sum(0) == f32::INFINITY && sum(1) == f32::NEG_INFINITY && sum(2).is_nan());
            }
        }
    }
}
