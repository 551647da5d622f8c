//! The step that attention's backward is made of: some queries and a block of keys, whose weights are computed again from the queries' sums
//! (Dao et al., 2022, algorithm 4, with the loops the other way round).
//!
//! As in the forward step, queries are the lanes of vectors, and keys and features are rows; only in the sums for keys and values features are
//! the lanes, and weights are read a number at a time.

use super::arithmetic::Arithmetic;
use super::step::{product, shares};
use super::vector::Vector;

/// Some queries as the lanes of two vectors, and a block of keys. What units are, [`Step`](super::step::Step) says.
pub(super) struct BackwardStep<'a> {
    /// How many units a query and a key have.
    pub(super) depth: usize,
    /// How many features a head has, and that rounded up to whole vectors.
    pub(super) dim: usize,
    pub(super) padded: usize,
    pub(super) keys: usize,
    pub(super) queries: Queries<'a>,
    /// Panels of [`shares`] of the keys, each `(depth, keys of the panel)`.
    pub(super) key: &'a [f32],
    /// The same of the values.
    pub(super) value: &'a [f32],
    /// `(units of keys, dim)`.
    pub(super) key_rows: &'a [f32],
    /// `(keys, queries)`, added to the scaled scores.
    pub(super) mask: Option<&'a [f32]>,
    pub(super) scale: f32,
    /// Room for three times `(keys, queries)`, with an even number of keys.
    pub(super) room: &'a mut [f32],
    pub(super) sums: Sums<'a>,
}

/// What is known of the queries.
#[derive(Clone, Copy)]
pub(super) struct Queries<'a> {
    /// `(depth, queries)`.
    pub(super) query: &'a [f32],
    /// The same of the result's gradient.
    pub(super) gradient: &'a [f32],
    /// `(units of queries, padded)`.
    pub(super) query_rows: &'a [f32],
    /// The same of the result's gradient.
    pub(super) gradient_rows: &'a [f32],
    /// The logarithms of the sums of the exponentials of their scores. Infinity makes all weights zero.
    pub(super) log_sums: &'a [f32],
    /// The products of results and their gradients.
    pub(super) products: &'a [f32],
}

/// The sums to which the step adds; none where nobody wants them.
pub(super) struct Sums<'a> {
    /// `(dim, queries)`, without the scale.
    pub(super) query: Option<&'a mut [f32]>,
    /// `(keys, padded)`, without the scale.
    pub(super) key: Option<&'a mut [f32]>,
    /// `(keys, padded)`.
    pub(super) value: Option<&'a mut [f32]>,
}

