use std::cell::RefCell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::finish::Finish;
use super::microkernel::{MatrixRows, Microkernel};
use super::packed::Side;
use super::panels::{AlignedBuffer, Element, Source};
use super::weight_panels::{Stored, WeightPanels, depth_blocks};
use crate::activation::Activation;
use crate::cpu::{CACHE_LINE, Float, prefetch, run_at};

/// A task that takes several passes has at most so many features: its sums stay in the second cache too.
const MOST_FEATURES: usize = 512;
/// A task has at least so many panels of the weight, so that packing its items is little beside their products; half as many where the threads would have
/// unequal numbers of tasks else.
const MIN_WEIGHT_PANELS: usize = 8;
/// So many tasks for each thread, so that none waits long for the others.
pub(super) const TASKS_PER_THREAD: usize = 4;
/// Below so many multiplications the threads are not worth waking.
const MIN_PARALLEL: usize = 1 << 17;

/// What a weight is multiplied with: items (the rows of a linear layer's input, the pixels of a convolution's output), each with as many
/// numbers as the weight is deep, and where their results go.
pub(super) trait Activations<E: Element>: Sync {
    /// What the numbers are before they are packed.
    type Number: Source<E>;

    fn items(&self) -> usize;

    /// These steps of as many items as a panel has, where they can be multiplied as they lie in memory: asked where the weight is the right
    /// factor.
    fn rows(&self, _items: Range<usize>, _steps: Range<usize>) -> Option<MatrixRows<'_, Self::Number>> {
        None
    }

    /// Writes these steps of these items: the `k`-th of the `i`-th to `k * width + i`, zeros for those items that a
    /// panel of `width` lacks.
    fn pack(&self, items: Range<usize>, steps: Range<usize>, width: usize, panel: &mut [E]);

    /// Where the result of a feature for an item goes in the output.
    fn place(&self, feature: usize, item: usize) -> usize;

    /// Whether the results of these items for one feature lie beside each other in the output. Asked where the weight is the left factor; else
    /// the results of an item for all features do.
    fn adjoin(&self, items: &Range<usize>) -> bool;
}

/// A weight, and what multiplies it.
pub(super) struct Factor<'a, E, T> {
    pub(super) kernel: &'a Microkernel<E>,
    pub(super) side: Side,
    pub(super) panels: &'a WeightPanels<T>,
    /// A number for each feature.
    pub(super) bias: Option<&'a [f32]>,
}

impl<E: Source<E>, T: Stored<E>> Factor<'_, E, T> {
    /// How many features a tile has.
    fn weight_width(&self) -> usize {
        match self.side {
            Side::Left => self.kernel.rows,
            Side::Right => self.kernel.columns,
        }
    }

    /// Whether the left factor is made of single rows instead of panels.
    fn left_is_rows(&self) -> bool {
        self.kernel.left_width < self.kernel.rows
    }
}

/// What becomes of the sums, with their bias, before they are rounded.
#[derive(Clone, Copy)]
pub(super) enum After<'a, A: ?Sized> {
    Nothing,
    /// The number at the same place of what has the output's shape is added.
    Add(&'a A),
    /// A function of each number.
    Activate(Activation),
    /// Half as many results as the weight has features: the first half's times GELU of the second half's. The weight is the right factor, and
    /// each half of it a whole number of panels.
    Geglu,
}

impl<A: ?Sized> After<'_, A> {
    /// How many features of the weight make one result.
    pub(super) fn halves(&self) -> usize {
        match self {
            Self::Nothing | Self::Add(_) | Self::Activate(_) => 1,
            Self::Geglu => 2,
        }
    }
}

/// Writes `weight * activations + bias` to all of `output`, or what comes [`After`] it. Each result is summed in float32 in an order that is always
/// the same, and rounded once.
pub(super) fn multiply<E: Source<E>, T: Stored<E>, O: Float>(
    factor: &Factor<'_, E, T>,
    activations: &impl Activations<E>,
    after: After<'_, [O]>,
    output: &mut [MaybeUninit<O>],
) {
    let width = match factor.side {
        Side::Left => factor.kernel.columns,
        Side::Right => factor.kernel.rows,
    };
    let weight_width = factor.weight_width();
    let (items, features) = (activations.items(), factor.panels.features());
    let halves = after.halves();
    match after {
        After::Nothing | After::Activate(_) => {}
        After::Add(addend) => assert_eq!(addend.len(), output.len()),
        After::Geglu => {
            assert!(factor.side == Side::Right && features.is_multiple_of(2 * weight_width))
        }
    }
    assert_eq!(output.len(), items * features / halves);
    assert!(factor.bias.is_none_or(|bias| bias.len() == features));
    let output = Output { start: output.as_mut_ptr(), length: output.len(), borrow: PhantomData };
    let product = Product { factor, activations, after, output, width, halves };

    let (panels, weight_panels) = (items.div_ceil(width), (features / halves).div_ceil(weight_width));
    if panels == 0 || weight_panels == 0 {
        return;
    }
    let steps = factor.panels.steps();
    let (block, most_weight_panels) = (E::BLOCK / width, (MOST_FEATURES / halves / weight_width).max(1));
    let fewest_parts = if steps > E::PASS { weight_panels.div_ceil(most_weight_panels) } else { 1 };
    // The nearest whole number, for each block has the whole weight pass by: half as many items again still fit.
    let blocks = ((panels + block / 2) / block).max(1);
    let is_small = items.saturating_mul(features).saturating_mul(steps) < MIN_PARALLEL;
    let parts = match is_small {
        true => fewest_parts,
        false => parts_of_weight(blocks, weight_panels, fewest_parts),
    };
    let compute = |task: usize| {
        let (block, part) = (task / parts, task % parts);
        product.compute(share(panels, blocks, block), share(weight_panels, parts, part));
    };
    if is_small {
        (0..blocks * parts).for_each(compute);
    } else {
        (0..blocks * parts).into_par_iter().with_max_len(1).for_each(compute);
    }
}

