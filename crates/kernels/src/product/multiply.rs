use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::microkernel::MAX_TILE;
use super::packed::{PackedWeight, Side, depth_blocks};
use super::panels::{AlignedBuffer, DEPTH};

/// How many items (rows or pixels) a task takes at a time, and how much of their depth: so many numbers stay in the second cache while
/// the weight passes by. Deep passes are better than many items: with each pass the results are read and written once more.
const BLOCK: usize = 128;
const PASS: usize = 4 * DEPTH;
/// A task has at least so many panels of the weight, so that packing its items is little beside their products.
const MIN_WEIGHT_PANELS: usize = 8;
/// So many tasks for each thread, so that none waits long for the others.
const TASKS_PER_THREAD: usize = 4;
/// Below so many multiplications the threads are not worth waking.
const MIN_PARALLEL: usize = 1 << 17;

/// What a weight is multiplied with: items (the rows of a linear layer's input, the pixels of a convolution's output), each with as many
/// numbers as the weight is deep, and where their results go.
pub(super) trait Activations: Sync {
    fn items(&self) -> usize;

    /// Writes the numbers of these items at these depths: the `k`-th of the `i`-th to `k * width + i`, zeros for those items that a
    /// panel of `width` lacks.
    fn pack(&self, items: Range<usize>, depths: Range<usize>, width: usize, panel: &mut [f32]);

    /// Where the result of a feature for an item goes in the output.
    fn place(&self, feature: usize, item: usize) -> usize;

    /// How far apart rows of results are in the output: features where the weight is the left factor, else items.
    fn stride(&self) -> usize;

    /// Whether the results of these items lie in the output as those of a tile do: beside each other where the weight is the left factor,
    /// else a `stride` apart.
    fn adjoin(&self, items: &Range<usize>) -> bool;
}

/// Writes `weight * activations + bias` to `output`. Each result is summed in an order that is always the same.
pub(super) fn multiply(
    weight: &PackedWeight,
    activations: &impl Activations,
    bias: Option<&[f32]>,
    output: &mut [f32],
) {
    let kernel = weight.kernel();
    let width = match weight.side() {
        Side::Left => kernel.columns,
        Side::Right => kernel.rows,
    };
    let (items, features) = (activations.items(), weight.features());
    assert_eq!(output.len(), items * features);
    assert!(bias.is_none_or(|bias| bias.len() == features));
    let output = Output { start: output.as_mut_ptr(), length: output.len(), borrow: PhantomData };
    let product = Product { weight, activations, bias, output, width };

    let (panels, weight_panels) = (items.div_ceil(width), features.div_ceil(weight.panel_width()));
    if panels == 0 || weight_panels == 0 {
        return;
    }
    if items.saturating_mul(features).saturating_mul(weight.depth()) < MIN_PARALLEL {
        for start in (0..panels).step_by(BLOCK / width) {
            product.compute(start..panels.min(start + BLOCK / width), 0..weight_panels);
        }
        return;
    }
    let blocks = panels.div_ceil(BLOCK / width);
    let wanted_tasks = TASKS_PER_THREAD * rayon::current_num_threads();
    let parts = wanted_tasks.div_ceil(blocks).min(weight_panels / MIN_WEIGHT_PANELS).max(1);
    (0..blocks * parts).into_par_iter().with_max_len(1).for_each(|task| {
        let (block, part) = (task / parts, task % parts);
        product.compute(share(panels, blocks, block), share(weight_panels, parts, part));
    });
}

/// The `index`-th of `parts` shares of `0..count` that differ by at most one.
fn share(count: usize, parts: usize, index: usize) -> Range<usize> {
    count * index / parts..count * (index + 1) / parts
}

struct Product<'a, A> {
    weight: &'a PackedWeight,
    activations: &'a A,
    bias: Option<&'a [f32]>,
    output: Output<'a>,
    /// How many items a panel of the activations has.
    width: usize,
}

/// The output, of which each task writes the results of its own items and features.
struct Output<'a> {
    start: *mut f32,
    length: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a pointer to floats that live as long as the borrow. Those who write through it from several threads must see to it that
// no two write to one place; `Product::compute` says how.
unsafe impl Sync for Output<'_> {}

