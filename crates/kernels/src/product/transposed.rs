//! Packed weights of the products that gradients go back through.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::Shape;
use half::{bf16, f16};
use rayon::prelude::*;

use super::level::Level;
use super::packed::{Numbers, PackedWeight};
use super::panels::{AlignedBuffer, DEPTH, Pair};
use super::weight_panels::{AsFloats, WeightPanels, padded};
use crate::cpu::{Float, Instructions, Work, run_at};

/// The memory of the last transposed weight, for the next one: pages fresh from the system would take as long as the transposing.
static SPARE: Mutex<Option<AlignedBuffer>> = Mutex::new(None);

fn spare() -> MutexGuard<'static, Option<AlignedBuffer>> {
    // Nothing can fail while it is held.
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PackedWeight {
    /// Calls `function` with the weight by which the gradient of a product's output is multiplied for that of its input: `(in_features,
    /// out_features)`, or `(in_channels, out_channels, kernel_height, kernel_width)` with the kernel turned by half a circle.
    pub(crate) fn with_transposed<R>(&self, function: impl FnOnce(&Self) -> R) -> R {
        let buffer = spare().take().unwrap_or_default();
        let transposed = self.transposed(buffer);
        let result = function(&transposed);
        if let Some(buffer) = transposed.into_buffer() {
            *spare() = Some(buffer);
        }
        result
    }

    fn transposed(&self, buffer: AlignedBuffer) -> Self {
        let [out_features, in_features, kernel @ ..] = self.shape().dims() else { return self.clone() };
        let (inputs, taps) = (*in_features, kernel.iter().product::<usize>());
        let numbers = match self.numbers() {
            Numbers::F32(kernel, panels) => {
                Numbers::F32(*kernel, panels.transposed(kernel.level, inputs, taps, buffer))
            }
            Numbers::F16(kernel, panels) => {
                Numbers::F16(*kernel, panels.transposed(kernel.level, inputs, taps, buffer))
            }
            Numbers::Bf16(kernel, panels) => {
                Numbers::Bf16(*kernel, panels.transposed(kernel.level, inputs, taps, buffer))
            }
            Numbers::Bf16Pairs(kernel, panels) => {
                Numbers::Bf16Pairs(*kernel, panels.transposed(kernel.level, inputs, taps, buffer))
            }
        };
        let shape = [&[inputs, *out_features], kernel].concat();
        Self::of(Shape::from(shape), self.dtype(), self.side(), out_features * taps, numbers)
    }
}

impl<T: FromFloats> WeightPanels<T> {
    /// In `buffer`, all of which that is needed is written.
    fn transposed(&self, level: Level, in_features: usize, taps: usize, mut buffer: AlignedBuffer) -> Self {
        let (width, depth) = (self.width(), self.features() * taps);
        let steps = depth.div_ceil(T::PER_STEP);
        let padded_features = padded(in_features, width);
        let length = padded_features * steps;
        let mut panels: Vec<Vec<&mut [T]>> = Vec::new();
        panels.resize_with(padded_features / width, Vec::new);
        for block in buffer.reserve::<T>(length)[..length].chunks_mut((padded_features * DEPTH).max(1)) {
            let size = block.len() / panels.len();
            panels.iter_mut().zip(block.chunks_exact_mut(size)).for_each(|(panel, part)| panel.push(part));
        }
        panels.into_par_iter().enumerate().for_each(|(index, blocks)| {
            run_at(level, TransposedPanel { weight: self, index, in_features, taps, blocks });
        });
        Self::of(in_features, steps, width, buffer)
    }
}

/// A panel of input features, in its blocks of the new depth, which is output features with `taps` each.
struct TransposedPanel<'a, T> {
    weight: &'a WeightPanels<T>,
    index: usize,
    in_features: usize,
    taps: usize,
    blocks: Vec<&'a mut [T]>,
}

impl<T: FromFloats> Work for TransposedPanel<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(mut self, _: impl Instructions) {
        if self.index * self.weight.width() >= self.in_features {
            self.blocks.iter_mut().for_each(|block| block.fill(T::default()));
            return;
        }
        match self.weight.width() {
            1 => self.write_feature(),
            4 => self.write::<4>(),
            6 => self.write::<6>(),
            8 => self.write::<8>(),
            12 => self.write::<12>(),
            16 => self.write::<16>(),
            32 => self.write::<32>(),
            // Of microkernels that are not there yet, with an even width.
            _ => self.write::<1>(),
        }
    }
}