/// # Safety
/// The processor must have what the arithmetic needs.
#[inline(always)]
pub(super) unsafe fn backward_step<A: Arithmetic>(step: &mut BackwardStep<'_>) {
    let lanes = A::Vector::LANES;
    let width = 2 * lanes;
    let BackwardStep { depth, dim, padded, keys, queries, .. } = *step;
    let (units, even_keys) = (keys.div_ceil(A::UNIT), keys.next_multiple_of(2));
    let (query_units, tile) = (width / A::UNIT, even_keys * width);
    assert!(queries.query.len() >= depth * width && queries.gradient.len() >= depth * width);
    assert!(queries.query_rows.len() >= query_units * padded);
    assert!(queries.gradient_rows.len() >= query_units * padded);
    assert!(queries.log_sums.len() >= width && queries.products.len() >= width);
    assert!(step.key.len() >= depth * keys && step.value.len() >= depth * keys);
    assert!(step.key_rows.len() >= units * dim && step.room.len() >= 3 * tile);
    assert!(step.mask.is_none_or(|mask| mask.len() >= keys * width));
    assert!(padded >= dim && padded.is_multiple_of(lanes));
    let has_room = |sums: &Option<&mut [f32]>, length| sums.as_ref().is_none_or(|sums| sums.len() >= length);
    assert!(has_room(&step.sums.query, dim * width));
    assert!(has_room(&step.sums.key, keys * padded) && has_room(&step.sums.value, keys * padded));

    let weights = step.room.as_mut_ptr();
    // SAFETY: the room has three tiles.
    let (changes, joined) = unsafe { (weights.add(tile), weights.add(2 * tile)) };
    // SAFETY: all that is read and written has the lengths that are asserted above.
    unsafe {
        scores::<A>(keys, depth, step.key.as_ptr(), queries.query.as_ptr(), weights);
        let base = A::Vector::splat(std::f32::consts::LOG2_E);
        let scale = A::Vector::splat(step.scale);
        for row in 0..keys {
            for half in [0, lanes] {
                let place = row * width + half;
                let mut score = A::Vector::load(weights.add(place)).mul(scale);
                if let Some(mask) = step.mask {
                    score = score.add(A::Vector::load(mask.as_ptr().add(place)));
                }
                let log_sum = A::Vector::load(queries.log_sums.as_ptr().add(half));
                score.sub(log_sum).mul(base).exp2(A::EXP2).store(weights.add(place));
            }
        }
        let wants_scores = step.sums.query.is_some() || step.sums.key.is_some();
        if wants_scores {
            scores::<A>(keys, depth, step.value.as_ptr(), queries.gradient.as_ptr(), changes);
            for row in 0..keys {
                for half in [0, lanes] {
                    let place = row * width + half;
                    let product = A::Vector::load(queries.products.as_ptr().add(half));
                    let change = A::Vector::load(changes.add(place)).sub(product);
                    change.mul(A::Vector::load(weights.add(place))).store(changes.add(place));
                }
            }
        }
        if let Some(sums) = &mut step.sums.value {
            join_queries::<A>(keys, weights);
            add_rows::<A>(keys, padded, weights, queries.gradient_rows.as_ptr(), sums.as_mut_ptr());
        }
        if let Some(sums) = &mut step.sums.query {
            let changes = if A::UNIT == 1 {
                changes
            } else {
                for unit in 0..units {
                    for half in [0, lanes] {
                        let first = changes.add(2 * unit * width + half);
                        let second = match 2 * unit + 1 < keys {
                            true => A::Vector::load(first.add(width)),
                            false => A::Vector::splat(0.0),
                        };
                        A::unit(A::Vector::load(first), second).store(joined.add(unit * width + half));
                    }
                }
                joined
            };
            let one = Some([A::Vector::splat(1.0); 2]);
            for features in shares(dim, A::Vector::ROWS) {
                let key = step.key_rows.as_ptr().add(features.start);
                let sums = sums.as_mut_ptr().add(features.start * width);
                product::<A>(features.len(), units, key, dim, changes, sums, one);
            }
        }
        if let Some(sums) = &mut step.sums.key {
            join_queries::<A>(keys, changes);
            add_rows::<A>(keys, padded, changes, queries.query_rows.as_ptr(), sums.as_mut_ptr());
        }
    }
}

/// Products of keys (or values) with queries (or gradients), `(keys, queries)`.
///
/// # Safety
/// The processor must have what the arithmetic needs; `left` must be valid for reads of `keys * depth` units, `right` of `depth` times two
/// vectors, and `tile` for writes of `keys` times two vectors.
#[inline(always)]
unsafe fn scores<A: Arithmetic>(
    keys: usize,
    depth: usize,
    left: *const f32,
    right: *const f32,
    tile: *mut f32,
) {
    for panel in shares(keys, A::Vector::ROWS) {
        // SAFETY: panels lie one after the other, each `depth` units for each of its keys.
        unsafe {
            let left = left.add(panel.start * depth);
            let tile = tile.add(panel.start * 2 * A::Vector::LANES);
            product::<A>(panel.len(), depth, left, panel.len(), right, tile, None);
        }
    }
}