/// In how many parts the panels of a weight are shared out, for each of so many blocks of items.
fn parts_of_weight(blocks: usize, weight_panels: usize, fewest: usize) -> usize {
    let threads = rayon::current_num_threads();
    let wanted_tasks = TASKS_PER_THREAD * threads;
    let parts = wanted_tasks.div_ceil(blocks).min(weight_panels / MIN_WEIGHT_PANELS).max(fewest);
    if blocks * parts >= wanted_tasks {
        return parts;
    }
    // Of a few tasks each thread takes as many, if some parts more make it so.
    let most = parts.max(2 * weight_panels / MIN_WEIGHT_PANELS);
    (parts..=most).find(|parts| (blocks * parts).is_multiple_of(threads)).unwrap_or(parts)
}

/// The `index`-th of `parts` shares of `0..count` that differ by at most one.
pub(super) fn share(count: usize, parts: usize, index: usize) -> Range<usize> {
    count * index / parts..count * (index + 1) / parts
}

pub(super) struct Product<'a, E, T, A, O> {
    pub(super) factor: &'a Factor<'a, E, T>,
    pub(super) activations: &'a A,
    pub(super) after: After<'a, [O]>,
    pub(super) output: Output<'a, O>,
    /// How many items a panel of the activations has.
    width: usize,
    /// How many panels of the weight make one of results.
    halves: usize,
}

/// The output, of which each task writes the results of its own items and features.
pub(super) struct Output<'a, O> {
    start: *mut MaybeUninit<O>,
    length: usize,
    borrow: PhantomData<&'a mut [MaybeUninit<O>]>,
}

// SAFETY: a pointer to numbers that live as long as the borrow. Those who write through it from several threads must see to it that
// no two write to one place; `Product::compute` says how.
unsafe impl<O: Send> Sync for Output<'_, O> {}

/// What a thread computes with. Fresh buffers of this size would cost a page fault for each 4 kB, with each task.
#[derive(Default)]
struct Room {
    activations: AlignedBuffer,
    weight: AlignedBuffer,
    sums: AlignedBuffer,
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

impl<E: Source<E>, T: Stored<E>, A: Activations<E>, O: Float> Product<'_, E, T, A, O> {
    /// Computes the results of some panels of items for some panels of features. Tasks that run at the same time share none of these results.
    fn compute(&self, panels: Range<usize>, weight_panels: Range<usize>) {
        let (kernel, weight) = (self.factor.kernel, self.factor.panels);
        let (steps, tile_size) = (weight.steps(), kernel.rows * kernel.columns);
        let _configured = kernel.configured();
        ROOM.with_borrow_mut(|Room { activations, weight: converted, sums }| {
            let packed = activations.reserve::<E>(panels.len() * self.width * E::PASS.min(steps));
            // The sums of one panel of results, or where they wait for the next pass of all.
            let half_size = panels.len() * tile_size;
            let row_size = self.halves * half_size;
            let rows = if steps > E::PASS { weight_panels.len() } else { 1 };
            let sums = &mut sums.reserve::<f32>(rows * row_size)[..rows * row_size];
            sums.fill(0.0);
            for start in (0..steps.max(1)).step_by(E::PASS) {
                let pass = start..steps.min(start + E::PASS);
                let length = self.width * pass.len();
                for (index, panel) in panels.clone().enumerate() {
                    if self.rows(panel, &pass).is_none() {
                        self.pack(panel, &pass, &mut packed[index * length..][..length]);
                    }
                }
                for (row, weight_panel) in weight_panels.clone().enumerate() {
                    let sums = &mut sums[row % rows * row_size..][..row_size];
                    for (half, sums) in sums.chunks_exact_mut(half_size).enumerate() {
                        let weight_panel = weight_panel + half * self.results();
                        for block in depth_blocks(pass.clone()) {
                            let count = self.factor.weight_width() / weight.width();
                            let panel = weight.panels(weight_panel * count, count, &block);
                            let weight = T::as_factor(kernel.level, panel, weight.width(), converted);
                            for (index, tile) in sums.chunks_exact_mut(tile_size).enumerate() {
                                if block.end == steps && half == 0 {
                                    self.fetch_addend(panels.start + index, weight_panel);
                                }
                                if let Some(rows) = self.rows(panels.start + index, &block) {
                                    kernel.add_product_of_rows(rows, weight, tile);
                                    continue;
                                }
                                let packed = &packed[index * length..][..length];
                                let whole = block.start - start..block.end - start;
                                let part = whole.start * self.width..whole.end * self.width;
                                match (self.factor.side, self.factor.left_is_rows()) {
                                    (Side::Left, false) => {
                                        kernel.add_product(weight, &packed[part], tile);
                                    }
                                    (Side::Left, true) => {
                                        let rows = MatrixRows::new(weight, block.len());
                                        kernel.add_product_of_rows(rows, &packed[part], tile);
                                    }
                                    (Side::Right, false) => {
                                        kernel.add_product(&packed[part], weight, tile);
                                    }
                                    (Side::Right, true) => {
                                        let rows = MatrixRows::new(&packed[whole.start..], pass.len());
                                        kernel.add_product_of_rows(rows, weight, tile);
                                    }
                                }
                            }
                        }
                    }
                    if pass.end == steps {
                        let (first, second) = sums.split_at_mut(half_size);
                        for (index, panel) in panels.clone().enumerate() {
                            let tile = index * tile_size..(index + 1) * tile_size;
                            let gate = second.get_mut(tile.clone()).unwrap_or_default();
                            self.finish(&mut first[tile], gate, panel, weight_panel);
                        }
                        sums.fill(0.0);
                    }
                }
            }
        });
    }

