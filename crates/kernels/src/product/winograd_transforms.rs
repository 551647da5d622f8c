//! The transforms of Winograd's minimal filtering: of weights, of the input's tiles, and back. Lanes of vectors are output channels
//! (weights) or tiles, so that a transform is additions and multiplications of whole vectors.

use std::ops::Range;

use super::geometry::Scale;
use super::level::Level;
use super::rows::read_twice;
use crate::activation::{Activation, Silu, in_place};
#[cfg(target_arch = "x86_64")]
use crate::cpu::{Avx2, Avx512};
use crate::cpu::{Float, Instructions, LANES, Plain, convert, convert_to_fresh, prefetch};
use crate::norm::Normalize;

/// The most points that a tile has along a side, and the most outputs.
pub(super) const MAX_POINTS: usize = 6;
pub(super) const MAX_OUTPUTS: usize = 4;
const MAX_TILES: usize = 32;
/// A row of pixels under a panel of tiles, rounded up to whole vectors.
const LINE: usize = (MAX_OUTPUTS * MAX_TILES + 2).next_multiple_of(16);

/// For how many channels ahead taps are fetched.
const AHEAD: usize = 8;

/// `F(outputs, 3)` along one side: so many outputs of a filter with three taps by as many products as there are points,
/// `outputs + 2`. In two dimensions it is applied to columns and rows.
///
/// Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015).
trait Filtering {
    const OUTPUTS: usize;
    const POINTS: usize = Self::OUTPUTS + 2;

    fn weight<V: Vector>(taps: [V; 3]) -> [V; MAX_POINTS];
    fn input<V: Vector>(pixels: [V; MAX_POINTS]) -> [V; MAX_POINTS];
    fn output<V: Vector>(products: [V; MAX_POINTS]) -> [V; MAX_OUTPUTS];
}

/// `F(2, 3)` with the points 0, 1, -1 and infinity.
struct Two;

impl Filtering for Two {
    const OUTPUTS: usize = 2;

    #[inline(always)]
    fn weight<V: Vector>([a, b, c]: [V; 3]) -> [V; MAX_POINTS] {
        let (even, odd) = (a.plus(c).times(0.5), b.times(0.5));
        [a, even.plus(odd), even.minus(odd), c, V::zero(), V::zero()]
    }

    #[inline(always)]
    fn input<V: Vector>([a, b, c, d, ..]: [V; MAX_POINTS]) -> [V; MAX_POINTS] {
        [a.minus(c), b.plus(c), c.minus(b), d.minus(b), V::zero(), V::zero()]
    }

    #[inline(always)]
    fn output<V: Vector>([a, b, c, d, ..]: [V; MAX_POINTS]) -> [V; MAX_OUTPUTS] {
        [a.plus(b).plus(c), b.minus(c).plus(d), V::zero(), V::zero()]
    }
}

/// `F(4, 3)` with the points 0, ±5/8, ±3/2 and infinity. Of the points tried they round least: the results' error is less than half of that with
/// the usual 0, ±1, ±2 (the crate's README has the figures). But for the weights' divisors, all factors are exact.
struct Four;

const P: f32 = 5.0 / 8.0;
const Q: f32 = 3.0 / 2.0;

impl Filtering for Four {
    const OUTPUTS: usize = 4;

    #[inline(always)]
    fn weight<V: Vector>([a, b, c]: [V; 3]) -> [V; MAX_POINTS] {
        const AT_P: f32 =
            (1.0 / (2.0 * P as f64 * P as f64 * (P as f64 * P as f64 - Q as f64 * Q as f64))) as f32;
        const AT_Q: f32 =
            (1.0 / (2.0 * Q as f64 * Q as f64 * (Q as f64 * Q as f64 - P as f64 * P as f64))) as f32;
        const AT_ZERO: f32 = (1.0 / (P as f64 * P as f64 * Q as f64 * Q as f64)) as f32;
        let (even_p, odd_p) = (a.plus_times(P * P, c).times(AT_P), b.times(P * AT_P));
        let (even_q, odd_q) = (a.plus_times(Q * Q, c).times(AT_Q), b.times(Q * AT_Q));
        [
            a.times(AT_ZERO),
            even_p.plus(odd_p),
            even_p.minus(odd_p),
            even_q.plus(odd_q),
            even_q.minus(odd_q),
            c,
        ]
    }

