//! Packed weights of the products that gradients go back through.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::Shape;
use half::{bf16, f16};
use rayon::prelude::*;

use super::level::Level;
use super::packed::{Numbers, PackedWeight};
use super::panels::{AlignedBuffer, DEPTH, Element, Pair};
use super::weight_panels::{WeightPanels, padded};
use crate::cpu::{CACHE_LINE, Instructions, Work, chunk_by_chunk, prefetch, run_at};

/// The memory of the last transposed weight, for the next one: pages fresh from the system would take as long as the transposing.
static SPARE: Mutex<Option<AlignedBuffer>> = Mutex::new(None);

fn spare() -> MutexGuard<'static, Option<AlignedBuffer>> {
    // Nothing can fail while it is held.
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

static KEEPS: AtomicBool = AtomicBool::new(false);

/// Sets whether packed weights in half precision keep their transpose, which the gradients of products' inputs are computed with, from now on and in all of this process. By
/// default they do not: it takes as much memory as the weights that gradients go back through, and transposing them once more with each gradient 7% to 9%
/// of a training step (see the crate's README). What is kept already is kept as long as its weight.
pub fn keep_transposed_weights(keep: bool) {
    KEEPS.store(keep, Ordering::Relaxed);
}

impl PackedWeight {
    /// Calls `function` with the weight by which the gradient of a product's output is multiplied for that of its input: `(in_features,
    /// out_features)`, or `(in_channels, out_channels, kernel_height, kernel_width)` with the kernel turned by half a circle.
    pub(crate) fn with_transposed<R>(&self, function: impl FnOnce(&Self) -> R) -> R {
        if let Some(kept) = self.kept_transpose() {
            return function(kept);
        }
        let buffer = spare().take().unwrap_or_default();
        let transposed = self.transposed(buffer);
        let result = function(&transposed);
        if let Some(buffer) = transposed.into_buffer() {
            *spare() = Some(buffer);
        }
        result
    }

    fn kept_transpose(&self) -> Option<&Self> {
        let keeps = KEEPS.load(Ordering::Relaxed) && !matches!(self.numbers(), Numbers::F32(..));
        let place = self.transpose_place();
        if keeps {
            Some(place.get_or_init(|| self.transposed(AlignedBuffer::default())))
        } else {
            place.get()
        }
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

impl<T: Turned> WeightPanels<T> {
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

impl<T: Turned> Work for TransposedPanel<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(mut self, _: impl Instructions) {
        if self.index * self.weight.width() >= self.in_features {
            self.blocks.iter_mut().for_each(|block| block.fill(T::default()));
            return;
        }
        match (self.taps, self.weight.width()) {
            (_, 1) => self.write_feature(),
            // So that squares lie in one block.
            (1, width) if width.is_power_of_two() => self.write_squares(),
            _ => self.write_panel(),
        }
    }
}

impl<T: Turned> TransposedPanel<'_, T> {
    /// From one panel of output features after the other: of each the numbers that this panel's input features have.
    #[inline(always)]
    fn write_panel(&mut self) {
        let (weight, taps, width) = (self.weight, self.taps, self.weight.width());
        let features = self.index * width..self.in_features.min((self.index + 1) * width);
        // From a whole step on, for panels have an even width.
        let steps = features.start * taps / T::PER_STEP..(features.end * taps).div_ceil(T::PER_STEP);
        // In the order of the new panel, `width` input features for each output feature and tap. What the panel lacks stays zero.
        let mut numbers = vec![T::Number::default(); width * taps * width];
        let places: Vec<usize> = (0..taps)
            .flat_map(|tap| (0..width).map(move |output| output * taps + taps - 1 - tap))
            .map(|depth| depth / T::PER_STEP * width * T::PER_STEP + depth % T::PER_STEP)
            .collect();
        let sources = weight.features().div_ceil(width);
        for source in 0..sources {
            if source + 1 < sources {
                steps.clone().for_each(|step| prefetch(weight.step(source + 1, step), 0));
            }
            let (mut lane, mut taps) = (0, places.chunks_exact(width));
            for step in steps.clone() {
                let row = weight.step(source, step);
                for index in 0..T::PER_STEP {
                    let places = taps.next().unwrap_or_else(|| {
                        lane += 1;
                        taps = places.chunks_exact(width);
                        taps.next().unwrap_or_default()
                    });
                    if lane == features.len() {
                        break;
                    }
                    let numbers = &mut numbers[lane * T::PER_STEP..];
                    for (place, element) in places.iter().zip(row) {
                        // Vectors would only be taken apart again.
                        chunk_by_chunk();
                        numbers[*place] = element.number(index);
                    }
                }
            }
            self.write_numbers(source * width * self.taps, &numbers);
        }
    }

    /// The same where there is one tap: in squares of as many input as output features.
    #[inline(always)]
    fn write_squares(&mut self) {
        let (weight, width) = (self.weight, self.weight.width());
        let first = self.index * width / T::PER_STEP;
        let steps = first..weight.steps().min(first + width / T::PER_STEP);
        let sources = weight.features().div_ceil(width);
        for source in 0..sources {
            if source + 1 < sources {
                let next = weight.steps_of(source + 1, &steps);
                (0..next.len()).step_by(CACHE_LINE / size_of::<T>()).for_each(|place| prefetch(next, place));
            }
            let to = source * width / T::PER_STEP;
            let place = to % DEPTH * width;
            let block = &mut self.blocks[to / DEPTH];
            let end = block.len().min(place + width / T::PER_STEP * width);
            T::transpose(weight.steps_of(source, &steps), width, &mut block[place..end]);
        }
    }

    /// Where panels are single features, whose numbers lie beside each other.
    #[inline(always)]
    fn write_feature(&mut self) {
        let (weight, taps) = (self.weight, self.taps);
        // Whole steps: what the last one lacks is zero.
        let depth = (weight.features() * taps).next_multiple_of(T::PER_STEP);
        let mut row = vec![T::Number::default(); depth];
        for tap in 0..taps {
            let depth = self.index * taps + tap;
            let (step, half) = (depth / T::PER_STEP, depth % T::PER_STEP);
            let start = step / DEPTH * DEPTH;
            let block = start..weight.steps().min(start + DEPTH);
            let panels = weight.panels(0, weight.features(), &block).chunks_exact(block.len());
            for (output, numbers) in row[taps - 1 - tap..].iter_mut().step_by(taps).zip(panels) {
                *output = numbers[step - start].number(half);
            }
        }
        self.write_numbers(0, &row);
    }

    /// Writes steps from a depth on, which is a multiple of what a step has, as far as the panel is deep.
    #[inline(always)]
    fn write_numbers(&mut self, depth: usize, numbers: &[T::Number]) {
        let width = self.weight.width();
        let end = (self.weight.features() * self.taps).div_ceil(T::PER_STEP);
        let mut first = depth / T::PER_STEP;
        let mut numbers = numbers;
        while first < end && !numbers.is_empty() {
            let last =
                end.min(first / DEPTH * DEPTH + DEPTH).min(first + numbers.len() / (T::PER_STEP * width));
            let (here, rest) = numbers.split_at((last - first) * width * T::PER_STEP);
            let place = first % DEPTH * width;
            T::join(here, &mut self.blocks[first / DEPTH][place..place + (last - first) * width]);
            (first, numbers) = (last, rest);
        }
    }
}

/// A weight's element: one number, or two that follow each other in depth.
pub(super) trait Turned: Element {
    type Number: Copy + Default;
    /// How many it holds.
    const PER_STEP: usize;

