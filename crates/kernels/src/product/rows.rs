//! Rows of pictures as a tap of a convolution's kernel meets them: with zeros at both ends, and of every number or of every second one.

use super::panels::copy;
use crate::Conv2dParams;

/// What one tap meets along a run, `x` being its first place in the padded picture.
#[inline(always)]
pub(super) fn read_row<S: Copy + Default>(row: &[S], x: usize, params: Conv2dParams, numbers: &mut [S]) {
    match params.stride {
        // A division by what the compiler does not know takes longer than the copying.
        1 => read::<S, 1>(row, x, params, numbers),
        2 => read::<S, 2>(row, x, params, numbers),
        _ => read::<S, 0>(row, x, params, numbers),
    }
}

/// `STRIDE` is that of the parameters, or 0.
#[inline(always)]
fn read<S: Copy + Default, const STRIDE: usize>(
    row: &[S],
    x: usize,
    params: Conv2dParams,
    numbers: &mut [S],
) {
    let stride = if STRIDE == 0 { params.stride } else { STRIDE };
    let before = params.padding.saturating_sub(x).div_ceil(stride).min(numbers.len());
    // It is the padding at least where anything is left.
    let first = (x + before * stride).saturating_sub(params.padding);
    let inside = row.len().saturating_sub(first).div_ceil(stride).min(numbers.len() - before);
    let (before, numbers) = numbers.split_at_mut(before);
    let (inside, after) = numbers.split_at_mut(inside);
    before.fill(S::default());
    after.fill(S::default());
    if inside.is_empty() {
        return;
    }
    let row = &row[first..];
    match STRIDE {
        1 => copy(&row[..inside.len()], inside),
        2 => every_second(row, inside),
        _ => inside.iter_mut().zip(row.iter().step_by(stride)).for_each(|(to, from)| *to = *from),
    }
}

/// Every second number of a row, from the first on: 16 or 8 at a time, the last of which may be written again.
#[inline(always)]
fn every_second<S: Copy>(row: &[S], numbers: &mut [S]) {
    match numbers.len() {
        16.. => chunks_of_every_second::<S, 16, 32>(row, numbers),
        8.. => chunks_of_every_second::<S, 8, 16>(row, numbers),
        _ => numbers.iter_mut().zip(row.iter().step_by(2)).for_each(|(to, from)| *to = *from),
    }
}

/// `LENGTH` numbers of twice as many, `READ`, at a time; there are as many at least. (Of one less the compiler makes gathers.)
#[inline(always)]
fn chunks_of_every_second<S: Copy, const LENGTH: usize, const READ: usize>(row: &[S], numbers: &mut [S]) {
    let last = numbers.len() - LENGTH;
    for start in (0..last).step_by(LENGTH).chain([last]) {
        let (from, to) = (&row[2 * start..], &mut numbers[start..start + LENGTH]);
        match (from.first_chunk::<READ>(), to.first_chunk_mut::<LENGTH>()) {
            (Some(from), Some(to)) => {
                for index in 0..LENGTH {
                    to[index] = from[2 * index];
                }
            }
            _ => to.iter_mut().zip(from.iter().step_by(2)).for_each(|(to, from)| *to = *from),
        }
    }
}

/// As [`read_row`], of a row each number of which stands twice.
#[inline(always)]
pub(super) fn read_row_twice<S: Copy + Default>(
    row: &[S],
    x: usize,
    params: Conv2dParams,
    numbers: &mut [S],
) {
    let Conv2dParams { stride, padding } = params;
    let width = 2 * row.len();
    if stride > 1 {
        for (index, number) in numbers.iter_mut().enumerate() {
            let x = (x + index * stride).checked_sub(padding);
            *number = x.and_then(|x| row.get(x / 2)).copied().unwrap_or_default();
        }
        return;
    }
    let (before, numbers) = numbers.split_at_mut(padding.saturating_sub(x).min(numbers.len()));
    let start = x.saturating_sub(padding).min(width);
    let (inside, after) = numbers.split_at_mut((width - start).min(numbers.len()));
    before.fill(S::default());
    if !inside.is_empty() {
        read_twice(row, start, inside);
    }
    after.fill(S::default());
}

/// Pixels of a row that is read twice, from `start` on, counted in what becomes of it.
#[inline(always)]
pub(super) fn read_twice<S: Copy>(row: &[S], start: usize, pixels: &mut [S]) {
    let odd = (start % 2).min(pixels.len());
    let (first, pixels) = pixels.split_at_mut(odd);
    first.iter_mut().for_each(|pixel| *pixel = row[start / 2]);
    let row = &row[start.div_ceil(2)..];
    let (pairs, last) = pixels.as_chunks_mut::<2>();
    pairs.iter_mut().zip(row).for_each(|(pair, pixel)| *pair = [*pixel; 2]);
    last.iter_mut().for_each(|pixel| *pixel = row[pairs.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_taps_meet_them() {
        for length in [0, 1, 2, 7, 8, 16, 31, 33, 64, 65] {
            let row: Vec<u32> = (1..=length).collect();
            for (stride, padding) in [(1, 0), (1, 1), (1, 3), (2, 0), (2, 1), (2, 2), (3, 1), (5, 4)] {
                let params = Conv2dParams { stride, padding };
                for x in 0..length as usize + 2 * padding + 3 {
                    for count in [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32] {
                        let expected = |place: usize| {
                            let place = (x + place * stride).checked_sub(padding);
                            place.and_then(|place| row.get(place)).copied().unwrap_or_default()
                        };
                        let expected: Vec<u32> = (0..count).map(expected).collect();
                        let mut numbers = vec![99; count];
                        read_row(&row, x, params, &mut numbers);
                        assert_eq!(numbers, expected, "{length} numbers from {x}, {params:?}");
                    }
                }
            }
        }
    }
}
