//! The pixels of a convolution, as they are read and packed.

use std::ops::Range;

use super::geometry::{Geometry, Scale};
use super::level::Level;
use super::microkernel::MAX_COLUMNS;
use super::multiply::Activations;
use super::panels::{Element, Source};
use super::rows::{read_row, read_row_twice};
use super::shifted::ShiftedPanel;
use crate::cpu::{CACHE_LINE, Instructions, Work, prefetch, run_at};

/// A row of a later channel is too far away for the processor to know that it comes: so many channels later it is read.
const CHANNELS_AHEAD: usize = 4;

/// The output's pixels of all pictures in a row, each with the input's numbers that it is computed from: those under the kernel, channel
/// by channel. They are read from `(batch, channels, height, width)` as they are; the output is `(batch, out_channels, out_pixels)`.
pub(super) struct Pixels<'a, S> {
    /// Of the instructions that panels are packed with.
    pub(super) level: Level,
    pub(super) values: &'a [S],
    pub(super) geometry: Geometry,
    pub(super) out_pixels: usize,
}

/// Pixels of a panel that lie in one row of one picture.
#[derive(Clone, Copy)]
struct Run {
    picture: usize,
    /// Where the run is in the panel.
    start: usize,
    length: usize,
    /// Where the kernel's first tap meets the input at the run's first pixel, counted from the padding's first row and column.
    y: usize,
    x: usize,
}

impl<S: Copy + Default> Pixels<'_, S> {
    fn runs(&self, items: Range<usize>) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut item = items.start;
        while item < items.end {
            let (picture, pixel) = (item / self.out_pixels, item % self.out_pixels);
            let Geometry { out_width, params, .. } = self.geometry;
            let (y, x) = (pixel / out_width, pixel % out_width);
            let length = (out_width - x).min(items.end - item);
            let (start, stride) = (item - items.start, params.stride);
            runs.push(Run { picture, start, length, y: y * stride, x: x * stride });
            item += length;
        }
        runs
    }

    /// What one tap of the kernel meets in one channel along a run.
    #[inline(always)]
    fn read(&self, run: &Run, channel: usize, tap: (usize, usize), numbers: &mut [S]) {
        let Geometry { channels, height, width, scale, params, .. } = self.geometry;
        let padding = params.padding;
        let (y, x) = (run.y + tap.0, run.x + tap.1);
        if y < padding || y - padding >= height {
            return numbers.fill(S::default());
        }
        // A division by what the compiler does not know takes longer than the copying.
        let stored = |count: usize| match scale {
            Scale::One => count,
            Scale::Two => count / 2,
        };
        let row = (run.picture * channels + channel) * stored(height) + stored(y - padding);
        if tap.1 == 0 {
            let next = row + CHANNELS_AHEAD * stored(height);
            for place in (0..run.length * params.stride).step_by(CACHE_LINE / size_of::<S>()) {
                prefetch(self.values, next * stored(width) + stored(x + place));
            }
        }
        let row = &self.values[row * stored(width)..][..stored(width)];
        match scale {
            Scale::One => read_row(row, x, params, numbers),
            Scale::Two => read_row_twice(row, x, params, numbers),
        }
    }
}

/// Packs a panel of any pixels of any convolution, row by row.
struct PackRuns<'a, 'v, S, E> {
    pixels: &'a Pixels<'v, S>,
    items: Range<usize>,
    steps: Range<usize>,
    width: usize,
    panel: &'a mut [E],
}