    #[inline(always)]
    fn input<V: Vector>([a, b, c, d, e, f]: [V; MAX_POINTS]) -> [V; MAX_POINTS] {
        const SUM: f32 = P * P + Q * Q;
        const PRODUCT: f32 = P * P * Q * Q;
        let (even_p, odd_p) = (e.plus_times(-Q * Q, c), d.plus_times(-Q * Q, b));
        let (even_q, odd_q) = (e.plus_times(-P * P, c), d.plus_times(-P * P, b));
        [
            e.plus_times(-SUM, c).plus_times(PRODUCT, a),
            even_p.plus_times(P, odd_p),
            even_p.plus_times(-P, odd_p),
            even_q.plus_times(Q, odd_q),
            even_q.plus_times(-Q, odd_q),
            f.plus_times(-SUM, d).plus_times(PRODUCT, b),
        ]
    }

    #[inline(always)]
    fn output<V: Vector>([zero, p, minus_p, q, minus_q, infinity]: [V; MAX_POINTS]) -> [V; MAX_OUTPUTS] {
        let (even_p, odd_p) = (p.plus(minus_p), p.minus(minus_p));
        let (even_q, odd_q) = (q.plus(minus_q), q.minus(minus_q));
        [
            zero.plus(even_p).plus(even_q),
            odd_p.times(P).plus_times(Q, odd_q),
            even_p.times(P * P).plus_times(Q * Q, even_q),
            infinity.plus_times(P * P * P, odd_p).plus_times(Q * Q * Q, odd_q),
        ]
    }
}

/// What the transforms compute with.
trait Vector: Copy {
    const LANES: usize;

    fn zero() -> Self;
    fn load(numbers: &[f32]) -> Self;
    fn store(self, numbers: &mut [f32]);
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, factor: f32) -> Self;
    /// `self + factor * other`.
    fn plus_times(self, factor: f32, other: Self) -> Self;
}

/// An array that the compiler keeps in a vector register. `FUSED` where the processor multiplies and adds in one; elsewhere that would be a call
/// for each number.
#[derive(Clone, Copy)]
struct Lanes<const LANES: usize, const FUSED: bool>([f32; LANES]);

impl<const LANES: usize, const FUSED: bool> Lanes<LANES, FUSED> {
    #[inline(always)]
    fn with(self, other: Self, operation: impl Fn(f32, f32) -> f32) -> Self {
        let mut result = self;
        result.0.iter_mut().zip(other.0).for_each(|(value, other)| *value = operation(*value, other));
        result
    }
}

impl<const LANES: usize, const FUSED: bool> Vector for Lanes<LANES, FUSED> {
    const LANES: usize = LANES;

    #[inline(always)]
    fn zero() -> Self {
        Self([0.0; LANES])
    }

    #[inline(always)]
    fn load(numbers: &[f32]) -> Self {
        let mut lanes = [0.0; LANES];
        lanes.copy_from_slice(&numbers[..LANES]);
        Self(lanes)
    }

    #[inline(always)]
    fn store(self, numbers: &mut [f32]) {
        numbers[..LANES].copy_from_slice(&self.0);
    }

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        self.with(other, |a, b| a + b)
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        self.with(other, |a, b| a - b)
    }

    #[inline(always)]
    fn times(self, factor: f32) -> Self {
        self.with(self, |a, _| a * factor)
    }

    #[inline(always)]
    fn plus_times(self, factor: f32, other: Self) -> Self {
        self.with(other, |a, b| if FUSED { b.mul_add(factor, a) } else { a + factor * b })
    }
}

/// Tiles of a panel that lie beside each other in one picture, and where their first pixel under the kernel is: in the padded picture, that
/// is one up and left of the output's pixel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Where the run is in the panel.
    pub(super) start: usize,
    pub(super) tiles: usize,
    pub(super) picture: usize,
    pub(super) y: usize,
    pub(super) x: usize,
}

