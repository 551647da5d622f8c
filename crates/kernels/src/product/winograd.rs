//! 3x3 convolutions of stride 1 by Winograd's minimal filtering: a quarter of the products, of transformed weights with transformed tiles.
//! The crate's README says where that is used, and how exact it is.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::microkernel::Microkernel;
use super::multiply::{TASKS_PER_THREAD, share};
use super::panels::{AlignedBuffer, DEPTH};
use super::weight_panels::{AsFloats, WeightPanels};
use super::winograd_transforms::{Planes, Run, Transforms};

const TAPS: usize = 9;
/// The transformed tiles of a task take about so many bytes, which wait in the last cache while blocks of the weight pass by, and are at most so
/// many panels.
const INPUT_BYTES: usize = 3 << 20;
const MAX_PANELS: usize = 8;
/// So many features are transformed at a time, for as many channels as a panel is deep.
const FEATURES: usize = 48;
/// A task has at least so many features, so that transforming its tiles is little beside their products.
const MIN_FEATURES: usize = 96;
/// A vector may be longer than a panel is wide: it takes so many numbers of the next tap with it at most.
const SLACK: usize = 16;
/// The room for a point's numbers is this much more than a multiple of 4 kB, so that the same place of all points is not in the same set of
/// the first cache.
const POINT_PADDING: usize = 32;

/// A convolution of pictures `(batch, channels, height, width)` with a weight of 3x3, stride 1 and padding 1.
pub(super) struct Winograd<'a, T> {
    pub(super) kernel: &'a Microkernel,
    pub(super) weight: &'a WeightPanels<T>,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) values: &'a [f32],
    pub(super) batch: usize,
    pub(super) planes: Planes,
    pub(super) transforms: Transforms,
}

/// What a task transforms and multiplies, kept for the next one: fresh memory costs a page fault for each 4 kB.
#[derive(Default)]
struct Buffers {
    /// For each panel of tiles and each point, `channels x tiles`.
    input: AlignedBuffer,
    /// For each point and each panel of features, `channels x features`.
    weight: AlignedBuffer,
    /// The plain numbers of a panel of features, from which those are transformed.
    taps: AlignedBuffer,
    /// For each panel of tiles, panel of features, and point, `features x tiles`.
    products: AlignedBuffer,
}

/// The output, of which each task writes the features and tiles that are its own.
#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: a pointer to floats that live longer than the tasks; no two tasks write to one place.
unsafe impl Sync for Output {}

impl Output {
    fn start(&self) -> *mut f32 {
        self.0
    }
}

