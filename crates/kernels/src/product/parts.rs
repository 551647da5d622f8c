//! Float32 by products of bfloat16: a float32 is the exact sum of three bfloat16, so six of the nine products of such parts, summed in float32,
//! are as accurate as float32, three nearly half its digits, one bfloat16.

use std::cell::RefCell;
use std::ops::Range;

use half::{bf16, f16};

use super::level::Level;
use super::multiply::Activations;
use super::panels::{AlignedBuffer, DEPTH, Element, Source};
use super::precision::Float32MatmulPrecision;
use super::weight_panels::{Stored, depth_blocks};
use crate::cpu::{Instructions, LANES, Work, run_at};

/// Products in parts take depths that are multiples of this, one step of tiles.
const STEP: usize = 32;

/// A panel's number as `PARTS` bfloat16, the greatest first. Those of one part lie together: of a panel of `n` numbers, part `i` is what
/// would be bfloat16 numbers `i * n` to `(i + 1) * n` of the panel's memory, in the order of [`Order`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(transparent)]
pub(super) struct Parts<const PARTS: usize>([u16; PARTS]);

impl<const PARTS: usize> Default for Parts<PARTS> {
    fn default() -> Self {
        Self([0; PARTS])
    }
}

// SAFETY: plain numbers of 2 bytes.
unsafe impl<const PARTS: usize> Element for Parts<PARTS> {}

impl<const PARTS: usize> Source<Self> for Parts<PARTS> {
    const PER_STEP: usize = 1;

    fn steps<'a>(row: &'a [Self], _: &'a mut [Self; DEPTH]) -> &'a [Self] {
        row
    }

    fn join(first: &[Self], _: &[Self], steps: &mut [Self]) {
        steps.copy_from_slice(first);
    }
}

/// How the numbers of a part lie in a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Pairs that follow each other in depth, those of all rows (or columns) of the panel beside each other.
    Pairs { width: usize },
    /// Tiles of all rows and 32 depths, row by row.
    Tiles,
}

/// In how many parts a linear layer of this depth multiplies float32 at a level; `None` where it does not.
pub(super) fn parts_at(level: Level, precision: Float32MatmulPrecision, depth: usize) -> Option<usize> {
    if depth == 0 || !depth.is_multiple_of(STEP) {
        return None;
    }
    match (level, precision) {
        (Level::Amx, Float32MatmulPrecision::Highest) => Some(3),
        (Level::Amx, Float32MatmulPrecision::High) => Some(2),
        // Vectors multiply bfloat16 twice as fast as float32: nothing is won with three products.
        (Level::Avx512Bf16 | Level::Amx, Float32MatmulPrecision::Medium) => Some(1),
        _ => None,
    }
}

thread_local! {
    /// A panel before it is split.
    static FLOATS: RefCell<AlignedBuffer> = RefCell::default();
}

/// Activations in float32 that are multiplied in parts.
pub(super) struct InParts<'a, A> {
    pub(super) activations: &'a A,
    pub(super) order: Order,
    pub(super) level: Level,
}

impl<const PARTS: usize, A: Activations<f32>> Activations<Parts<PARTS>> for InParts<'_, A> {
    type Number = Parts<PARTS>;

    fn items(&self) -> usize {
        self.activations.items()
    }

    fn pack(&self, items: Range<usize>, steps: Range<usize>, width: usize, panel: &mut [Parts<PARTS>]) {
        FLOATS.with_borrow_mut(|floats| {
            let floats = floats.reserve::<f32>(width * DEPTH);
            for block in depth_blocks(steps.clone()) {
                let floats = &mut floats[..width * block.len()];
                match self.order {
                    Order::Pairs { width } => {
                        self.activations.pack(items.clone(), block.clone(), width, floats);
                    }
                    Order::Tiles => {
                        let mut rows = floats.chunks_exact_mut(block.len());
                        let pairs = items.clone().zip(&mut rows);
                        pairs.for_each(|(item, row)| {
                            self.activations.pack(item..item + 1, block.clone(), 1, row);
                        });
                        rows.for_each(|row| row.fill(0.0));
                    }
                }
                let start = (block.start - steps.start) * width;
                split(self.level, floats, self.order, &mut panel[start..start + width * block.len()]);
            }
        });
    }

    fn place(&self, feature: usize, item: usize) -> usize {
        self.activations.place(feature, item)
    }

    fn adjoin(&self, items: &Range<usize>) -> bool {
        self.activations.adjoin(items)
    }
}

impl<const PARTS: usize> Stored<Parts<PARTS>> for f32 {
    fn as_factor<'a>(
        level: Level,
        panel: &'a [Self],
        width: usize,
        room: &'a mut AlignedBuffer,
    ) -> &'a [Parts<PARTS>] {
        let parts = &mut room.reserve::<Parts<PARTS>>(panel.len())[..panel.len()];
        split(level, panel, Order::Pairs { width }, parts);
        parts
    }
}