    /// Packs these steps of a panel of items: as rows where they are the left factor and that is made of rows.
    fn pack(&self, panel: usize, steps: &Range<usize>, packed: &mut [E]) {
        let items = self.items(panel);
        if self.factor.side == Side::Left || !self.factor.left_is_rows() {
            return self.activations.pack(items, steps.clone(), self.width, packed);
        }
        let mut rows = packed.chunks_exact_mut(steps.len().max(1));
        items
            .zip(&mut rows)
            .for_each(|(item, row)| self.activations.pack(item..item + 1, steps.clone(), 1, row));
        rows.for_each(|row| row.fill(E::default()));
    }

    /// A whole panel's items where they need no packing.
    fn rows(&self, panel: usize, steps: &Range<usize>) -> Option<MatrixRows<'_, A::Number>> {
        let items = self.items(panel);
        let is_whole = self.factor.side == Side::Right && items.len() == self.width;
        if is_whole { self.activations.rows(items, steps.clone()) } else { None }
    }

    fn items(&self, panel: usize) -> Range<usize> {
        panel * self.width..self.activations.items().min((panel + 1) * self.width)
    }

    pub(super) fn features(&self, weight_panel: usize) -> Range<usize> {
        let width = self.factor.weight_width();
        weight_panel * width..self.factor.panels.features().min((weight_panel + 1) * width)
    }

    /// How many panels of results there are.
    pub(super) fn results(&self) -> usize {
        (self.factor.panels.features() / self.halves).div_ceil(self.factor.weight_width())
    }

    /// Fetches what will be added to a tile: its rows are too far apart for the processor to know where the next one is.
    fn fetch_addend(&self, panel: usize, weight_panel: usize) {
        let After::Add(addend) = self.after else { return };
        let (items, features) = (self.items(panel), self.features(weight_panel));
        let (rows, length) = match self.factor.side {
            Side::Right => (items.len(), features.len()),
            Side::Left => (features.len(), items.len()),
        };
        for row in 0..rows {
            let first = match self.factor.side {
                Side::Right => self.activations.place(features.start, items.start + row),
                Side::Left => self.activations.place(features.start + row, items.start),
            };
            for number in (first..first + length).step_by(CACHE_LINE / size_of::<O>()) {
                prefetch(addend, number);
            }
        }
    }

    /// Completes a tile of sums and writes it to the output. The other half's tile is there where [`After::Geglu`] wants it.
    fn finish(&self, tile: &mut [f32], gate: &mut [f32], panel: usize, weight_panel: usize) {
        let finish = Finish { product: self, tile, gate, items: self.items(panel), weight_panel };
        run_at(self.factor.kernel.level, finish);
    }
}

impl<O> Output<'_, O> {
    /// # Safety
    /// Nothing else uses this part as long as it is borrowed.
    #[expect(clippy::mut_from_ref, reason = "the parts that are borrowed at one time are disjoint")]
    pub(super) unsafe fn part(&self, place: usize, length: usize) -> &mut [MaybeUninit<O>] {
        assert!(place + length <= self.length);
        // SAFETY: within the output by the line above; disjoint from other parts by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(place), length) }
    }
}
