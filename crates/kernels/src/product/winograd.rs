//! 3x3 convolutions of stride 1 by Winograd's minimal filtering: a quarter of the products, of transformed weights with transformed tiles.
//! The crate's README says where that is used, and how exact it is.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use candle_core::Result;
use rayon::prelude::*;

use super::microkernel::Microkernel;
use super::multiply::{TASKS_PER_THREAD, share};
use super::panels::{AlignedBuffer, DEPTH};
use super::weight_panels::{AsFloats, WeightPanels};
use super::winograd_transforms::{Added, Pictures, Planes, Run, Transforms};
use crate::cpu::{Float, room};

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

/// A buffer that is kept for the next weight is at most so many times what that one takes.
const MOST_UNUSED: usize = 4;

/// A weight that several tasks multiply is transformed once for all of them, as many features at a time as take so many bytes.
pub(super) const SHARED_BYTES: usize = 64 << 20;

/// A convolution of pictures `(batch, channels, height, width)` with a weight of 3x3, stride 1 and padding 1.
pub(super) struct Winograd<'a, S, T> {
    pub(super) kernel: &'a Microkernel,
    pub(super) weight: &'a WeightPanels<T>,
    pub(super) added: Added<'a, S>,
    pub(super) input: Pictures<'a, S>,
    pub(super) batch: usize,
    pub(super) transforms: Transforms<S>,
    /// At most about so many bytes of the weight are transformed at a time; [`SHARED_BYTES`].
    pub(super) shared_bytes: usize,
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

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// The output, of which each task writes the features and tiles that are its own.
#[derive(Clone, Copy)]
struct Output<S>(*mut S);

// SAFETY: a pointer to numbers that live longer than the tasks; no two tasks write to one place.
unsafe impl<S: Send> Sync for Output<S> {}

impl<S> Output<S> {
    fn start(&self) -> *mut S {
        self.0
    }
}

/// Some panels of the weight, transformed: block by block of the channels, and in each point by point.
struct TransformedWeight<'a> {
    /// Which panels; the first is the first of a group.
    panels: Range<usize>,
    /// Group after group.
    points: &'a [f32],
}

