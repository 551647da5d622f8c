//! Packed weights of the products that gradients go back through.

use std::ops::Range;

use candle_core::Shape;
use half::{bf16, f16};
use rayon::prelude::*;

use super::packed::{Numbers, PackedWeight};
use super::panels::{AlignedBuffer, DEPTH, Element, Pair};
use super::weight_panels::{WeightPanels, padded};

impl PackedWeight {
    /// The weight by which the gradient of a product's output is multiplied for that of its input: `(in_features, out_features)`, or
    /// `(in_channels, out_channels, kernel_height, kernel_width)` with the kernel turned by half a circle.
    pub(crate) fn transposed(&self) -> Self {
        let [out_features, in_features, kernel @ ..] = self.shape().dims() else { return self.clone() };
        let taps: usize = kernel.iter().product();
        let numbers = match self.numbers() {
            Numbers::F32(kernel, panels) => Numbers::F32(*kernel, panels.transposed(*in_features, taps)),
            Numbers::F16(kernel, panels) => Numbers::F16(*kernel, panels.transposed(*in_features, taps)),
            Numbers::Bf16(kernel, panels) => Numbers::Bf16(*kernel, panels.transposed(*in_features, taps)),
            Numbers::Bf16Pairs(kernel, panels) => {
                Numbers::Bf16Pairs(*kernel, panels.transposed(*in_features, taps))
            }
        };
        let shape = [&[*in_features, *out_features], kernel].concat();
        Self::of(Shape::from(shape), self.dtype(), self.side(), out_features * taps, numbers)
    }
}

impl<T: Numbered> WeightPanels<T> {
    fn transposed(&self, in_features: usize, taps: usize) -> Self {
        let (width, depth) = (self.width(), self.features() * taps);
        let steps = depth.div_ceil(T::PER_STEP);
        let padded_features = padded(in_features, width);
        let length = padded_features * steps;
        let mut buffer = AlignedBuffer::zeros::<T>(length);
        let blocks = buffer.values_mut()[..length].par_chunks_mut((padded_features * DEPTH).max(1));
        blocks.enumerate().for_each(|(block, panels)| {
            let block = block * DEPTH..steps.min((block + 1) * DEPTH);
            panels
                .par_chunks_mut(width * block.len())
                .take(in_features.div_ceil(width))
                .enumerate()
                .for_each(|(index, panel)| {
                    let features = index * width..in_features.min((index + 1) * width);
                    self.transpose_panel(features, block.clone(), taps, panel);
                });
        });
        Self::of(in_features, steps, width, buffer)
    }

    /// Writes the panel of these input features (or channels) for a block of the new depth, which is output features with `taps` each.
    fn transpose_panel(&self, features: Range<usize>, block: Range<usize>, taps: usize, panel: &mut [T]) {
        let width = self.width();
        let depths = block.start * T::PER_STEP..(block.end * T::PER_STEP).min(self.features() * taps);
        let outputs = depths.start / taps..depths.end.div_ceil(taps);
        for source in outputs.start / width..outputs.end.div_ceil(width) {
            let outputs = outputs.start.max(source * width)..outputs.end.min((source + 1) * width);
            for (lane, feature) in features.clone().enumerate() {
                for tap in 0..taps {
                    let numbers = self.step_at(source, (feature * taps + tap) / T::PER_STEP);
                    let half = (feature * taps + tap) % T::PER_STEP;
                    for output in outputs.clone() {
                        let depth = output * taps + taps - 1 - tap;
                        if depths.contains(&depth) {
                            let number = numbers[output - source * width].number(half);
                            let step = depth / T::PER_STEP - block.start;
                            panel[step * width + lane].set_number(depth % T::PER_STEP, number);
                        }
                    }
                }
            }
        }
    }

    /// One step of a panel of features.
    fn step_at(&self, panel: usize, step: usize) -> &[T] {
        let start = step / DEPTH * DEPTH;
        let block = start..self.steps().min(start + DEPTH);
        &self.panel(panel, &block)[(step - start) * self.width()..][..self.width()]
    }
}

/// What holds one number or more that follow each other in depth.
pub(super) trait Numbered: Element {
    type Number: Copy;
    const PER_STEP: usize;

    fn number(self, index: usize) -> Self::Number;

    /// Sets one that is zero.
    fn set_number(&mut self, index: usize, number: Self::Number);
}

macro_rules! one_number {
    ($($type:ty),*) => {
        $(impl Numbered for $type {
            type Number = Self;
            const PER_STEP: usize = 1;

            #[inline(always)]
            fn number(self, _: usize) -> Self {
                self
            }

            #[inline(always)]
            fn set_number(&mut self, _: usize, number: Self) {
                *self = number;
            }
        })*
    };
}

one_number!(f32, f16, bf16);

impl Numbered for Pair {
    type Number = u32;
    const PER_STEP: usize = 2;

    #[inline(always)]
    fn number(self, index: usize) -> u32 {
        self.0 >> (16 * index) & 0xffff
    }

    #[inline(always)]
    fn set_number(&mut self, index: usize, number: u32) {
        self.0 |= number << (16 * index);
    }
}
