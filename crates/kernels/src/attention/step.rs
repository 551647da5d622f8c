//! The step that attention is made of: some queries attend to a block of keys, and what earlier blocks gave them is corrected (the online
//! softmax of Milakov and Gimelshein, 2018; blocked as by Dao et al., 2022).
//!
//! Everything is kept transposed: queries are the lanes of vectors, keys and features are rows. So greatest scores and sums of weights are taken
//! without looking across a vector, and the weights are laid out as a factor of the second product as they are computed.

use std::marker::PhantomData;

use super::arithmetic::Arithmetic;
use super::vector::Vector;

/// Some queries as the lanes of two vectors, and a block of keys.
///
/// A factor consists of units, which are 32 bits: a float32, or two neighbouring bfloat16, of features in `query` and `key` and of keys in
/// `value`.
pub(super) struct Step<'a> {
    /// How many units a query and a key have, a multiple of [`Products::DEPTH`].
    pub(super) depth: usize,
    /// How many features a value has, a multiple of [`Products::ROWS`].
    pub(super) dim: usize,
    pub(super) keys: usize,
    /// `(depth, queries)`.
    pub(super) query: &'a [f32],
    /// As the [`Products`] take them.
    pub(super) key: &'a [f32],
    /// As the [`Products`] take them.
    pub(super) value: &'a [f32],
    /// `(keys, queries)`, added to the scaled scores.
    pub(super) mask: Option<&'a [f32]>,
    /// Not negative.
    pub(super) scale: f32,
    /// Room for `(keys, queries)`, the keys in multiples of [`Products::ROWS`] and of as many as [`Products::DEPTH`] units have.
    pub(super) scores: &'a mut [f32],
    pub(super) state: State<'a>,
}

/// What the keys so far have given.
pub(super) struct State<'a> {
    /// The greatest score of each query, in the unit of the scores, to begin with [`LEAST`].
    pub(super) greatest: &'a mut [f32],
    /// The sum of the weights of each query, to begin with 0.
    pub(super) sum: &'a mut [f32],
    /// `(dim, queries)`, the sums of weighted values, to begin with 0.
    pub(super) output: &'a mut [f32],
}

/// Where the greatest score begins: finite, so that a query all of whose keys are masked gets weights of 0 and not of NaN.
pub(super) const LEAST: f32 = f32::MIN;

/// Cuts `0..count` in shares of at most `most` that differ by at most one.
pub(super) fn shares(count: usize, most: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let parts = count.div_ceil(most);
    (0..parts).map(move |part| count * part / parts..count * (part + 1) / parts)
}

/// How the two products of a step are computed, and in which order their left factors lie.
pub(super) trait Products {
    type Arithmetic: Arithmetic;
    /// Keys and features come in multiples of so many, zeros for what is not there.
    const ROWS: usize;
    /// Units that are summed over come in multiples of so many, zeros for what is not there.
    const DEPTH: usize;

    /// `scores = key * query`, `(keys, queries)`.
    ///
    /// # Safety
    /// The processor must have what the products need. `key` must be valid for reads of `keys * depth` units, `query` of `depth * queries`, and
    /// `scores` for writes of `keys * queries` numbers.
    unsafe fn scores(keys: usize, depth: usize, key: *const f32, query: *const f32, scores: *mut f32);

    /// `output = output * corrections + value * weights`, `(dim, queries)`.
    ///
    /// # Safety
    /// As above: `value` has `units * dim` units, `weights` `units * queries`, and `output` `dim * queries` numbers.
    unsafe fn add_values(
        dim: usize,
        units: usize,
        value: *const f32,
        weights: *const f32,
        output: *mut f32,
        corrections: [<Self::Arithmetic as Arithmetic>::Vector; 2],
    );
}

/// Products by vectors: keys are panels of [`shares`], each `(depth, keys of the panel)`, and values `(units of keys, dim)`.
pub(super) struct Panels<A>(PhantomData<A>);

impl<A: Arithmetic> Products for Panels<A> {
    type Arithmetic = A;
    const ROWS: usize = 1;
    const DEPTH: usize = 1;

