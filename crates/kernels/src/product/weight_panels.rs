use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use super::file_numbers::{FileNumber, FileNumbers};
use super::level::Level;
use super::microkernel::ROWS_OF_TILES;
use super::panels::{AlignedBuffer, DEPTH, Element, Pair, Source, transpose_rows};
use crate::cpu::to_floats;

/// A weight, `features` rows of `depth` numbers, as panels of `width` features: those of one depth block beside each other.
#[derive(Debug)]
pub(super) struct WeightPanels<T> {
    features: usize,
    /// The depth, in what `T` holds.
    steps: usize,
    width: usize,
    buffer: AlignedBuffer,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> WeightPanels<T> {
    /// Packs `features` rows of `depth` numbers.
    pub(super) fn pack<S: Source<T>>(values: &[S], features: usize, depth: usize, width: usize) -> Self {
        Self::pack_panels::<S>(features, depth, width, |rows, depths, panel| {
            let rows = rows.map(|row| &values[row * depth..][depths.clone()]);
            transpose_rows(rows, width, panel);
        })
    }

    /// Packs `features` rows of `depth` numbers as a file has them.
    pub(super) fn pack_file<S: Source<T> + FileNumber>(
        numbers: &FileNumbers,
        features: usize,
        depth: usize,
        width: usize,
    ) -> Self {
        Self::pack_panels::<S>(features, depth, width, |rows, depths, panel| {
            let length = depths.len();
            let mut room = vec![S::default(); rows.len() * length];
            for (row, room) in rows.zip(room.chunks_exact_mut(length)) {
                numbers.read(row * depth + depths.start, room);
            }
            transpose_rows(room.chunks_exact(length), width, panel);
        })
    }

    /// Writes all panels by `write`, which is given the features and the depths of each.
    fn pack_panels<S: Source<T>>(
        features: usize,
        depth: usize,
        width: usize,
        write: impl Fn(Range<usize>, Range<usize>, &mut [T]) + Sync,
    ) -> Self {
        let padded_features = padded(features, width);
        let steps = depth.div_ceil(S::PER_STEP);
        let mut buffer = AlignedBuffer::zeros::<T>(padded_features * steps);
        let blocks =
            buffer.values_mut()[..padded_features * steps].par_chunks_mut((padded_features * DEPTH).max(1));
        blocks.enumerate().for_each(|(block, panels)| {
            let block = block * DEPTH..steps.min((block + 1) * DEPTH);
            let depths = block.start * S::PER_STEP..depth.min(block.end * S::PER_STEP);
            let panels = panels.par_chunks_mut(width * block.len()).take(features.div_ceil(width));
            panels.enumerate().for_each(|(index, panel)| {
                write(index * width..features.min((index + 1) * width), depths.clone(), panel);
            });
        });
        Self::of(features, steps, width, buffer)
    }

    pub(super) fn of(features: usize, steps: usize, width: usize, buffer: AlignedBuffer) -> Self {
        Self { features, steps, width, buffer, element: std::marker::PhantomData }
    }

    /// Packs `depth` rows of `features` numbers.
    pub(super) fn pack_columns<S: Source<T>>(
        values: &[S],
        features: usize,
        depth: usize,
        width: usize,
    ) -> Self {
        let padded_features = padded(features, width);
        let steps = depth.div_ceil(S::PER_STEP);
        let mut buffer = AlignedBuffer::zeros::<T>(padded_features * steps);
        let blocks =
            buffer.values_mut()[..padded_features * steps].par_chunks_mut((padded_features * DEPTH).max(1));
        blocks.enumerate().for_each(|(block, panels)| {
            let steps = block * DEPTH..steps.min((block + 1) * DEPTH);
            panels.par_chunks_mut(width * steps.len()).take(features.div_ceil(width)).enumerate().for_each(
                |(index, panel)| {
                    let columns = index * width..features.min((index + 1) * width);
                    let mut rows = [vec![S::default(); width], vec![S::default(); width]];
                    for (step, panel) in steps.clone().zip(panel.chunks_exact_mut(width)) {
                        for (index, row) in rows.iter_mut().enumerate().take(S::PER_STEP) {
                            let depths = step * S::PER_STEP + index..depth;
                            let row = &mut row[..columns.len()];
                            match depths.is_empty() {
                                false => {
                                    row.copy_from_slice(&values[depths.start * features..][columns.clone()])
                                }
                                true => row.fill(S::default()),
                            }
                        }
                        S::join(&rows[0], &rows[1], panel);
                    }
                },
            );
        });
        Self::of(features, steps, width, buffer)
    }

    /// The plain rows again.
    pub(super) fn unpack<S: Unpacked<T>>(&self, depth: usize) -> Vec<S> {
        let mut values = vec![S::default(); self.features * depth];
        if depth > 0 {
            values.par_chunks_mut(self.width * depth).enumerate().for_each(|(index, rows)| {
                for steps in depth_blocks(0..self.steps) {
                    let panel = self.panel(index, &steps);
                    for (row, values) in rows.chunks_exact_mut(depth).enumerate() {
                        let column = panel.chunks_exact(self.width).map(|numbers| numbers[row]);
                        S::write(column, &mut values[steps.start * S::PER_STEP..]);
                    }
                }
            });
        }
        values
    }

    pub(super) fn into_buffer(self) -> AlignedBuffer {
        self.buffer
    }

    pub(super) fn features(&self) -> usize {
        self.features
    }

    /// How many steps deep it is.
    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    /// How many features a panel has.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// As many panels beside each other, the first one for the features from `index * width` on, in one of the [`depth_blocks`].
    pub(super) fn panels(&self, index: usize, count: usize, steps: &Range<usize>) -> &[T] {
        let start = steps.start * padded(self.features, self.width) + index * self.width * steps.len();
        &self.buffer.values()[start..start + count * self.width * steps.len()]
    }

    /// One step of a panel of features.
    #[inline(always)]
    pub(super) fn step(&self, index: usize, step: usize) -> &[T] {
        self.steps_of(index, &(step..step + 1))
    }

    /// Some steps of a panel of features, which must all lie in one of the [`depth_blocks`].
    #[inline(always)]
    pub(super) fn steps_of(&self, index: usize, steps: &Range<usize>) -> &[T] {
        let start = steps.start / DEPTH * DEPTH;
        let panel = self.panel(index, &(start..self.steps.min(start + DEPTH)));
        &panel[(steps.start - start) * self.width..(steps.end - start) * self.width]
    }

    /// The panel of features that begins at `index * width`, in one of the [`depth_blocks`].
    pub(super) fn panel(&self, index: usize, steps: &Range<usize>) -> &[T] {
        self.panels(index, 1, steps)
    }
}

impl<T: AsFloats> WeightPanels<T> {
    /// The float32 numbers of a panel of features for a piece of the depth, `width` for each depth, with `slack` others behind them.
    #[inline(always)]
    pub(super) fn floats<'a>(
        &self,
        index: usize,
        depths: Range<usize>,
        slack: usize,
        room: &'a mut AlignedBuffer,
    ) -> &'a [f32] {
        let steps = depths.start / T::PER_STEP..depths.end.div_ceil(T::PER_STEP);
        let length = steps.len() * T::PER_STEP * self.width;
        let floats = &mut room.reserve::<f32>(length + slack)[..length + slack];
        let mut rest = &mut floats[..length];
        let mut start = steps.start;
        while start < steps.end {
            let block = start / DEPTH * DEPTH..self.steps.min((start / DEPTH + 1) * DEPTH);
            let end = steps.end.min(block.end);
            let panel = &self.panel(index, &block)
                [(start - block.start) * self.width..(end - block.start) * self.width];
            let (here, behind) = rest.split_at_mut(panel.len() * T::PER_STEP);
            T::write_floats(panel, self.width, here);
            (rest, start) = (behind, end);
        }
        &floats[(depths.start - steps.start * T::PER_STEP) * self.width..]
    }
}

