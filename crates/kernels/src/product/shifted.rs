//! Panels of convolutions that keep a picture's size. What a tap of the kernel meets at pixels beside each other lies beside each other in memory
//! then, from one row to the next too: so a panel's numbers are one piece of a channel, in which those over the picture's edge become zero.

use std::ops::Range;

use super::geometry::{Geometry, Scale};
use super::level::Level;
use super::microkernel::MAX_COLUMNS;
use super::panels::{Element, Source};
use crate::Conv2dParams;
use crate::cpu::{Instructions, Work, run_at};

/// A panel's pixels, which are all of one picture, and what the taps meet there.
pub(super) struct ShiftedPanel<'a, S> {
    values: &'a [S],
    /// Where the first pixel is, in the first channel of its picture.
    first: usize,
    channels: usize,
    /// Numbers from one channel to the next.
    plane: usize,
    /// Row by row.
    taps: Vec<Tap>,
}

/// A tap of the kernel.
struct Tap {
    /// Numbers from a pixel to what the tap meets there.
    offset: isize,
    /// At which of the panel's pixels it meets the picture.
    inside: [bool; MAX_COLUMNS],
    meets_all: bool,
}

impl<'a, S> ShiftedPanel<'a, S> {
    /// `None` where the convolution does not keep the picture's size, or the pixels are of two pictures, or panels are of no width that is compiled.
    pub(super) fn new(
        values: &'a [S],
        geometry: &Geometry,
        items: Range<usize>,
        width: usize,
    ) -> Option<Self> {
        let Geometry { channels, height, kernel_height, kernel_width, params, .. } = *geometry;
        let keeps_size = geometry.scale == Scale::One
            && params.stride == 1
            && (geometry.out_height, geometry.out_width) == (height, geometry.width);
        let plane = height * geometry.width;
        let picture = items.start.checked_div(plane)?;
        if !keeps_size || items.end > (picture + 1) * plane || !matches!(width, 8 | 16 | MAX_COLUMNS) {
            return None;
        }
        let pixels = items.start - picture * plane..items.end - picture * plane;
        let taps = (0..kernel_height).flat_map(|y| (0..kernel_width).map(move |x| (y, x)));
        Some(Self {
            values,
            first: picture * channels * plane + pixels.start,
            channels,
            plane,
            taps: taps.map(|tap| Tap::new(geometry, pixels.clone(), tap)).collect(),
        })
    }
}

impl Tap {
    fn new(geometry: &Geometry, pixels: Range<usize>, (tap_y, tap_x): (usize, usize)) -> Self {
        let Geometry { height, width, params: Conv2dParams { padding, .. }, .. } = *geometry;
        let (mut y, mut x) = (pixels.start / width + tap_y, pixels.start % width + tap_x);
        let mut inside = [false; MAX_COLUMNS];
        for inside in inside.iter_mut().take(pixels.len()) {
            *inside = (padding..padding + height).contains(&y) && (padding..padding + width).contains(&x);
            x += 1;
            if x == width + tap_x {
                (y, x) = (y + 1, tap_x);
            }
        }
        let [down, right] = [tap_y, tap_x].map(|tap| tap.cast_signed() - padding.cast_signed());
        let offset = down * width.cast_signed() + right;
        Self { offset, inside, meets_all: inside.iter().all(|inside| *inside) }
    }
}

impl<S: Copy + Default> ShiftedPanel<'_, S> {
    /// See [`Activations::pack`](super::multiply::Activations::pack); the width is that which it was made for.
    pub(super) fn pack<E: Element>(&self, level: Level, steps: Range<usize>, width: usize, panel: &mut [E])
    where
        S: Source<E>,
    {
        run_at(level, Pack { from: self, steps, width, panel });
    }

    /// What a tap meets in a channel.
    #[inline(always)]
    fn read<const WIDTH: usize>(&self, channel: usize, tap: &Tap) -> [S; WIDTH] {
        let start = (self.first + channel * self.plane).checked_add_signed(tap.offset);
        let Some(numbers) = start.and_then(|start| self.values.get(start..)?.first_chunk::<WIDTH>()) else {
            return self.read_at_an_end(channel, tap);
        };
        let mut row = *numbers;
        if !tap.meets_all {
            for (number, inside) in row.iter_mut().zip(&tap.inside) {
                *number = if *inside { *number } else { S::default() };
            }
        }
        row
    }

    /// The same, number by number, where a whole row would begin before the tensor or end behind it.
    #[cold]
    fn read_at_an_end<const WIDTH: usize>(&self, channel: usize, tap: &Tap) -> [S; WIDTH] {
        let mut row = [S::default(); WIDTH];
        for (index, (number, inside)) in row.iter_mut().zip(&tap.inside).enumerate() {
            let place = (self.first + channel * self.plane + index).checked_add_signed(tap.offset);
            if let Some(place) = place.filter(|_| *inside) {
                *number = self.values[place];
            }
        }
        row
    }
}

struct Pack<'a, 'v, S, E> {
    from: &'a ShiftedPanel<'v, S>,
    steps: Range<usize>,
    width: usize,
    panel: &'a mut [E],
}

impl<S: Source<E>, E: Element> Work for Pack<'_, '_, S, E> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Instructions) {
        // Of a length that the compiler knows, rows are vectors.
        match self.width {
            8 => self.write::<8>(),
            16 => self.write::<16>(),
            _ => self.write::<MAX_COLUMNS>(),
        }
    }
}

impl<S: Source<E>, E: Element> Pack<'_, '_, S, E> {
    #[inline(always)]
    fn write<const WIDTH: usize>(self) {
        let Self { from, steps, panel, .. } = self;
        let first = steps.start * S::PER_STEP;
        let (mut channel, mut tap) = (first / from.taps.len(), first % from.taps.len());
        let mut rows = [[S::default(); WIDTH]; 2];
        for step in panel.as_chunks_mut::<WIDTH>().0.iter_mut().take(steps.len()) {
            for row in rows.iter_mut().take(S::PER_STEP) {
                *row = match channel < from.channels {
                    true => from.read(channel, &from.taps[tap]),
                    // The second half of the last step.
                    false => [S::default(); WIDTH],
                };
                // Counted up: a division for each would take longer than the copying.
                tap += 1;
                if tap == from.taps.len() {
                    (channel, tap) = (channel + 1, 0);
                }
            }
            S::join(&rows[0], &rows[1], step);
        }
    }
}