    #[inline(always)]
    unsafe fn scores(keys: usize, depth: usize, key: *const f32, query: *const f32, scores: *mut f32) {
        for panel in shares(keys, A::Vector::ROWS) {
            // SAFETY: panels lie one after the other; all of them are what the caller promises.
            unsafe {
                let scores = scores.add(panel.start * 2 * A::Vector::LANES);
                let key = key.add(panel.start * depth);
                product::<A>(panel.len(), depth, key, panel.len(), query, scores, None);
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
        corrections: [A::Vector; 2],
    ) {
        for features in shares(dim, A::Vector::ROWS) {
            // SAFETY: some of the features that the caller promises.
            unsafe {
                let value = value.add(features.start);
                let output = output.add(features.start * 2 * A::Vector::LANES);
                product::<A>(features.len(), units, value, dim, weights, output, Some(corrections));
            }
        }
    }
}

type VectorOf<P> = <<P as Products>::Arithmetic as Arithmetic>::Vector;

/// # Safety
/// The processor must have what the products need.
#[inline(always)]
pub(super) unsafe fn step<P: Products>(step: &mut Step<'_>) {
    let lanes = VectorOf::<P>::LANES;
    let queries = 2 * lanes;
    let Step { depth, dim, keys, .. } = *step;
    let unit = P::Arithmetic::UNIT;
    let (rows, units) = (keys.next_multiple_of(P::ROWS), keys.div_ceil(unit).next_multiple_of(P::DEPTH));
    assert!(depth.is_multiple_of(P::DEPTH) && dim.is_multiple_of(P::ROWS));
    assert!(step.query.len() >= depth * queries && step.key.len() >= depth * rows);
    assert!(step.value.len() >= units * dim && step.scores.len() >= rows.max(units * unit) * queries);
    assert!(step.mask.is_none_or(|mask| mask.len() >= keys * queries));
    let State { greatest, sum, output } = &mut step.state;
    assert!(greatest.len() >= queries && sum.len() >= queries && output.len() >= dim * queries);

    let scores = step.scores.as_mut_ptr();
    // SAFETY: all of these have the lengths that are asserted above.
    unsafe { P::scores(rows, depth, step.key.as_ptr(), step.query.as_ptr(), scores) };

    let (greatest, sum, output) = (greatest.as_mut_ptr(), sum.as_mut_ptr(), output.as_mut_ptr());
    // SAFETY: all of these have the lengths that are asserted above, for rows of two vectors of queries.
    unsafe {
        // 2^(x log2 e) is e^x.
        let mut base = VectorOf::<P>::splat(step.scale * std::f32::consts::LOG2_E);
        if let Some(mask) = step.mask {
            let scale = VectorOf::<P>::splat(step.scale);
            for place in (0..keys * queries).step_by(lanes) {
                let score = VectorOf::<P>::load(scores.add(place));
                let mask = VectorOf::<P>::load(mask.as_ptr().add(place));
                score.mul_add(scale, mask).store(scores.add(place));
            }
            base = VectorOf::<P>::splat(std::f32::consts::LOG2_E);
        }

        let before = [VectorOf::<P>::load(greatest), VectorOf::<P>::load(greatest.add(lanes))];
        let greatest_now = greatest_of::<VectorOf<P>>(keys, scores, before);

        let zero = VectorOf::<P>::splat(0.0);
        let mut sums = [zero; 2];
        for row in 0..keys.div_ceil(unit) {
            for half in 0..2 {
                let first = scores.add(row * unit * queries + half * lanes);
                let first_weight = weight::<P::Arithmetic>(first, greatest_now[half], base);
                sums[half] = sums[half].add(first_weight);
                let mut second_weight = zero;
                if unit == 2 && row * unit + 1 < keys {
                    second_weight = weight::<P::Arithmetic>(first.add(queries), greatest_now[half], base);
                    sums[half] = sums[half].add(second_weight);
                }
                // A unit comes to a row that has been read.
                let place = row * queries + half * lanes;
                P::Arithmetic::unit(first_weight, second_weight).store(scores.add(place));
            }
        }
        for place in (keys.div_ceil(unit) * queries..units * queries).step_by(lanes) {
            zero.store(scores.add(place));
        }

        let mut corrections = [zero; 2];
        for half in 0..2 {
            let start = half * lanes;
            let difference = before[half].sub(greatest_now[half]);
            corrections[half] = difference.mul(base).exp2(P::Arithmetic::EXP2);
            greatest_now[half].store(greatest.add(start));
            let sum = sum.add(start);
            VectorOf::<P>::load(sum).mul_add(corrections[half], sums[half]).store(sum);
        }
        P::add_values(dim, units, step.value.as_ptr(), scores, output, corrections);
    }
}

/// Of the scores at a place. A function and no closure: closures are not always inlined, and outside of the level's function each operation
/// would be a call.
///
/// # Safety
/// The processor must have what the arithmetic needs, and `score` be valid for reads of a vector.
#[inline(always)]
unsafe fn weight<A: Arithmetic>(score: *const f32, greatest: A::Vector, base: A::Vector) -> A::Vector {
    // SAFETY: the caller's promise.
    unsafe { A::Vector::load(score).sub(greatest).mul(base).exp2(A::EXP2) }
}

/// The greater of these two vectors and of `rows` rows of two vectors. Two chains for each: a chain waits for its
/// last comparison.
///
/// # Safety
/// The processor must have the vector's level, and `scores` be valid for reads of so many rows.
#[inline(always)]
unsafe fn greatest_of<V: Vector>(rows: usize, scores: *const f32, [first, second]: [V; 2]) -> [V; 2] {
    let (mut first, mut second, mut other_first, mut other_second) = (first, second, first, second);
    // SAFETY: the caller's promise.
    unsafe {
        for row in 0..rows / 2 {
            let scores = scores.add(row * 4 * V::LANES);
            first = V::load(scores).max(first);
            second = V::load(scores.add(V::LANES)).max(second);
            other_first = V::load(scores.add(2 * V::LANES)).max(other_first);
            other_second = V::load(scores.add(3 * V::LANES)).max(other_second);
        }
        if rows % 2 == 1 {
            let scores = scores.add((rows - 1) * 2 * V::LANES);
            first = V::load(scores).max(first);
            second = V::load(scores.add(V::LANES)).max(second);
        }
        [first.max(other_first), second.max(other_second)]
    }
}

/// A tile of `rows` rows of two vectors, `sum over k < depth of left[k * stride + row] * right[k]`, each sum from k = 0 on. It is stored in
/// `tile`, or added to what is there times the corrections.
///
/// # Safety
/// The processor must have what the arithmetic needs; `left` must be valid for reads of `rows` units from each of `k * stride`, `right` for
/// `depth` times two vectors, and `tile` for reads and writes of `rows` times two vectors.
#[inline(always)]
pub(super) unsafe fn product<A: Arithmetic>(
    rows: usize,
    depth: usize,
    left: *const f32,
    stride: usize,
    right: *const f32,
    tile: *mut f32,
    corrections: Option<[A::Vector; 2]>,
) {
    macro_rules! with_rows {
        ($($count:literal)*) => {
            match rows {
                // SAFETY: the caller's promise. The first condition leaves out what the level has no registers for.
                $($count if A::Vector::ROWS >= $count => unsafe {
                    product_of::<A, $count>(depth, left, stride, right, tile, corrections)
                },)*
                _ => {}
            }
        };
    }
    with_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
}

/// # Safety
/// As [`product`] says.
#[inline(always)]
unsafe fn product_of<A: Arithmetic, const ROWS: usize>(
    depth: usize,
    left: *const f32,
    stride: usize,
    right: *const f32,
    tile: *mut f32,
    corrections: Option<[A::Vector; 2]>,
) {
    let lanes = A::Vector::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[A::Vector::splat(0.0); 2]; ROWS];
        for k in 0..depth {
            let right = right.add(k * 2 * lanes);
            let (first, second) = (A::Vector::load(right), A::Vector::load(right.add(lanes)));
            let left = left.add(k * stride);
            for (row, sums) in sums.iter_mut().enumerate() {
                let factor = A::Vector::splat(*left.add(row));
                sums[0] = A::add_product(factor, first, sums[0]);
                sums[1] = A::add_product(factor, second, sums[1]);
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (half, sum) in sums.iter().enumerate() {
                let tile = tile.add((row * 2 + half) * lanes);
                match corrections {
                    None => sum.store(tile),
                    Some(corrections) => {
                        A::Vector::load(tile).mul_add(corrections[half], *sum).store(tile);
                    }
                }
            }
        }
    }
}