/// A weight's element, as float32.
pub(super) trait AsFloats: Element {
    /// How many numbers that follow each other in depth it holds.
    const PER_STEP: usize;

    /// Writes the numbers of steps of `width` elements, depth after depth.
    fn write_floats(panel: &[Self], width: usize, floats: &mut [f32]);
}

impl AsFloats for f32 {
    const PER_STEP: usize = 1;

    fn write_floats(panel: &[Self], _: usize, floats: &mut [f32]) {
        floats.copy_from_slice(panel);
    }
}

impl AsFloats for f16 {
    const PER_STEP: usize = 1;

    fn write_floats(panel: &[Self], _: usize, floats: &mut [f32]) {
        to_floats(panel, floats);
    }
}

impl AsFloats for bf16 {
    const PER_STEP: usize = 1;

    fn write_floats(panel: &[Self], _: usize, floats: &mut [f32]) {
        to_floats(panel, floats);
    }
}

impl AsFloats for Pair {
    const PER_STEP: usize = 2;

    #[inline(always)]
    fn write_floats(panel: &[Self], width: usize, floats: &mut [f32]) {
        for (step, floats) in panel.chunks_exact(width).zip(floats.chunks_exact_mut(2 * width)) {
            let (first, second) = floats.split_at_mut(width);
            // A panel may be narrower than the processor's vectors: left to itself the compiler takes one number at a time then.
            let (steps, step) = step.as_chunks::<4>();
            let ((firsts, first), (seconds, second)) =
                (first.as_chunks_mut::<4>(), second.as_chunks_mut::<4>());
            for ((step, first), second) in steps.iter().zip(firsts).zip(seconds) {
                split_pairs(step, first, second);
            }
            split_pairs(step, first, second);
        }
    }
}