impl<S: Source<E>, E: Element> Work for PackRuns<'_, '_, S, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Instructions) {
        let Self { pixels, items, steps, width, panel } = self;
        let Geometry { channels, kernel_height, kernel_width, .. } = pixels.geometry;
        let runs = pixels.runs(items);
        let taps = kernel_height * kernel_width;
        let first = steps.start * S::PER_STEP;
        let (mut channel, mut tap) = (first / taps, (first % taps / kernel_width, first % kernel_width));
        // What the panel lacks stays zero.
        let mut rows = [[S::default(); MAX_COLUMNS]; 2];
        for steps in panel.chunks_exact_mut(width).take(steps.len()) {
            for row in rows.iter_mut().take(S::PER_STEP) {
                for run in &runs {
                    let numbers = &mut row[run.start..run.start + run.length];
                    match channel < channels {
                        true => pixels.read(run, channel, tap, numbers),
                        // The second half of the last step.
                        false => numbers.fill(S::default()),
                    }
                }
                // Counted up: a division for each would take longer than the copying.
                tap.1 += 1;
                if tap.1 == kernel_width {
                    tap = (tap.0 + 1, 0);
                }
                if tap.0 == kernel_height {
                    (channel, tap.0) = (channel + 1, 0);
                }
            }
            S::join(&rows[0][..width], &rows[1][..width], steps);
        }
    }
}

impl<S: Source<E>, E: Element> Activations<E> for Pixels<'_, S> {
    type Number = S;

    fn items(&self) -> usize {
        self.geometry.batch * self.out_pixels
    }

    fn pack(&self, items: Range<usize>, steps: Range<usize>, width: usize, panel: &mut [E]) {
        match ShiftedPanel::new(self.values, &self.geometry, items.clone(), width) {
            Some(shifted) => shifted.pack(self.level, steps, width, panel),
            None => run_at(self.level, PackRuns { pixels: self, items, steps, width, panel }),
        }
    }

    fn place(&self, feature: usize, item: usize) -> usize {
        let (picture, pixel) = (item / self.out_pixels, item % self.out_pixels);
        (picture * self.geometry.out_channels + feature) * self.out_pixels + pixel
    }

    fn adjoin(&self, items: &Range<usize>) -> bool {
        items.start / self.out_pixels == (items.end - 1) / self.out_pixels
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use half::bf16;

    use super::super::PackedWeight;
    use super::super::panels::{DEPTH, Pair};
    use super::super::tests::levels;
    use super::*;
    use crate::Conv2dParams;

    /// Both ways to pack the panels of a convolution of `(batch, channels, height, width)`.
    fn assert_equal<S: Source<E>, E: Element>(x: [usize; 4], kernel: usize, from: impl Fn(usize) -> S) {
        let [batch, channels, height, width] = x;
        let values: Vec<S> = (1..=x.iter().product()).map(from).collect();
        let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let weight = PackedWeight::pack(&zeros(&[1, channels, kernel, kernel])).unwrap();
        let params = Conv2dParams { stride: 1, padding: kernel / 2 };
        let geometry = Geometry::new(&zeros(&x), Scale::One, &weight, params).unwrap();
        let steps = (channels * kernel * kernel).div_ceil(S::PER_STEP);
        for level in levels() {
            let pixels = Pixels { level, values: &values, geometry, out_pixels: height * width };
            for panel_width in [8, 16, MAX_COLUMNS] {
                for first in (0..batch * height * width).step_by(panel_width) {
                    let items = first..(first + panel_width).min(batch * height * width);
                    for steps in [0..steps.min(DEPTH), steps / 2..steps] {
                        let mut panels = [(); 2].map(|()| vec![E::default(); steps.len() * panel_width]);
                        let [all, runs] = &mut panels;
                        pixels.pack(items.clone(), steps.clone(), panel_width, all);
                        let (items, steps) = (items.clone(), steps.clone());
                        run_at(
                            level,
                            PackRuns {
                                pixels: &pixels,
                                items: items.clone(),
                                steps: steps.clone(),
                                width: panel_width,
                                panel: runs,
                            },
                        );
                        assert!(
                            all == runs,
                            "{x:?} by {kernel}, {items:?} in panels of {panel_width}, {steps:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn panels_are_the_same_by_rows_and_in_one_piece() {
        for x in [[1, 3, 1, 1], [2, 5, 8, 8], [3, 4, 5, 3], [1, 7, 17, 33], [2, 40, 4, 16], [1, 2, 1, 40]] {
            for kernel in [1, 3, 5] {
                assert_equal::<f32, f32>(x, kernel, |index| index as f32);
                assert_equal::<bf16, Pair>(x, kernel, |index| bf16::from_bits(index as u16));
            }
        }
    }
}