/// Makes each row's numbers units of neighbouring queries, at the row's start.
///
/// # Safety
/// The processor must have what the arithmetic needs, and `tile` be valid for reads and writes of so many rows of two vectors.
#[inline(always)]
unsafe fn join_queries<A: Arithmetic>(rows: usize, tile: *mut f32) {
    if A::UNIT == 2 {
        for row in 0..rows {
            // SAFETY: the caller's promise.
            unsafe {
                let row = tile.add(row * 2 * A::Vector::LANES);
                let (first, second) = (A::Vector::load(row), A::Vector::load(row.add(A::Vector::LANES)));
                A::neighbours(first, second).store(row);
            }
        }
    }
}

/// Adds to `(rows, padded)` sums the products of the rows' units with those of the queries, `(units, padded)`.
///
/// # Safety
/// The processor must have what the arithmetic needs; `left` must be valid for reads of `rows` times two vectors, `right` of as many units as two
/// vectors have times `padded`, a multiple of the lanes, and `sums` for reads and writes of `rows * padded`.
#[inline(always)]
unsafe fn add_rows<A: Arithmetic>(
    rows: usize,
    padded: usize,
    left: *const f32,
    right: *const f32,
    sums: *mut f32,
) {
    let lanes = A::Vector::LANES;
    for rows in shares(rows, A::Vector::ROWS) {
        let mut feature = 0;
        while feature < padded {
            // SAFETY: within what the caller promises: these rows, and one vector of features or two.
            unsafe {
                let left = left.add(rows.start * 2 * lanes);
                let right = right.add(feature);
                let sums = sums.add(rows.start * padded + feature);
                if feature + 2 * lanes <= padded {
                    add_tile::<A, 2>(rows.len(), left, right, padded, sums);
                    feature += 2 * lanes;
                } else {
                    add_tile::<A, 1>(rows.len(), left, right, padded, sums);
                    feature += lanes;
                }
            }
        }
    }
}

/// # Safety
/// As [`add_rows`] says, for at most as many rows as the level has registers for.
#[inline(always)]
unsafe fn add_tile<A: Arithmetic, const VECTORS: usize>(
    rows: usize,
    left: *const f32,
    right: *const f32,
    stride: usize,
    sums: *mut f32,
) {
    macro_rules! with_rows {
        ($($count:literal)*) => {
            match rows {
                // SAFETY: the caller's promise. The first condition leaves out what the level has no registers for.
                $($count if A::Vector::ROWS >= $count => unsafe {
                    add_tile_of::<A, $count, VECTORS>(left, right, stride, sums)
                },)*
                _ => {}
            }
        };
    }
    with_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
}

/// # Safety
/// As [`add_rows`] says.
#[inline(always)]
unsafe fn add_tile_of<A: Arithmetic, const ROWS: usize, const VECTORS: usize>(
    left: *const f32,
    right: *const f32,
    stride: usize,
    sums: *mut f32,
) {
    let lanes = A::Vector::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        let mut tile = [[A::Vector::splat(0.0); VECTORS]; ROWS];
        for k in 0..2 * lanes / A::UNIT {
            let right = right.add(k * stride);
            let mut factors = [A::Vector::splat(0.0); VECTORS];
            for (vector, factor) in factors.iter_mut().enumerate() {
                *factor = A::Vector::load(right.add(vector * lanes));
            }
            for (row, tile) in tile.iter_mut().enumerate() {
                let weight = A::Vector::splat(*left.add(row * 2 * lanes + k));
                for (sum, factor) in tile.iter_mut().zip(&factors) {
                    *sum = A::add_product(weight, *factor, *sum);
                }
            }
        }
        for (row, tile) in tile.iter().enumerate() {
            for (vector, sum) in tile.iter().enumerate() {
                let sums = sums.add(row * stride + vector * lanes);
                A::Vector::load(sums).add(*sum).store(sums);
            }
        }
    }
}