/// The numbers of pairs, the first ones and the second ones.
#[inline(always)]
fn split_pairs(pairs: &[Pair], first: &mut [f32], second: &mut [f32]) {
    for ((Pair(bits), first), second) in pairs.iter().zip(first).zip(second) {
        // A bfloat16 is the upper half of a float32.
        *first = f32::from_bits(bits << 16);
        *second = f32::from_bits(bits & 0xffff_0000);
    }
}

/// So many features there is room for, so that the last tile finds what it reads: panels of one row are read as many at a time as tiles have rows.
pub(super) fn padded(features: usize, width: usize) -> usize {
    match width {
        1 => ROWS_OF_TILES.map(|rows| features.next_multiple_of(rows)).into_iter().fold(features, usize::max),
        _ => features.next_multiple_of(width),
    }
}

/// A piece of the depth, which begins at a multiple of [`DEPTH`], in blocks of [`DEPTH`], the last of which may be less.
pub(super) fn depth_blocks(steps: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    steps.clone().step_by(DEPTH).map(move |start| start..steps.end.min(start + DEPTH))
}

/// What comes out of panels again.
pub(super) trait Unpacked<T: Element>: Source<T> {
    /// Writes what these steps hold, as far as there is room.
    fn write(steps: impl Iterator<Item = T>, values: &mut [Self]);
}

macro_rules! unpacked_as_it_is {
    ($($type:ty),*) => {
        $(impl Unpacked<$type> for $type {
            fn write(steps: impl Iterator<Item = $type>, values: &mut [Self]) {
                values.iter_mut().zip(steps).for_each(|(value, step)| *value = step);
            }
        })*
    };
}

unpacked_as_it_is!(f32, f16, bf16);

impl Unpacked<Pair> for bf16 {
    fn write(steps: impl Iterator<Item = Pair>, values: &mut [Self]) {
        let halves = steps.flat_map(|Pair(pair)| [pair as u16, (pair >> 16) as u16]);
        values.iter_mut().zip(halves).for_each(|(value, half)| *value = bf16::from_bits(half));
    }
}

/// A weight's element, which products take as `E`.
pub(super) trait Stored<E: Element>: Element {
    /// A panel of this width as the level's products take it; `room` is for those that must be converted.
    fn as_factor<'a>(level: Level, panel: &'a [Self], width: usize, room: &'a mut AlignedBuffer) -> &'a [E];
}

macro_rules! stored_as_factor {
    ($($type:ty),*) => {
        $(impl Stored<$type> for $type {
            fn as_factor<'a>(_: Level, panel: &'a [Self], _: usize, _: &'a mut AlignedBuffer) -> &'a [$type] {
                panel
            }
        })*
    };
}

stored_as_factor!(f32, Pair);

/// Half precision takes half the memory, and is made float32 a panel at a time, which is then multiplied several times.
macro_rules! stored_in_half {
    ($($type:ty),*) => {
        $(impl Stored<f32> for $type {
            fn as_factor<'a>(_: Level, panel: &'a [Self], _: usize, room: &'a mut AlignedBuffer) -> &'a [f32] {
                let numbers = &mut room.reserve::<f32>(panel.len())[..panel.len()];
                to_floats(panel, numbers);
                numbers
            }
        })*
    };
}

stored_in_half!(f16, bf16);