impl<T: FromFloats> TransposedPanel<'_, T> {
    /// In squares of `WIDTH` input and output features, which `WIDTH` divides the width.
    #[inline(always)]
    fn write<const WIDTH: usize>(&mut self) {
        let (weight, taps, width) = (self.weight, self.taps, self.weight.width());
        let features = self.index * width..self.in_features.min((self.index + 1) * width);
        let mut room = AlignedBuffer::default();
        // What the panel lacks stays zero.
        let mut rows = vec![0f32; width * taps * width];
        for source in 0..weight.features().div_ceil(width) {
            let depths = features.start * taps..features.end * taps;
            let numbers = &weight.floats(source, depths.clone(), 0, &mut room)[..depths.len() * width];
            for (lane, numbers) in
                (0..features.len()).step_by(WIDTH).zip(numbers.chunks(WIDTH * taps * width))
            {
                for output in (0..width).step_by(WIDTH) {
                    for tap in 0..taps {
                        let to = (output * taps + taps - 1 - tap) * width + lane;
                        let from = &numbers[tap * width + output..];
                        transpose::<WIDTH>(from, &mut rows[to..], taps * width);
                    }
                }
            }
            self.write_rows(source * width * taps, &rows);
        }
    }

    /// Where panels are single features, whose numbers lie beside each other.
    #[inline(always)]
    fn write_feature(&mut self) {
        let (weight, taps) = (self.weight, self.taps);
        // Whole steps: what the last one lacks is zero.
        let mut row = vec![0f32; (weight.features() * taps).next_multiple_of(T::PER_STEP)];
        for tap in 0..taps {
            let depth = self.index * taps + tap;
            let (step, half) = (depth / T::PER_STEP, depth % T::PER_STEP);
            let start = step / DEPTH * DEPTH;
            let block = start..weight.steps().min(start + DEPTH);
            let panels = weight.panels(0, weight.features(), &block).chunks_exact(block.len());
            for (output, numbers) in row[taps - 1 - tap..].iter_mut().step_by(taps).zip(panels) {
                *output = numbers[step - start].to_float(half);
            }
        }
        self.write_rows(0, &row);
    }

    /// Writes rows from a depth on, which is a multiple of what a step has, as far as the panel is deep.
    #[inline(always)]
    fn write_rows(&mut self, depth: usize, rows: &[f32]) {
        let width = self.weight.width();
        let end = self.weight.features() * self.taps;
        let first = depth / T::PER_STEP;
        for (step, rows) in (first..end.div_ceil(T::PER_STEP)).zip(rows.chunks(T::PER_STEP * width)) {
            let place = step % DEPTH * width;
            T::from_floats(rows, &mut self.blocks[step / DEPTH][place..place + width]);
        }
    }
}

/// Writes the transpose of a square, the rows of both `stride` apart; of the last rows there may be fewer.
#[inline(always)]
fn transpose<const WIDTH: usize>(from: &[f32], to: &mut [f32], stride: usize) {
    let mut square = [[0f32; WIDTH]; WIDTH];
    for (square, from) in square.iter_mut().zip(from.chunks(stride)) {
        square.copy_from_slice(&from[..WIDTH]);
    }
    for column in 0..WIDTH {
        let to = &mut to[column * stride..][..WIDTH];
        for row in 0..WIDTH {
            to[row] = square[row][column];
        }
    }
}

/// What holds one number or more that follow each other in depth, and is made of float32 that have its precision.
pub(super) trait FromFloats: AsFloats {
    /// Writes a step from its rows, one for each number.
    fn from_floats(rows: &[f32], step: &mut [Self]);

    /// One of its numbers.
    fn to_float(self, index: usize) -> f32;
}

impl FromFloats for f32 {
    #[inline(always)]
    fn from_floats(rows: &[f32], step: &mut [Self]) {
        step.copy_from_slice(rows);
    }

    #[inline(always)]
    fn to_float(self, _: usize) -> f32 {
        self
    }
}

macro_rules! from_floats {
    ($($type:ty),*) => {
        $(impl FromFloats for $type {
            #[inline(always)]
            fn from_floats(rows: &[f32], step: &mut [Self]) {
                for (step, number) in step.iter_mut().zip(rows) {
                    *step = <$type as Float>::from_float(*number);
                }
            }

            #[inline(always)]
            fn to_float(self, _: usize) -> f32 {
                <$type as Float>::to_float(self)
            }
        })*
    };
}

from_floats!(f16, bf16);

impl FromFloats for Pair {
    #[inline(always)]
    fn from_floats(rows: &[f32], step: &mut [Self]) {
        let (first, second) = rows.split_at(step.len());
        for ((step, first), second) in step.iter_mut().zip(first).zip(second) {
            // A bfloat16 is the upper half of a float32.
            *step = Self(first.to_bits() >> 16 | second.to_bits() & 0xffff_0000);
        }
    }

    #[inline(always)]
    fn to_float(self, index: usize) -> f32 {
        f32::from_bits(self.0 >> (16 * index) << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{levels, numbers};
    use super::super::weight_panels::Unpacked;
    use super::*;

    /// `(features, inputs, taps)` as `(inputs, features, taps)`, with the taps turned.
    fn turned<S: Copy>(values: &[S], features: usize, inputs: usize, taps: usize) -> Vec<S> {
        let places = (0..inputs).flat_map(|input| (0..features).map(move |feature| (feature, input)));
        let at = |(feature, input): (usize, usize), tap: usize| {
            values[(feature * inputs + input) * taps + taps - 1 - tap]
        };
        places.flat_map(|place| (0..taps).map(move |tap| at(place, tap))).collect()
    }

    fn check<S: Unpacked<T>, T: FromFloats>(from: impl Fn(f32) -> S) {
        let mut buffer = AlignedBuffer::default();
        for (features, inputs, taps) in
            [(1, 1, 1), (33, 31, 1), (3, 5, 9), (65, 300, 1), (40, 61, 9), (17, 130, 3), (300, 3, 1)]
        {
            let floats = numbers(&[features * inputs * taps], 3).to_vec1::<f32>().unwrap();
            let values: Vec<S> = floats.into_iter().map(&from).collect();
            let expected = turned(&values, features, inputs, taps);
            for width in [1, 4, 6, 8, 12, 16, 32] {
                for level in levels() {
                    let panels = WeightPanels::<T>::pack(&values, features, inputs * taps, width);
                    let transposed = panels.transposed(level, inputs, taps, buffer);
                    let found = transposed.unpack::<S>(features * taps);
                    assert!(found == expected, "{features} {inputs} {taps} in panels of {width}");
                    // With what it holds, for the next.
                    buffer = transposed.into_buffer();
                }
            }
        }
    }

    #[test]
    fn panels_of_any_width() {
        check::<f32, f32>(|number| number);
        check::<f16, f16>(f16::from_f32);
        check::<bf16, bf16>(bf16::from_f32);
        check::<bf16, Pair>(bf16::from_f32);
    }
}