impl<A: Activations> Product<'_, A> {
    /// Computes the results of some panels of items for some panels of features. Tasks that run at the same time share none of these results.
    fn compute(&self, panels: Range<usize>, weight_panels: Range<usize>) {
        thread_local! {
            // A fresh buffer of this size would cost a page fault for each 4 kB, with each task.
            static BUFFER: RefCell<AlignedBuffer> = RefCell::default();
        }
        self.write_bias(&panels, &weight_panels);
        BUFFER.with_borrow_mut(|buffer| {
            let depth = self.weight.depth();
            buffer.reserve(panels.len() * self.width * PASS.min(depth));
            let buffer = buffer.values_mut();
            for start in (0..depth).step_by(PASS) {
                let pass = start..depth.min(start + PASS);
                let length = self.width * pass.len();
                for (panel, packed) in panels.clone().zip(buffer.chunks_exact_mut(length)) {
                    self.activations.pack(self.items(panel), pass.clone(), self.width, packed);
                }
                for weight_panel in weight_panels.clone() {
                    for depths in depth_blocks(pass.clone()) {
                        let weight = self.weight.panel(weight_panel, &depths);
                        let part = (depths.start - start) * self.width..(depths.end - start) * self.width;
                        for (panel, packed) in panels.clone().zip(buffer.chunks_exact(length)) {
                            self.add_tile(weight, weight_panel, &packed[part.clone()], panel);
                        }
                    }
                }
            }
        });
    }

    fn items(&self, panel: usize) -> Range<usize> {
        panel * self.width..self.activations.items().min((panel + 1) * self.width)
    }

    fn features(&self, weight_panel: usize) -> Range<usize> {
        let width = self.weight.panel_width();
        weight_panel * width..self.weight.features().min((weight_panel + 1) * width)
    }

    /// The output holds zeros to begin with.
    fn write_bias(&self, panels: &Range<usize>, weight_panels: &Range<usize>) {
        let Some(bias) = self.bias else { return };
        for panel in panels.clone() {
            for weight_panel in weight_panels.clone() {
                let features = self.features(weight_panel);
                self.each_run(self.items(panel), features.clone(), |run| {
                    // SAFETY: `compute` says that these results are of this task alone.
                    let results = unsafe { self.output.part(run.place, run.length) };
                    match self.weight.side() {
                        Side::Left => results.fill(bias[features.start + run.row]),
                        Side::Right => results.copy_from_slice(&bias[features.clone()]),
                    }
                });
            }
        }
    }

    fn add_tile(&self, weight: &[f32], weight_panel: usize, packed: &[f32], panel: usize) {
        let kernel = self.weight.kernel();
        let (items, features) = (self.items(panel), self.features(weight_panel));
        let (left, right) = match self.weight.side() {
            Side::Left => (weight, packed),
            Side::Right => (packed, weight),
        };
        let is_whole = items.len() == self.width && features.len() == self.weight.panel_width();
        if is_whole && self.activations.adjoin(&items) {
            let place = self.activations.place(features.start, items.start);
            let stride = self.activations.stride();
            assert!(place + (kernel.rows - 1) * stride + kernel.columns <= self.output.length);
            // SAFETY: the tile lies within the output by the line above, and its results are of this task alone.
            unsafe { kernel.add_product(left, right, self.output.start.add(place), stride) };
            return;
        }
        let mut tile = [0f32; MAX_TILE];
        self.each_run(items.clone(), features.clone(), |run| {
            // SAFETY: `compute` says that these results are of this task alone.
            let results = unsafe { self.output.part(run.place, run.length) };
            tile[run.row * kernel.columns + run.column..][..run.length].copy_from_slice(results);
        });
        // SAFETY: the tile has room for any kernel's rows and columns, and is ours.
        unsafe { kernel.add_product(left, right, tile.as_mut_ptr(), kernel.columns) };
        self.each_run(items, features, |run| {
            // SAFETY: as above.
            let results = unsafe { self.output.part(run.place, run.length) };
            results.copy_from_slice(&tile[run.row * kernel.columns + run.column..][..run.length]);
        });
    }

    /// Calls `function` with each run of results of a tile that lie beside each other in the output.
    fn each_run(&self, items: Range<usize>, features: Range<usize>, mut function: impl FnMut(Run)) {
        let place = |feature, item| self.activations.place(feature, item);
        match self.weight.side() {
            Side::Right => {
                for (row, item) in items.enumerate() {
                    function(Run {
                        row,
                        column: 0,
                        place: place(features.start, item),
                        length: features.len(),
                    });
                }
            }
            Side::Left => {
                let length = if self.activations.adjoin(&items) { items.len() } else { 1 };
                for (row, feature) in features.enumerate() {
                    for column in (0..items.len()).step_by(length) {
                        function(Run { row, column, place: place(feature, items.start + column), length });
                    }
                }
            }
        }
    }
}

/// Results of one row of a tile, from a column on, and their place in the output.
struct Run {
    row: usize,
    column: usize,
    place: usize,
    length: usize,
}

impl Output<'_> {
    /// # Safety
    /// Nothing else uses this part as long as it is borrowed.
    #[expect(clippy::mut_from_ref, reason = "the parts that are borrowed at one time are disjoint")]
    unsafe fn part(&self, place: usize, length: usize) -> &mut [f32] {
        assert!(place + length <= self.length);
        // SAFETY: within the output by the line above; disjoint from other parts by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(place), length) }
    }
}
