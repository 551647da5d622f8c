//! The products of attention by tiles (AMX), 32 keys or features by 32 queries at a time. The left factors lie in rows, each as long as all that is
//! summed over: keys `(keys, depth)`, values `(dim, units of keys)`.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::arithmetic::{Arithmetic, Pairs};
use super::step::Products;
use super::vector::Vector;
use crate::product::amx::{Block, COLUMNS, MultiplyTiles, PAIRS, ROWS};

/// Products by what multiplies tiles.
pub(super) struct Tiles<M>(PhantomData<M>);

impl<M: MultiplyTiles> Products for Tiles<M> {
    type Arithmetic = Pairs;
    const ROWS: usize = ROWS;
    const DEPTH: usize = PAIRS;

    #[inline(always)]
    unsafe fn scores(keys: usize, depth: usize, key: *const f32, query: *const f32, scores: *mut f32) {
        for first in (0..keys).step_by(ROWS) {
            // SAFETY: 32 of the keys that the caller promises, rows of `depth` units.
            unsafe {
                let (key, scores) = (key.add(first * depth), scores.add(first * COLUMNS));
                M::multiply(depth / PAIRS, key.cast(), depth * size_of::<f32>(), query.cast(), scores);
            }
        }
    }

    #[inline(always)]
    unsafe fn add_values(
        dim: usize,
        units: usize,
        value: *const f32,
        weights: *const f32,
        output: *mut f32,
        corrections: [<Pairs as Arithmetic>::Vector; 2],
    ) {
        type Numbers = <Pairs as Arithmetic>::Vector;
        let mut block = MaybeUninit::<Block>::uninit();
        let block = block.as_mut_ptr().cast::<f32>();
        for first in (0..dim).step_by(ROWS) {
            // SAFETY: 32 of the features that the caller promises, rows of `units` units; the block is ours, and written before it is read.
            unsafe {
                let (value, output) = (value.add(first * units), output.add(first * COLUMNS));
                M::multiply(units / PAIRS, value.cast(), units * size_of::<f32>(), weights.cast(), block);
                for row in 0..ROWS {
                    for (half, corrections) in corrections.into_iter().enumerate() {
                        let place = row * COLUMNS + half * Numbers::LANES;
                        let (sum, output) = (Numbers::load(block.add(place)), output.add(place));
                        Numbers::load(output).mul_add(corrections, sum).store(output);
                    }
                }
            }
        }
    }
}