/// Pictures of one size, channel after channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planes {
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    /// How the input is read; the size is what becomes of it.
    pub(super) scale: Scale,
}

/// What is transformed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pictures<'a, S> {
    pub(super) values: &'a [S],
    pub(super) planes: Planes,
    /// What is done with each channel of each picture first.
    pub(super) normed: Option<&'a [Normalize<Silu>]>,
}

/// What is added to each output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Added<'a, S> {
    /// A number for each feature.
    pub(super) bias: Option<&'a [f32]>,
    /// As many numbers as the output has.
    pub(super) addend: Option<&'a [S]>,
    /// What comes of each output in the end.
    pub(super) activation: Option<Activation>,
}

/// The transforms of one [`Level`] and tile, for pictures of `S`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transforms<S> {
    /// Outputs along a side of a tile.
    pub(super) outputs: usize,
    weight: WeightTransform,
    input: InputTransform<S>,
    output: OutputTransform<S>,
}

type WeightTransform = unsafe fn(&[f32], &mut [f32], usize);
type InputTransform<S> = unsafe fn(Pictures<'_, S>, &[Run], &mut [f32], usize);
type OutputTransform<S> = unsafe fn(&[f32], usize, Added<'_, S>, Planes, &[Run], Range<usize>, *mut S);

impl<S: Float> Transforms<S> {
    pub(super) fn new(level: Level, outputs: usize) -> Self {
        match (level, outputs) {
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512 | Level::Avx512Bf16 | Level::Amx, 2) if Level::Avx512.is_available() => {
                avx512::transforms::<Two, S>()
            }
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512 | Level::Avx512Bf16 | Level::Amx, _) if Level::Avx512.is_available() => {
                avx512::transforms::<Four, S>()
            }
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, 2) if level.is_available() => avx2::transforms::<Two, S>(),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2, _) if level.is_available() => avx2::transforms::<Four, S>(),
            #[cfg(any(target_arch = "aarch64", test))]
            (Level::Neon, 2) => neon::transforms::<Two, S>(),
            #[cfg(any(target_arch = "aarch64", test))]
            (Level::Neon, _) => neon::transforms::<Four, S>(),
            (_, 2) => portable::transforms::<Two, S>(),
            _ => portable::transforms::<Four, S>(),
        }
    }

    /// Transforms the nine taps of a panel's features for one channel, as many numbers beside each other as the panel is wide; those of a point
    /// come to `point * stride`. Up to a vector is read and written, whatever the width: `taps` must have
    /// that room, and what comes after each point's numbers must be written later.
    pub(super) fn weight(&self, taps: &[f32], points: &mut [f32], stride: usize) {
        // SAFETY: `new` has asked whether the processor has the level.
        unsafe { (self.weight)(taps, points, stride) }
    }

    /// Transforms a panel of tiles: those of a point come to `point * stride`, channel after channel.
    pub(super) fn input(&self, pictures: Pictures<'_, S>, runs: &[Run], points: &mut [f32], stride: usize) {
        // SAFETY: `new` has asked whether the processor has the level.
        unsafe { (self.input)(pictures, runs, points, stride) }
    }

    /// Transforms the products of some features for a panel of tiles back, adds what is to be added, and writes them to their places in
    /// `output`; those of a point lie at `point * stride`, feature after feature.
    ///
    /// # Safety
    /// `output` must be valid for writes of all the planes that the runs lie in, and nothing else uses the tiles' pixels meanwhile.
    #[expect(clippy::too_many_arguments, reason = "what is read, what is added, and where it goes")]
    pub(super) unsafe fn output(
        &self,
        products: &[f32],
        stride: usize,
        added: Added<'_, S>,
        planes: Planes,
        runs: &[Run],
        features: Range<usize>,
        output: *mut S,
    ) {
        // SAFETY: `new` has asked whether the processor has the level; the rest is the caller's promise.
        unsafe { (self.output)(products, stride, added, planes, runs, features, output) }
    }
}

