//! How a factor is laid out for the microkernels.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::fmt::Debug;

use half::{bf16, f16};

use crate::cpu::to_floats;

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
    /// About how many items (rows or pixels) a task takes at a time, and how many steps of their depth: so many numbers stay in the second cache
    /// while the weight passes by. Deep passes are better than many items: with each pass the sums are read and written once more.
    const BLOCK: usize = 128;
    const PASS: usize = 4 * DEPTH;
}

/// Two bfloat16 that follow each other in depth, as the processor's dot products take them: the first in the lower half.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(transparent)]
pub(crate) struct Pair(pub(super) u32);

impl Pair {
    fn of(first: bf16, second: bf16) -> Self {
        Self(u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16)
    }
}

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
        let lines = Self::lines_of::<T>(length);
        if lines == 0 {
            return Self::default();
        }
        let line = Layout::new::<CacheLine>();
        let Ok(layout) = Layout::array::<CacheLine>(lines) else { handle_alloc_error(line) };
        // SAFETY: the layout is not of size 0.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: the memory is the global allocator's, of the layout of so many cache lines, and zeros are cache lines. (`vec!` would write them,
        // on one core, where the system has zeros at hand.)
        Self { lines: unsafe { Vec::from_raw_parts(start.cast(), lines, lines) } }
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
    rows: impl Iterator<Item = &'a [S]> + Clone,
    width: usize,
    panel: &mut [E],
) {
    for (block, panel) in panel.chunks_mut(width * DEPTH).enumerate() {
        let steps = panel.len() / width;
        let mut rows = rows.clone();
        let mut converted = [[E::default(); DEPTH]; 4];
        for start in (0..width).step_by(4) {
            let mut next = |room| {
                let row = rows.next()?.get(block * DEPTH * S::PER_STEP..).unwrap_or(&[]);
                Some(&S::steps(&row[..row.len().min(steps * S::PER_STEP)], room)[..steps])
            };
            let [a, b, c, d] = &mut converted;
            match [next(a), next(b), next(c), next(d)] {
                [Some(values), ..] if width == 1 => panel.copy_from_slice(values),
                [Some(a), Some(b), Some(c), Some(d)] if start + 4 <= width => {
                    for (k, panel) in panel.chunks_exact_mut(width).enumerate() {
                        panel[start..start + 4].copy_from_slice(&[a[k], b[k], c[k], d[k]]);
                    }
                }
                rows => {
                    for (row, values) in (start..width.min(start + 4)).zip(rows) {
                        for (k, panel) in panel.chunks_exact_mut(width).enumerate() {
                            panel[row] = values.map_or(E::default(), |values| values[k]);
                        }
                    }
                }
            }
        }
    }
}

/// Numbers of a tensor, which become panels of `E`.
pub(super) trait Source<E: Element>: Element {
    /// How many numbers that follow each other in depth make one step of a panel.
    const PER_STEP: usize;
    /// Whether the numbers of a row lie in memory as its steps do.
    const IS_AS_STEPS: bool = Self::PER_STEP * size_of::<Self>() == size_of::<E>();

    /// The steps of a row of at most [`DEPTH`] of them: the row itself, or what is written to `room`. A zero stands for what the last one lacks.
    fn steps<'a>(row: &'a [Self], room: &'a mut [E; DEPTH]) -> &'a [E];

    /// One step of many rows: their numbers at the step's first depth, and at its second where there is one.
    fn join(first: &[Self], second: &[Self], steps: &mut [E]);
}

macro_rules! as_it_is {
    ($($type:ty),*) => {
        $(impl Source<$type> for $type {
            const PER_STEP: usize = 1;

            fn steps<'a>(row: &'a [Self], _: &'a mut [Self; DEPTH]) -> &'a [Self] {
                row
            }

            #[inline(always)]
            fn join(first: &[Self], _: &[Self], steps: &mut [Self]) {
                copy(first, steps);
            }
        })*
    };
}

as_it_is!(f32, f16, bf16, Pair);

macro_rules! half_as_f32 {
    ($($type:ty),*) => {
        $(impl Source<f32> for $type {
            const PER_STEP: usize = 1;

            fn steps<'a>(row: &'a [Self], room: &'a mut [f32; DEPTH]) -> &'a [f32] {
                let steps = &mut room[..row.len()];
                to_floats(row, steps);
                steps
            }

            fn join(first: &[Self], _: &[Self], steps: &mut [f32]) {
                to_floats(first, steps);
            }
        })*
    };
}

half_as_f32!(f16, bf16);

impl Source<Pair> for bf16 {
    const PER_STEP: usize = 2;

    fn steps<'a>(row: &'a [Self], room: &'a mut [Pair; DEPTH]) -> &'a [Pair] {
        let (pairs, last) = row.as_chunks::<2>();
        let steps = &mut room[..row.len().div_ceil(2)];
        // The last one by itself: with both in one iterator the loop would not be vectors.
        steps.iter_mut().zip(pairs).for_each(|(step, [first, second])| *step = Pair::of(*first, *second));
        if let [last] = last {
            steps[pairs.len()] = Pair::of(*last, Self::ZERO);
        }
        steps
    }

    #[inline(always)]
    fn join(first: &[Self], second: &[Self], steps: &mut [Pair]) {
        let numbers = first.iter().zip(second);
        steps.iter_mut().zip(numbers).for_each(|(step, (a, b))| *step = Pair::of(*a, *b));
    }
}

/// Copies the usual lengths by a few vectors instead of a call.
#[inline(always)]
pub(super) fn copy<S: Copy>(from: &[S], to: &mut [S]) {
    #[inline(always)]
    fn whole<S: Copy, const LENGTH: usize>(from: &[S], to: &mut [S]) -> Option<()> {
        *<&mut [S; LENGTH]>::try_from(to).ok()? = *<&[S; LENGTH]>::try_from(from).ok()?;
        Some(())
    }
    if whole::<_, 32>(from, to)
        .or_else(|| whole::<_, 16>(from, to))
        .or_else(|| whole::<_, 8>(from, to))
        .is_none()
    {
        to.copy_from_slice(from);
    }
}
