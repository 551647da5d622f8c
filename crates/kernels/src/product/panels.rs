//! How a factor is laid out for the microkernels.

use std::fmt::Debug;

use half::{bf16, f16};

/// Of the depth (the dimension that is summed over), how many steps a panel has: so that one panel of each factor fits into the first
/// cache.
pub(super) const DEPTH: usize = 256;

/// What panels are made of.
///
/// # Safety
/// All bits zero, and any other bits, must be a value; no value may need a larger alignment than a cache line.
pub(super) unsafe trait Element:
    Copy + Debug + Default + PartialEq + Send + Sync + 'static
{
}

/// Two bfloat16 that follow each other in depth, as the processor's dot products take them: the first in the lower half.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(transparent)]
pub(super) struct Pair(pub(super) u32);

// SAFETY: plain numbers of 2 and 4 bytes.
unsafe impl Element for f32 {}
// SAFETY: as above.
unsafe impl Element for f16 {}
// SAFETY: as above.
unsafe impl Element for bf16 {}
// SAFETY: as above.
unsafe impl Element for Pair {}

/// Numbers that begin at a cache line, so that no vector of a panel lies across two.
#[derive(Clone, Debug, Default)]
pub(super) struct AlignedBuffer {
    lines: Vec<CacheLine>,
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

impl AlignedBuffer {
    /// At least `length` zeros.
    pub(super) fn zeros<T: Element>(length: usize) -> Self {
        Self { lines: vec![CacheLine([0; 64]); Self::lines_of::<T>(length)] }
    }

    /// Makes room for at least `length` numbers; what it holds is anything.
    pub(super) fn reserve<T: Element>(&mut self, length: usize) -> &mut [T] {
        if self.lines.len() < Self::lines_of::<T>(length) {
            *self = Self::zeros::<T>(length);
        }
        self.values_mut()
    }

    pub(super) fn values<T: Element>(&self) -> &[T] {
        // SAFETY: cache lines in a row have no gaps, are aligned for any element, and any bits are elements.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.length::<T>()) }
    }

    pub(super) fn values_mut<T: Element>(&mut self) -> &mut [T] {
        // SAFETY: as in `values`; any bits are a CacheLine.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.length::<T>()) }
    }

    fn length<T>(&self) -> usize {
        self.lines.len() * (size_of::<CacheLine>() / size_of::<T>())
    }

    fn lines_of<T>(length: usize) -> usize {
        length.div_ceil(size_of::<CacheLine>() / size_of::<T>())
    }
}

/// Writes the transpose of up to `width` rows, which may be shorter than the panel is deep: step `k` of `row` comes to
/// `k * width + row`. Missing rows are zeros.
pub(super) fn transpose_rows<'a, S: Source<E>, E: Element>(
    mut rows: impl Iterator<Item = &'a [S]>,
    width: usize,
    steps: usize,
    panel: &mut [E],
) {
    let mut row = 0;
    while row < width {
        let four = [rows.next(), rows.next(), rows.next(), rows.next()];
        match four {
            [Some(a), Some(b), Some(c), Some(d)] if row + 4 <= width => {
                for (k, panel) in panel.chunks_exact_mut(width).take(steps).enumerate() {
                    panel[row..row + 4].copy_from_slice(&[
                        S::step(a, k),
                        S::step(b, k),
                        S::step(c, k),
                        S::step(d, k),
                    ]);
                }
            }
            rows => {
                for (row, values) in (row..width.min(row + 4)).zip(rows) {
                    for (k, panel) in panel.chunks_exact_mut(width).take(steps).enumerate() {
                        panel[row] = values.map_or(E::default(), |values| S::step(values, k));
                    }
                }
            }
        }
        row += 4;
    }
}

/// Numbers of a tensor, which become panels of `E`.
pub(super) trait Source<E: Element>: Element {
    /// How many numbers that follow each other in depth make one step of a panel.
    const PER_STEP: usize;

    /// Step `k` of a row of numbers; zeros stand for those behind its end.
    fn step(row: &[Self], k: usize) -> E;

    /// One step of many rows: their numbers at the step's first depth, and at its second where there is one.
    fn join(first: &[Self], second: &[Self], steps: &mut [E]);
}

/// Numbers that become other numbers one by one.
macro_rules! one_by_one {
    ($from:ty, $to:ty, $convert:expr) => {
        impl Source<$to> for $from {
            const PER_STEP: usize = 1;

            fn step(row: &[Self], k: usize) -> $to {
                $convert(row[k])
            }

            fn join(first: &[Self], _: &[Self], steps: &mut [$to]) {
                steps.iter_mut().zip(first).for_each(|(step, first)| *step = $convert(*first));
            }
        }
    };
}

one_by_one!(f32, f32, std::convert::identity);
one_by_one!(f16, f16, std::convert::identity);
one_by_one!(bf16, bf16, std::convert::identity);
one_by_one!(f16, f32, f16::to_f32);
one_by_one!(bf16, f32, bf16::to_f32);

impl Source<Pair> for bf16 {
    const PER_STEP: usize = 2;

    fn step(row: &[Self], k: usize) -> Pair {
        let second = row.get(2 * k + 1).copied().unwrap_or_default();
        Pair(u32::from(row[2 * k].to_bits()) | u32::from(second.to_bits()) << 16)
    }

    fn join(first: &[Self], second: &[Self], steps: &mut [Pair]) {
        for ((step, first), second) in steps.iter_mut().zip(first).zip(second) {
            *step = Pair(u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16);
        }
    }
}