/// The transforms compiled with the instructions of a level. `$rows` features and `$tiles` tiles are a panel's.
macro_rules! level {
    ($level:ident, $rows:expr, $tiles:expr, $vector:ty, $instructions:expr $(, $feature:literal)?) => {
        mod $level {
            use super::*;

            pub(super) fn transforms<F: Filtering, S: Float>() -> Transforms<S> {
                Transforms {
                    outputs: F::OUTPUTS,
                    weight: weight::<F>,
                    input: input::<F, S>,
                    output: output::<F, S>,
                }
            }

            /// # Safety
            /// The processor must have the level.
            $(#[target_feature(enable = $feature)])?
            unsafe fn weight<F: Filtering>(taps: &[f32], points: &mut [f32], stride: usize) {
                transform_weight::<F, $vector, { $rows }>(taps, points, stride);
            }

            /// # Safety
            /// The processor must have the level.
            $(#[target_feature(enable = $feature)])?
            unsafe fn input<F: Filtering, S: Float>(
                pictures: Pictures<'_, S>,
                runs: &[Run],
                points: &mut [f32],
                stride: usize,
            ) {
                transform_input::<F, $vector, S, { $tiles }>(pictures, runs, points, stride, $instructions);
            }

            /// # Safety
            /// The processor must have the level; the rest as [`Transforms::output`] says.
            $(#[target_feature(enable = $feature)])?
            unsafe fn output<F: Filtering, S: Float>(
                products: &[f32],
                stride: usize,
                added: Added<'_, S>,
                planes: Planes,
                runs: &[Run],
                features: Range<usize>,
                output: *mut S,
            ) {
                let instructions = $instructions;
                // SAFETY: the caller's promise.
                unsafe {
                    transform_output::<F, $vector, S, { $tiles }>(
                        products, stride, added, planes, runs, features, output, instructions,
                    );
                }
            }
        }
    };
}

level!(portable, crate::product::portable::ROWS, crate::product::portable::COLUMNS, Lanes<4, false>, Plain);
#[cfg(any(target_arch = "aarch64", test))]
level!(neon, crate::product::portable::NEON_ROWS, crate::product::portable::NEON_COLUMNS, Lanes<8, true>, Plain);
#[cfg(target_arch = "x86_64")]
level!(
    avx2,
    crate::product::avx2::ROWS,
    crate::product::avx2::COLUMNS,
    Lanes<8, true>,
    // SAFETY: the caller promises that the processor has the level.
    unsafe { Avx2::assume() },
    "avx2,fma,f16c"
);
#[cfg(target_arch = "x86_64")]
level!(
    avx512,
    crate::product::avx512::ROWS,
    crate::product::avx512::COLUMNS,
    Lanes<16, true>,
    // SAFETY: the caller promises that the processor has the level.
    unsafe { Avx512::assume() },
    "avx512f"
);

#[inline(always)]
fn transform_weight<F: Filtering, V: Vector, const ROWS: usize>(
    taps: &[f32],
    points: &mut [f32],
    stride: usize,
) {
    // The taps of a later channel: a panel is too short for the processor to foresee where they lie.
    for line in 0..(9 * ROWS).div_ceil(16) {
        prefetch(taps, AHEAD * 9 * ROWS + line * 16);
    }
    let mut columns = [[V::zero(); 3]; MAX_POINTS];
    for x in 0..3 {
        let column = F::weight(std::array::from_fn(|y| V::load(&taps[(y * 3 + x) * ROWS..])));
        for (y, value) in column.into_iter().enumerate() {
            columns[y][x] = value;
        }
    }
    for (y, row) in columns.into_iter().enumerate().take(F::POINTS) {
        for (x, value) in F::weight(row).into_iter().enumerate().take(F::POINTS) {
            value.store(&mut points[(y * F::POINTS + x) * stride..]);
        }
    }
}

#[inline(always)]
fn transform_input<F: Filtering, V: Vector, S: Float, const TILES: usize>(
    pictures: Pictures<'_, S>,
    runs: &[Run],
    points: &mut [f32],
    stride: usize,
    instructions: impl Instructions,
) {
    let Pictures { values, planes, .. } = pictures;
    // Columns are transformed first: pixels beside each other are lanes, and only what comes out is sorted by tiles. `sorted` has
    // one more tile, the first of those behind a run, whose pixels the run's last tile reaches into.
    let mut rows = [[0f32; LINE]; MAX_POINTS];
    let mut sorted = [[[0f32; MAX_TILES + 16]; MAX_POINTS]; MAX_POINTS];
    for channel in 0..planes.channels {
        let place = channel * TILES;
        for run in runs {
            let length = F::OUTPUTS * run.tiles + 2;
            let factor = planes.scale.factor();
            let (plane_size, width) = (planes.height * planes.width / factor / factor, planes.width / factor);
            let index = run.picture * planes.channels + channel;
            let plane = index * plane_size;
            for (y, row) in rows.iter_mut().enumerate().take(F::POINTS) {
                read_row(pictures, index, run.y + y, run.x, &mut row[..length], instructions);
                // The next channel's row lies too far away for the processor to foresee it.
                let next = plane + plane_size + (run.y + y) / factor * width + run.x / factor;
                for index in (0..length / factor + LANES).step_by(LANES) {
                    prefetch(values, next + index);
                }
            }
            for start in (0..length).step_by(V::LANES) {
                let mut column = [V::zero(); MAX_POINTS];
                for y in 0..F::POINTS {
                    column[y] = V::load(&rows[y][start..]);
                }
                let column = F::input(column);
                for y in 0..F::POINTS {
                    column[y].store(&mut rows[y][start..]);
                }
            }
            for y in 0..F::POINTS {
                sort_tiles::<F, TILES>(&rows[y], run, &mut sorted[y]);
            }
        }
        for (y, row) in sorted.iter().enumerate().take(F::POINTS) {
            for start in (0..TILES).step_by(V::LANES) {
                let mut pixels = [V::zero(); MAX_POINTS];
                for x in 0..F::POINTS {
                    pixels[x] = V::load(&row[x][start..]);
                }
                let transformed = F::input(pixels);
                for x in 0..F::POINTS {
                    transformed[x].store(&mut points[(y * F::POINTS + x) * stride + place + start..]);
                }
            }
        }
    }
}

/// Reads pixels of one row of a channel, counted through all pictures, of the padded picture; zeros where the padding is, and beyond the
/// picture.
#[inline(always)]
fn read_row<S: Float>(
    pictures: Pictures<'_, S>,
    channel: usize,
    y: usize,
    x: usize,
    pixels: &mut [f32],
    instructions: impl Instructions,
) {
    let Pictures { values, planes, normed } = pictures;
    if y == 0 || y > planes.height {
        return pixels.fill(0.0);
    }
    let factor = planes.scale.factor();
    let width = planes.width / factor;
    let row = &values[(channel * (planes.height / factor) + (y - 1) / factor) * width..][..width];
    let (start, pixels) = if x == 0 {
        let Some((first, pixels)) = pixels.split_first_mut() else { return };
        *first = 0.0;
        (0, pixels)
    } else {
        (x - 1, pixels)
    };
    let (inside, beyond) = pixels.split_at_mut((planes.width - start).min(pixels.len()));
    match planes.scale {
        Scale::One => convert(&row[start..][..inside.len()], inside, instructions),
        Scale::Two => {
            let mut read = [S::zero(); LINE];
            let read = &mut read[..inside.len()];
            read_twice(row, start, read);
            convert(read, inside, instructions);
        }
    }
    if let Some(normed) = normed {
        in_place(normed[channel], inside);
    }
    beyond.fill(0.0);
}

#[inline(always)]
fn add<S: Float>(pixels: &mut [f32], addend: &[S], instructions: impl Instructions) {
    let ((pixels, pixels_tail), (addend, addend_tail)) =
        (pixels.as_chunks_mut::<LANES>(), addend.as_chunks::<LANES>());
    for (pixels, addend) in pixels.iter_mut().zip(addend) {
        let addend = S::load(addend, instructions);
        for lane in 0..LANES {
            pixels[lane] += addend[lane];
        }
    }
    pixels_tail.iter_mut().zip(addend_tail).for_each(|(pixel, addend)| *pixel += addend.to_float());
}

/// Sorts a run's row of pixels by their place in the tile: pixel `x` of each tile comes to `sorted[x]`.
#[inline(always)]
fn sort_tiles<F: Filtering, const TILES: usize>(
    row: &[f32; LINE],
    run: &Run,
    sorted: &mut [[f32; MAX_TILES + 16]; MAX_POINTS],
) {
    const CHUNK: usize = 16;
    const SMALL: usize = 4;
    let mut tile = 0;
    while tile < run.tiles {
        // More tiles than the run has do no harm: the next run's are written later.
        if run.tiles - tile > SMALL && TILES >= CHUNK {
            sort_chunk::<F, CHUNK>(&row[tile * F::OUTPUTS..], run.start + tile, sorted);
            tile += CHUNK;
        } else {
            sort_chunk::<F, SMALL>(&row[tile * F::OUTPUTS..], run.start + tile, sorted);
            tile += SMALL;
        }
    }
}

#[inline(always)]
fn sort_chunk<F: Filtering, const CHUNK: usize>(
    row: &[f32],
    start: usize,
    sorted: &mut [[f32; MAX_TILES + 16]; MAX_POINTS],
) {
    let row = &row[..CHUNK * F::OUTPUTS + 2];
    for x in 0..F::POINTS {
        let to = &mut sorted[x][start..start + CHUNK];
        for tile in 0..CHUNK {
            to[tile] = row[tile * F::OUTPUTS + x];
        }
    }
}

/// # Safety
/// As [`Transforms::output`] says.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "what is read, what is added, and where it goes")]
unsafe fn transform_output<F: Filtering, V: Vector, S: Float, const TILES: usize>(
    products: &[f32],
    stride: usize,
    added: Added<'_, S>,
    planes: Planes,
    runs: &[Run],
    features: Range<usize>,
    output: *mut S,
    instructions: impl Instructions,
) {
    let mut sorted = [[[0f32; MAX_TILES]; MAX_OUTPUTS]; MAX_OUTPUTS];
    let mut line = [0f32; MAX_OUTPUTS * MAX_TILES];
    for (index, feature) in features.enumerate() {
        let place = index * TILES;
        for start in (0..TILES).step_by(V::LANES) {
            let mut columns = [[V::zero(); MAX_POINTS]; MAX_OUTPUTS];
            for x in 0..F::POINTS {
                let mut column = [V::zero(); MAX_POINTS];
                for y in 0..F::POINTS {
                    column[y] = V::load(&products[(y * F::POINTS + x) * stride + place + start..]);
                }
                let column = F::output(column);
                for y in 0..F::OUTPUTS {
                    columns[y][x] = column[y];
                }
            }
            let bias = V::load(&[added.bias.map_or(0.0, |bias| bias[feature]); 16]);
            for y in 0..F::OUTPUTS {
                let row = F::output(columns[y]);
                for x in 0..F::OUTPUTS {
                    row[x].plus(bias).store(&mut sorted[y][x][start..]);
                }
            }
        }
        for (y, sorted) in sorted.iter().enumerate().take(F::OUTPUTS) {
            for tile in 0..TILES {
                for x in 0..F::OUTPUTS {
                    line[tile * F::OUTPUTS + x] = sorted[x][tile];
                }
            }
            for run in runs {
                let row = run.y + y;
                if row >= planes.height {
                    continue;
                }
                let length = (run.tiles * F::OUTPUTS).min(planes.width - run.x);
                let row = ((run.picture * planes.channels + feature) * planes.height + row) * planes.width;
                let pixels = &mut line[run.start * F::OUTPUTS..][..length];
                if let Some(addend) = added.addend {
                    add(pixels, &addend[row + run.x..][..length], instructions);
                }
                if let Some(activation) = added.activation {
                    activation.apply(pixels);
                }
                // SAFETY: the row is one of the planes', of which the run lies within the width; it is ours by the caller's promise.
                let output =
                    unsafe { std::slice::from_raw_parts_mut(output.add(row + run.x).cast(), length) };
                convert_to_fresh::<f32, S>(pixels, output, instructions);
            }
        }
    }
}