impl<T: AsFloats> Winograd<'_, T> {
    /// `(batch, features, height, width)`.
    pub(super) fn compute(&self) -> Vec<f32> {
        let Planes { height, width, .. } = self.planes;
        let length = self.batch * self.weight.features() * height * width;
        let mut output = Vec::with_capacity(length);
        let start = Output(output.as_mut_ptr());
        let kernel = self.kernel;
        let panels = self.tiles().div_ceil(kernel.columns);
        let weight_panels = self.weight.features().div_ceil(kernel.rows);
        let bytes_per_panel = self.points() * self.planes.channels * kernel.columns * size_of::<f32>();
        let blocks = panels.div_ceil((INPUT_BYTES / bytes_per_panel.max(1)).clamp(1, MAX_PANELS));
        let wanted_tasks = TASKS_PER_THREAD * rayon::current_num_threads();
        let parts =
            wanted_tasks.div_ceil(blocks.max(1)).min(weight_panels * kernel.rows / MIN_FEATURES).max(1);
        (0..blocks * parts).into_par_iter().with_max_len(1).for_each(|task| {
            let (block, part) = (task / parts, task % parts);
            self.compute_part(share(panels, blocks, block), share(weight_panels, parts, part), start);
        });
        // SAFETY: there is room for so many, and the tasks have written all tiles of all features.
        unsafe { output.set_len(length) };
        output
    }

    fn points(&self) -> usize {
        (self.transforms.outputs + 2).pow(2)
    }

    /// Tiles in a row, and rows of tiles, of one picture.
    fn tiles_across(&self) -> (usize, usize) {
        let outputs = self.transforms.outputs;
        (self.planes.width.div_ceil(outputs), self.planes.height.div_ceil(outputs))
    }

    fn tiles(&self) -> usize {
        let (across, down) = self.tiles_across();
        self.batch * across * down
    }

    fn runs(&self, panel: usize) -> Vec<Run> {
        let columns = self.kernel.columns;
        let (across, down) = self.tiles_across();
        let outputs = self.transforms.outputs;
        let (first, end) = (panel * columns, self.tiles().min((panel + 1) * columns));
        let mut runs = Vec::new();
        let mut tile = first;
        while tile < end {
            let (row, column) = (tile / across, tile % across);
            let tiles = (across - column).min(end - tile);
            runs.push(Run {
                start: tile - first,
                tiles,
                picture: row / down,
                y: row % down * outputs,
                x: column * outputs,
            });
            tile += tiles;
        }
        runs
    }

    fn compute_part(&self, panels: Range<usize>, weight_panels: Range<usize>, output: Output) {
        thread_local! {
            static BUFFERS: RefCell<Buffers> = RefCell::default();
        }
        let runs: Vec<_> = panels.map(|panel| self.runs(panel)).collect();
        BUFFERS.with_borrow_mut(|buffers| {
            self.transform_input(&runs, &mut buffers.input);
            let step = (FEATURES / self.kernel.rows).max(1);
            for start in weight_panels.clone().step_by(step) {
                let weight_panels = start..weight_panels.end.min(start + step);
                self.multiply(runs.len(), weight_panels.clone(), buffers);
                self.transform_output(&runs, weight_panels, &buffers.products, output);
            }
        });
    }

    /// How far apart the points of a panel of tiles are.
    fn input_stride(&self) -> usize {
        point_stride(self.planes.channels * self.kernel.columns)
    }

    fn transform_input(&self, runs: &[Vec<Run>], input: &mut AlignedBuffer) {
        let stride = self.input_stride();
        let points = input.reserve::<f32>(runs.len() * self.points() * stride);
        for (runs, points) in runs.iter().zip(points.chunks_exact_mut(self.points() * stride)) {
            self.transforms.input(self.values, self.planes, runs, points, stride);
        }
    }

    fn multiply(&self, panels: usize, weight_panels: Range<usize>, buffers: &mut Buffers) {
        let kernel = self.kernel;
        let (points, channels, tile) = (self.points(), self.planes.channels, kernel.rows * kernel.columns);
        let Buffers { input, weight, taps, products } = buffers;
        let input = input.values::<f32>();
        let products = products.reserve::<f32>(panels * weight_panels.len() * points * tile);
        for start in (0..channels.max(1)).step_by(DEPTH) {
            let depths = start..channels.min(start + DEPTH);
            let length = depths.len() * kernel.rows;
            let stride = point_stride(weight_panels.len() * length);
            let weight = weight.reserve(points * stride);
            self.transform_weight(weight_panels.clone(), depths.clone(), taps, stride, weight);
            for point in 0..points {
                let left = &weight[point * stride..];
                for panel in 0..panels {
                    let right = &input[(panel * points + point) * self.input_stride()..];
                    let right = &right[depths.start * kernel.columns..depths.end * kernel.columns];
                    for index in 0..weight_panels.len() {
                        let place = ((panel * weight_panels.len() + index) * points + point) * tile;
                        let sums = &mut products[place..place + tile];
                        if start == 0 {
                            sums.fill(0.0);
                        }
                        let left = &left[index * length..(index + 1) * length];
                        kernel.add_product(left, right, sums);
                    }
                }
            }
        }
    }

    fn transform_weight(
        &self,
        weight_panels: Range<usize>,
        channels: Range<usize>,
        taps: &mut AlignedBuffer,
        stride: usize,
        points: &mut [f32],
    ) {
        let rows = self.kernel.rows;
        let depths = channels.start * TAPS..channels.end * TAPS;
        for (index, weight_panel) in weight_panels.enumerate() {
            let taps = self.weight.floats(weight_panel, depths.clone(), SLACK, taps);
            for channel in 0..channels.len() {
                let place = (index * channels.len() + channel) * rows;
                self.transforms.weight(&taps[channel * TAPS * rows..], &mut points[place..], stride);
            }
        }
    }

    fn transform_output(
        &self,
        runs: &[Vec<Run>],
        weight_panels: Range<usize>,
        products: &AlignedBuffer,
        output: Output,
    ) {
        let kernel = self.kernel;
        let tile = kernel.rows * kernel.columns;
        let planes = Planes { channels: self.weight.features(), ..self.planes };
        let mut products = products.values::<f32>().chunks_exact(self.points() * tile);
        for runs in runs {
            for (weight_panel, products) in weight_panels.clone().zip(&mut products) {
                let first = weight_panel * kernel.rows;
                let features = first..planes.channels.min(first + kernel.rows);
                let start = output.start();
                // SAFETY: the output has all the planes of all the pictures, and these tiles of these features are of this task alone.
                unsafe { self.transforms.output(products, tile, self.bias, planes, runs, features, start) };
            }
        }
    }
}

/// The room for so many numbers of a point.
fn point_stride(length: usize) -> usize {
    length.next_multiple_of(1024) + POINT_PADDING
}
