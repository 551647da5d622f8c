//! What becomes of a tile that is summed: bias, what comes after the product, rounding.

use std::ops::Range;

use super::microkernel::MAX_COLUMNS;
use super::multiply::{Activations, After, Factor, Product};
use super::packed::Side;
use super::panels::Source;
use super::weight_panels::Stored;
use crate::activation::{Activation, Geglu};
use crate::cpu::{Float, Instructions, LANES, Pointwise, Work, convert_to_fresh, load_tail};

/// A tile that is summed, and where it goes.
pub(super) struct Finish<'a, E, T, A, O> {
    pub(super) product: &'a Product<'a, E, T, A, O>,
    pub(super) tile: &'a mut [f32],
    /// The other half's tile where [`After::Geglu`] wants it, else nothing.
    pub(super) gate: &'a mut [f32],
    pub(super) items: Range<usize>,
    pub(super) weight_panel: usize,
}

/// What comes after the bias. A trait and no closure: closures are not always inlined, and outside of the level's function each operation would
/// be a call.
trait Last: Copy {
    /// To sums whose results go to `place` in the output.
    fn apply(self, sums: &mut [f32], place: usize);
}

#[derive(Clone, Copy)]
struct Nothing;

impl Last for Nothing {
    #[inline(always)]
    fn apply(self, _: &mut [f32], _: usize) {}
}

impl Last for Activation {
    #[inline(always)]
    fn apply(self, sums: &mut [f32], _: usize) {
        self.apply(sums);
    }
}

impl<O: Float> Last for &[O] {
    #[inline(always)]
    fn apply(self, sums: &mut [f32], place: usize) {
        let addend = &self[place..place + sums.len()];
        sums.iter_mut().zip(addend).for_each(|(sum, addend)| *sum += addend.to_float());
    }
}

impl<E: Source<E>, T: Stored<E>, A: Activations<E>, O: Float> Work for Finish<'_, E, T, A, O> {
    type Output = ();

    #[inline(always)]
    fn run(self, instructions: impl Instructions) {
        // Asked once a tile: what a row has to be asked takes as long as its few vectors.
        match (self.product.factor.side, &self.product.after) {
            (Side::Right, After::Nothing) => self.write_items(Nothing, instructions),
            (Side::Right, After::Add(addend)) => self.write_items(*addend, instructions),
            (Side::Right, After::Activate(activation)) => self.write_items(*activation, instructions),
            (Side::Right, After::Geglu) => self.write_gated_items(instructions),
            (Side::Left, After::Nothing | After::Geglu) => self.write_features(Nothing, instructions),
            (Side::Left, After::Add(addend)) => self.write_features(*addend, instructions),
            (Side::Left, After::Activate(activation)) => self.write_features(*activation, instructions),
        }
    }
}

impl<E: Source<E>, T: Stored<E>, A: Activations<E>, O: Float> Finish<'_, E, T, A, O> {
    /// Rows of the tile are items.
    #[inline(always)]
    fn write_items(self, last: impl Last, instructions: impl Instructions) {
        let Self { product, tile, items, weight_panel, .. } = self;
        let Factor { kernel, bias, .. } = product.factor;
        let features = product.features(weight_panel);
        let bias = bias.map(|bias| &bias[features.clone()]);
        for (item, sums) in items.zip(tile.chunks_exact_mut(kernel.columns)) {
            let place = product.activations.place(features.start, item);
            // Most rows are whole ones of the widest tiles: of a length that the compiler knows, so that they need no loops.
            match sums[..features.len()].as_mut_array::<MAX_COLUMNS>() {
                Some(sums) => product.write(sums, bias, last, place, instructions),
                None => product.write(&mut sums[..features.len()], bias, last, place, instructions),
            }
        }
    }

    /// The same where the other half's sums are gates.
    #[inline(always)]
    fn write_gated_items(self, instructions: impl Instructions) {
        let Self { product, tile, gate, items, weight_panel } = self;
        let Factor { kernel, bias, .. } = product.factor;
        let features = product.features(weight_panel);
        let gates = (weight_panel + product.results()) * kernel.columns;
        let gate_bias = bias.map(|bias| &bias[gates..gates + kernel.columns]);
        let bias = bias.map(|bias| &bias[features.clone()]);
        let rows = tile.chunks_exact_mut(kernel.columns).zip(gate.chunks_exact_mut(kernel.columns));
        for (item, (sums, gate)) in items.zip(rows) {
            add_each(sums, bias);
            add_each(gate, gate_bias);
            apply_gate(sums, gate);
            product.write(sums, None, Nothing, product.activations.place(features.start, item), instructions);
        }
    }

    /// Rows of the tile are features.
    #[inline(always)]
    fn write_features(self, last: impl Last, instructions: impl Instructions) {
        let Self { product, tile, items, weight_panel, .. } = self;
        let Factor { kernel, bias, .. } = product.factor;
        let adjoin = product.activations.adjoin(&items);
        for (feature, sums) in product.features(weight_panel).zip(tile.chunks_exact_mut(kernel.columns)) {
            let sums = &mut sums[..items.len()];
            if let Some(bias) = bias {
                sums.iter_mut().for_each(|sum| *sum += bias[feature]);
            }
            if !adjoin {
                for (item, sum) in items.clone().zip(sums.chunks_exact_mut(1)) {
                    product.write(sum, None, last, product.activations.place(feature, item), instructions);
                }
                continue;
            }
            let place = product.activations.place(feature, items.start);
            match sums.as_mut_array::<MAX_COLUMNS>() {
                Some(sums) => product.write(sums, None, last, place, instructions),
                None => product.write(sums, None, last, place, instructions),
            }
        }
    }
}

impl<E: Source<E>, T: Stored<E>, A: Activations<E>, O: Float> Product<'_, E, T, A, O> {
    /// Rounds sums to where they go in the output, with their bias and what comes last.
    #[inline(always)]
    fn write(
        &self,
        sums: &mut [f32],
        bias: Option<&[f32]>,
        last: impl Last,
        place: usize,
        instructions: impl Instructions,
    ) {
        add_each(sums, bias);
        last.apply(sums, place);
        // SAFETY: `compute` says that these results are of this task alone.
        convert_to_fresh(sums, unsafe { self.output.part(place, sums.len()) }, instructions);
    }
}

#[inline(always)]
fn add_each(sums: &mut [f32], bias: Option<&[f32]>) {
    if let Some(bias) = bias {
        let bias = &bias[..sums.len()];
        sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
    }
}

/// `sums * gelu(gate)`
#[inline(always)]
fn apply_gate(sums: &mut [f32], gate: &[f32]) {
    let (chunks, tail) = sums.as_chunks_mut::<LANES>();
    let (gates, gate_tail) = gate.as_chunks::<LANES>();
    for (sums, gate) in chunks.iter_mut().zip(gates) {
        *sums = Geglu.apply([*sums, *gate]);
    }
    // Panels of lower levels are narrower than a chunk.
    if !tail.is_empty() {
        let result = Geglu.apply([load_tail(tail), load_tail(gate_tail)]);
        tail.copy_from_slice(&result[..tail.len()]);
    }
}