impl<S: Float, T: AsFloats> Winograd<'_, S, T> {
    /// `(batch, features, height, width)`.
    pub(super) fn compute(&self) -> Result<Vec<S>> {
        let Planes { height, width, .. } = self.input.planes;
        let length = self.batch * self.weight.features() * height * width;
        let mut output = room(length)?;
        let start = Output(output.as_mut_ptr());
        let kernel = self.kernel;
        let panels = self.tiles().div_ceil(kernel.columns);
        let weight_panels = self.weight.features().div_ceil(kernel.rows);
        let bytes_per_panel = self.points() * self.input.planes.channels * kernel.columns * size_of::<f32>();
        let blocks = panels.div_ceil((INPUT_BYTES / bytes_per_panel.max(1)).clamp(1, MAX_PANELS));
        if blocks > 1 {
            self.compute_with_shared_weight(panels, blocks, start);
        } else {
            let parts = self.parts(blocks, weight_panels);
            (0..parts).into_par_iter().with_max_len(1).for_each(|part| {
                self.compute_part(0..panels, share(weight_panels, parts, part), None, &start);
            });
        }
        // SAFETY: there is room for so many, and the tasks have written all tiles of all features.
        unsafe { output.set_len(length) };
        Ok(output)
    }

    /// Into how many parts tasks divide so many panels of the weight.
    fn parts(&self, blocks: usize, weight_panels: usize) -> usize {
        let wanted_tasks = TASKS_PER_THREAD * rayon::current_num_threads();
        wanted_tasks.div_ceil(blocks.max(1)).min(weight_panels * self.kernel.rows / MIN_FEATURES).max(1)
    }

    /// How many panels of the weight are multiplied at a time: a group.
    fn group_size(&self) -> usize {
        (FEATURES / self.kernel.rows).max(1)
    }

    /// The room for the points of a group.
    fn group_stride(&self) -> usize {
        let length = |depths: Range<usize>| {
            self.points() * point_stride(self.group_size() * depths.len() * self.kernel.rows)
        };
        depth_blocks(self.input.planes.channels).map(length).sum()
    }

    fn compute_with_shared_weight(&self, panels: usize, blocks: usize, output: Output<S>) {
        thread_local! {
            static SHARED: Cell<AlignedBuffer> = Cell::default();
        }
        let weight_panels = self.weight.features().div_ceil(self.kernel.rows);
        let (group_size, group_stride) = (self.group_size(), self.group_stride());
        let groups = weight_panels.div_ceil(group_size);
        let groups_at_once =
            (self.shared_bytes / size_of::<f32>() / group_stride.max(1)).clamp(1, groups.max(1));
        // Not borrowed: this thread may compute another convolution while it waits for the tasks of this one.
        let mut buffer = SHARED.take();
        let length = groups_at_once * group_stride;
        if buffer.values::<f32>().len() > MOST_UNUSED * length {
            // What a wide layer on a small picture took would lie beside the large pictures of narrow ones.
            buffer = AlignedBuffer::default();
        }
        let points = buffer.reserve::<f32>(length);
        for first in (0..groups).step_by(groups_at_once) {
            let count = groups_at_once.min(groups - first);
            let points = &mut points[..count * group_stride];
            let panels_of = |group: usize| group * group_size..weight_panels.min((group + 1) * group_size);
            points.par_chunks_mut(group_stride.max(1)).enumerate().for_each(|(index, points)| {
                self.transform_group(panels_of(first + index), points);
            });
            let weight =
                TransformedWeight { panels: first * group_size..panels_of(first + count - 1).end, points };
            let parts = self.parts(blocks, weight.panels.len()).min(count);
            (0..blocks * parts).into_par_iter().with_max_len(1).for_each(|task| {
                let (block, part) = (task / parts, share(count, parts, task % parts));
                let weight_panels = panels_of(first + part.start).start..panels_of(first + part.end - 1).end;
                self.compute_part(share(panels, blocks, block), weight_panels, Some(&weight), &output);
            });
        }
        SHARED.set(buffer);
    }

    /// Transforms a group of panels of the weight.
    fn transform_group(&self, weight_panels: Range<usize>, points: &mut [f32]) {
        BUFFERS.with_borrow_mut(|Buffers { taps, .. }| {
            let mut rest = points;
            for depths in depth_blocks(self.input.planes.channels) {
                let stride = point_stride(self.group_size() * depths.len() * self.kernel.rows);
                let (points, behind) = rest.split_at_mut(self.points() * stride);
                self.transform_weight(weight_panels.clone(), depths, taps, stride, points);
                rest = behind;
            }
        });
    }

    fn points(&self) -> usize {
        (self.transforms.outputs + 2).pow(2)
    }

    /// Tiles in a row, and rows of tiles, of one picture.
    fn tiles_across(&self) -> (usize, usize) {
        let outputs = self.transforms.outputs;
        (self.input.planes.width.div_ceil(outputs), self.input.planes.height.div_ceil(outputs))
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

    fn compute_part(
        &self,
        panels: Range<usize>,
        weight_panels: Range<usize>,
        transformed: Option<&TransformedWeight>,
        output: &Output<S>,
    ) {
        let runs: Vec<_> = panels.map(|panel| self.runs(panel)).collect();
        BUFFERS.with_borrow_mut(|buffers| {
            self.transform_input(&runs, &mut buffers.input);
            for start in weight_panels.clone().step_by(self.group_size()) {
                let weight_panels = start..weight_panels.end.min(start + self.group_size());
                let group = transformed.map(|weight| {
                    let group = (start - weight.panels.start) / self.group_size();
                    &weight.points[group * self.group_stride()..][..self.group_stride()]
                });
                self.multiply(runs.len(), weight_panels.clone(), group, buffers);
                self.transform_output(&runs, weight_panels, &buffers.products, output);
            }
        });
    }

    /// How far apart the points of a panel of tiles are.
    fn input_stride(&self) -> usize {
        point_stride(self.input.planes.channels * self.kernel.columns)
    }

    fn transform_input(&self, runs: &[Vec<Run>], input: &mut AlignedBuffer) {
        let stride = self.input_stride();
        let points = input.reserve::<f32>(runs.len() * self.points() * stride);
        for (runs, points) in runs.iter().zip(points.chunks_exact_mut(self.points() * stride)) {
            self.transforms.input(self.input, runs, points, stride);
        }
    }

    /// `group` has the panels of the weight transformed, if they are.
    fn multiply(
        &self,
        panels: usize,
        weight_panels: Range<usize>,
        mut group: Option<&[f32]>,
        buffers: &mut Buffers,
    ) {
        let kernel = self.kernel;
        let (points, tile) = (self.points(), kernel.rows * kernel.columns);
        let Buffers { input, weight, taps, products } = buffers;
        let input = input.values::<f32>();
        let products = products.reserve::<f32>(panels * weight_panels.len() * points * tile);
        for depths in depth_blocks(self.input.planes.channels) {
            let length = depths.len() * kernel.rows;
            let stride = point_stride(self.group_size() * length);
            let weight = match &mut group {
                Some(rest) => {
                    let (weight, behind) = rest.split_at(points * stride);
                    *rest = behind;
                    weight
                }
                None => {
                    let weight = weight.reserve(points * stride);
                    self.transform_weight(weight_panels.clone(), depths.clone(), taps, stride, weight);
                    weight
                }
            };
            for point in 0..points {
                let left = &weight[point * stride..];
                for panel in 0..panels {
                    let right = &input[(panel * points + point) * self.input_stride()..];
                    let right = &right[depths.start * kernel.columns..depths.end * kernel.columns];
                    for index in 0..weight_panels.len() {
                        let place = ((panel * weight_panels.len() + index) * points + point) * tile;
                        let sums = &mut products[place..place + tile];
                        if depths.start == 0 {
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
        output: &Output<S>,
    ) {
        let kernel = self.kernel;
        let tile = kernel.rows * kernel.columns;
        let planes = Planes { channels: self.weight.features(), ..self.input.planes };
        let mut products = products.values::<f32>().chunks_exact(self.points() * tile);
        for runs in runs {
            for (weight_panel, products) in weight_panels.clone().zip(&mut products) {
                let first = weight_panel * kernel.rows;
                let features = first..planes.channels.min(first + kernel.rows);
                let start = output.start();
                // SAFETY: the output has all the planes of all the pictures, and these tiles of these features are of this task alone.
                unsafe {
                    self.transforms.output(products, tile, self.added, planes, runs, features, start);
                }
            }
        }
    }
}

/// The channels in blocks as deep as a panel; where there are none, one empty block.
fn depth_blocks(channels: usize) -> impl Iterator<Item = Range<usize>> {
    (0..channels.max(1)).step_by(DEPTH).map(move |start| start..channels.min(start + DEPTH))
}

/// The room for so many numbers of a point.
fn point_stride(length: usize) -> usize {
    length.next_multiple_of(1024) + POINT_PADDING
}
