//! Functions of each number for itself.

use std::mem::MaybeUninit;

use candle_core::Result;
use rayon::prelude::*;

use super::{Chunk, Float, Instructions, LANES, TASK, Work, fill, load_tail, run_at, store, store_tail};
use crate::Level;

/// A function of one number, on a chunk of them; `apply` must be `#[inline(always)]`.
pub(crate) trait Pointwise<const INPUTS: usize>: Copy + Sync {
    fn apply(self, inputs: [Chunk; INPUTS]) -> Chunk;
}

/// `function` of each number.
pub(crate) fn map<T: Float>(level: Level, x: &[T], function: impl Pointwise<1>) -> Result<Vec<T>> {
    let write = |output: &mut [MaybeUninit<T>]| {
        let tasks = output.par_chunks_mut(TASK).zip(x.par_chunks(TASK));
        tasks.for_each(|(output, x)| run_at(level, OnPart { inputs: [x], output, function }));
    };
    // SAFETY: the tasks are the whole output, as the input has its length, and `OnPart` writes as many numbers as it is given.
    unsafe { fill(x.len(), write) }
}

/// `function` of each pair of numbers, of which there are equally many.
pub(crate) fn map_two<T: Float>(
    level: Level,
    [x, y]: [&[T]; 2],
    function: impl Pointwise<2>,
) -> Result<Vec<T>> {
    let write = |output: &mut [MaybeUninit<T>]| {
        let tasks = output.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).zip(y.par_chunks(TASK));
        tasks.for_each(|((output, x), y)| run_at(level, OnPart { inputs: [x, y], output, function }));
    };
    assert_eq!(x.len(), y.len());
    // SAFETY: the tasks are the whole output, as the inputs have its length, and `OnPart` writes as many numbers as it is given.
    unsafe { fill(x.len(), write) }
}

/// [`Pointwise`] on numbers that lie beside each other. All slices have the same length.
pub(crate) struct OnPart<'a, T, F, const INPUTS: usize> {
    pub(crate) inputs: [&'a [T]; INPUTS],
    pub(crate) output: &'a mut [MaybeUninit<T>],
    pub(crate) function: F,
}

impl<T: Float, F: Pointwise<INPUTS>, const INPUTS: usize> Work for OnPart<'_, T, F, INPUTS> {
    type Output = ();

    #[inline(always)]
    fn run(self, instructions: impl Instructions) {
        let Self { inputs, output, function } = self;
        let inputs = inputs.map(|input| input.as_chunks::<LANES>());
        let (output, output_tail) = output.as_chunks_mut::<LANES>();
        for (index, output) in output.iter_mut().enumerate() {
            // Not `array::from_fn`: its closure is compiled for no level.
            let mut chunks = [[0.0; LANES]; INPUTS];
            for input in 0..INPUTS {
                chunks[input] = T::load(&inputs[input].0[index], instructions);
            }
            store(function.apply(chunks), output, instructions);
        }
        if !output_tail.is_empty() {
            let mut chunks = [[0.0; LANES]; INPUTS];
            for input in 0..INPUTS {
                chunks[input] = load_tail(inputs[input].1);
            }
            store_tail(function.apply(chunks), output_tail);
        }
    }
}