    /// One of its numbers.
    fn number(self, index: usize) -> Self::Number;

    /// Elements of numbers in their order.
    fn join(numbers: &[Self::Number], elements: &mut [Self]);

    /// Writes the transpose of a square of numbers, in steps of `width` elements. The square's last rows may be missing, which are zeros, and the last of the transpose
    /// are left out for which there is no room.
    fn transpose(square: &[Self], width: usize, to: &mut [Self]);
}

macro_rules! one_number {
    ($($type:ty),*) => {
        $(impl Turned for $type {
            type Number = Self;
            const PER_STEP: usize = 1;

            #[inline(always)]
            fn number(self, _: usize) -> Self {
                self
            }

            #[inline(always)]
            fn join(numbers: &[Self], elements: &mut [Self]) {
                elements.copy_from_slice(numbers);
            }

            #[inline(always)]
            fn transpose(square: &[Self], width: usize, to: &mut [Self]) {
                for (feature, to) in to.chunks_exact_mut(width).enumerate() {
                    let (rows, missing) = to.split_at_mut(square.len() / width);
                    for (number, row) in rows.iter_mut().zip(square.chunks_exact(width)) {
                        // Vectors would only be taken apart again.
                        chunk_by_chunk();
                        *number = row[feature];
                    }
                    missing.fill(Self::default());
                }
            }
        })*
    };
}

one_number!(f32, f16, bf16);

impl Turned for Pair {
    type Number = u16;
    const PER_STEP: usize = 2;

    #[inline(always)]
    fn number(self, index: usize) -> u16 {
        (self.0 >> (16 * index)) as u16
    }

    #[inline(always)]
    fn join(numbers: &[u16], elements: &mut [Self]) {
        for (element, [first, second]) in elements.iter_mut().zip(numbers.as_chunks().0) {
            *element = Self(u32::from(*first) | u32::from(*second) << 16);
        }
    }

    #[inline(always)]
    fn transpose(square: &[Self], width: usize, to: &mut [Self]) {
        for (features, to) in to.chunks_exact_mut(width).enumerate() {
            let (rows, missing) = to.split_at_mut(2 * (square.len() / width));
            for ([first, second], row) in rows.as_chunks_mut().0.iter_mut().zip(square.chunks_exact(width)) {
                chunk_by_chunk();
                let (Self(even), Self(odd)) = (row[2 * features], row[2 * features + 1]);
                *first = Self(even & 0xffff | odd << 16);
                *second = Self(even >> 16 | odd & 0xffff_0000);
            }
            missing.fill(Self::default());
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::super::tests::{bits, levels, numbers};
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

    fn check<S: Unpacked<T>, T: Turned>(from: impl Fn(f32) -> S) {
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

    #[test]
    fn a_transpose_that_is_kept_is_made_once() -> candle_core::Result<()> {
        let pack = |dtype| PackedWeight::pack(&numbers(&[20, 33], 1).to_dtype(dtype)?);
        let (float, half) = (pack(DType::F32)?, pack(DType::BF16)?);
        let at = |weight: &PackedWeight| weight.with_transposed(|weight| std::ptr::from_ref(weight) as usize);
        let plain = |weight: &PackedWeight| weight.with_transposed(|weight| bits(&weight.unpack()));
        let halves = half.with_transposed(|weight| weight.unpack().to_dtype(DType::F32))?;
        let floats = plain(&float);
        keep_transposed_weights(true);
        let (kept, again) = (at(&half), at(&half.clone()));
        assert_eq!(kept, again);
        let found = half.with_transposed(|weight| weight.unpack().to_dtype(DType::F32))?;
        assert_eq!((bits(&found), plain(&float)), (bits(&halves), floats));
        assert!(half.kept_transpose().is_some() && float.kept_transpose().is_none());
        keep_transposed_weights(false);
        assert_eq!(at(&half), kept);
        assert!(pack(DType::BF16)?.kept_transpose().is_none());
        Ok(())
    }
}