macro_rules! half_precision_in_parts {
    ($($type:ty),*) => {
        $(impl<const PARTS: usize> Stored<Parts<PARTS>> for $type {
            fn as_factor<'a>(
                level: Level,
                panel: &'a [Self],
                width: usize,
                room: &'a mut AlignedBuffer,
            ) -> &'a [Parts<PARTS>] {
                let parts = &mut room.reserve::<Parts<PARTS>>(panel.len())[..panel.len()];
                FLOATS.with_borrow_mut(|floats| {
                    let floats = <Self as Stored<f32>>::as_factor(level, panel, width, floats);
                    split(level, floats, Order::Pairs { width }, parts);
                });
                parts
            }
        })*
    };
}

half_precision_in_parts!(f16, bf16);

/// Splits the numbers of a panel: of pairs, `width` for each depth; of tiles, 32 rows.
fn split<const PARTS: usize>(level: Level, floats: &[f32], order: Order, parts: &mut [Parts<PARTS>]) {
    let length = floats.len();
    assert!(parts.len() == length && length.is_multiple_of(STEP));
    // SAFETY: so many numbers of 2 bytes are there.
    let numbers = unsafe { std::slice::from_raw_parts_mut(parts.as_mut_ptr().cast(), PARTS * length) };
    run_at(level, Split::<PARTS> { floats, order, numbers });
}

struct Split<'a, const PARTS: usize> {
    floats: &'a [f32],
    order: Order,
    numbers: &'a mut [u16],
}

impl<const PARTS: usize> Work for Split<'_, PARTS> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Instructions) {
        match self.order {
            Order::Pairs { width } if width.is_multiple_of(LANES) => self.pairs::<LANES>(width),
            Order::Pairs { width } => self.pairs::<4>(width),
            Order::Tiles => self.tiles(),
        }
    }
}

impl<const PARTS: usize> Split<'_, PARTS> {
    /// `width` is a multiple of `N`.
    #[inline(always)]
    fn pairs<const N: usize>(self, width: usize) {
        for (index, pair) in self.floats.chunks_exact(2 * width).enumerate() {
            let (first, second) = pair.split_at(width);
            let chunks = first.as_chunks::<N>().0.iter().zip(second.as_chunks::<N>().0);
            for (chunk, (first, second)) in chunks.enumerate() {
                let (mut first, mut second) = (*first, *second);
                for numbers in self.numbers.chunks_exact_mut(self.floats.len()) {
                    let pairs = &mut numbers[2 * (index * width + chunk * N)..][..2 * N];
                    let (first, second) = (take_part(&mut first), take_part(&mut second));
                    for ((pair, first), second) in pairs.as_chunks_mut().0.iter_mut().zip(first).zip(second) {
                        *pair = [first, second];
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn tiles(self) {
        let steps = self.floats.len() / STEP;
        for (row, floats) in self.floats.chunks_exact(steps).enumerate() {
            for (tile, floats) in floats.as_chunks::<STEP>().0.iter().enumerate() {
                let mut floats = *floats;
                for numbers in self.numbers.chunks_exact_mut(self.floats.len()) {
                    numbers[(tile * STEP + row) * STEP..][..STEP].copy_from_slice(&take_part(&mut floats));
                }
            }
        }
    }
}

/// The nearest bfloat16 to each number, which is taken from it.
#[inline(always)]
fn take_part<const N: usize>(numbers: &mut [f32; N]) -> [u16; N] {
    let mut part = [0; N];
    for (part, number) in part.iter_mut().zip(numbers) {
        let bits = nearest(*number);
        // Of what is infinite or not a number, the first part is all.
        *number = if number.is_finite() { *number - f32::from_bits(bits << 16) } else { 0.0 };
        *part = bits as u16;
    }
    part
}

/// The bits of the nearest bfloat16; the one towards zero for finite numbers whose nearest would be infinite.
#[inline(always)]
fn nearest(number: f32) -> u32 {
    let bits = number.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
    let towards_zero = bits >> 16 | if number.is_nan() { 0x40 } else { 0 };
    if rounded & 0x7f80 == 0x7f80 || bits & 0x7f80_0000 == 0x7f80_0000 { towards_zero } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::take_part;

    fn parts(number: f32) -> [f32; 3] {
        let mut rest = [number];
        [(); 3].map(|()| f32::from_bits(u32::from(take_part(&mut rest)[0]) << 16))
    }

    #[test]
    fn three_parts_are_the_number() {
        let mut bits = 12_345u32;
        for _ in 0..100_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let number = f32::from_bits(bits);
            // The last part of smaller numbers is less than bfloat16 can hold.
            if number.is_finite() && number.abs() > 1e-30 {
                let [first, second, third] = parts(number);
                assert_eq!(first + (second + third), number, "{number:e}");
                assert!(second.abs() <= first.abs() / 128.0 && third.abs() <= first.abs() / 16_384.0);
            }
        }
        for number in [0.0, -0.0, 1.0, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY] {
            let [first, second, third] = parts(number);
            assert_eq!(first + (second + third), number);
        }
        assert!(parts(f32::from_bits(0x7f80_0001))[0].is_nan() && parts(f32::NAN)[0].is_nan());
    }
}
