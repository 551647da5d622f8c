//! Float32 by products of bfloat16: a float32 is the exact sum of three bfloat16, so six of the nine products of such parts, summed in float32,
//! are as accurate as float32, three nearly half its digits, one bfloat16.

use std::cell::RefCell;
use std::ops::Range;

use half::{bf16, f16};

use super::level::Level;
use super::multiply::Activations;
use super::panels::{AlignedBuffer, DEPTH, Element, Source};
use super::precision::Float32MatmulPrecision;
use super::split::{STEP, split};
use super::weight_panels::{Stored, depth_blocks};

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
unsafe impl<const PARTS: usize> Element for Parts<PARTS> {
    // A weight is split once for each block of items.
    const BLOCK: usize = 2 * <f32 as Element>::BLOCK;
    const PASS: usize = <f32 as Element>::PASS / 2;
}

impl<const PARTS: usize> Parts<PARTS> {
    /// The bfloat16 numbers of a panel.
    fn numbers(panel: &mut [Self]) -> &mut [u16] {
        // SAFETY: so many numbers of 2 bytes are there.
        unsafe { std::slice::from_raw_parts_mut(panel.as_mut_ptr().cast(), PARTS * panel.len()) }
    }
}

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
    /// Tiles of all 32 rows and 32 depths, row by row.
    Tiles,
}

impl Order {
    /// The one that a weight in panels of this width is split to.
    pub(super) fn of_panels(width: usize) -> Self {
        if width == 1 { Self::Tiles } else { Self::Pairs { width } }
    }
}

/// In how many parts products of this depth multiply float32 at a level; `None` where they do not.
pub(super) fn parts_at(level: Level, precision: Float32MatmulPrecision, depth: usize) -> Option<usize> {
    // Tests have the levels of other processors.
    if depth == 0 || !depth.is_multiple_of(STEP) || !Level::Avx512Bf16.is_available() {
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
                let panel = &mut panel[start..start + width * block.len()];
                split(floats, self.order, PARTS, Parts::numbers(panel));
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

/// What a weight is stored as that is multiplied in parts.
pub(super) trait InFewParts:
    Stored<f32> + Stored<Parts<1>> + Stored<Parts<2>> + Stored<Parts<3>>
{
    /// Of how many bfloat16 each number is the exact sum.
    const PARTS: usize;
}

impl InFewParts for f32 {
    const PARTS: usize = 3;
}

impl InFewParts for f16 {
    const PARTS: usize = 2;
}

impl InFewParts for bf16 {
    const PARTS: usize = 1;
}

macro_rules! stored_in_parts {
    ($($type:ty),*) => {
        $(impl<const PARTS: usize> Stored<Parts<PARTS>> for $type {
            /// Panels of one row become tiles.
            fn as_factor<'a>(
                level: Level,
                panel: &'a [Self],
                width: usize,
                room: &'a mut AlignedBuffer,
            ) -> &'a [Parts<PARTS>] {
                let parts = &mut room.reserve::<Parts<PARTS>>(panel.len())[..panel.len()];
                FLOATS.with_borrow_mut(|floats| {
                    let floats = <Self as Stored<f32>>::as_factor(level, panel, width, floats);
                    split(floats, Order::of_panels(width), PARTS.min(Self::PARTS), Parts::numbers(parts));
                });
                parts
            }
        })*
    };
}

stored_in_parts!(f32, f16, bf16);
