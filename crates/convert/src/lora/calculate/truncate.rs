//! The best approximation of a matrix by one of a given rank, from its singular values (Eckart and Young, 1936).

use nalgebra::DMatrix;

use crate::Result;
use crate::lora::LoraError;

/// A matrix in double precision.
pub(super) type Matrix = DMatrix<f64>;

/// Columns beyond the rank that the search for singular vectors carries along, and how often it repeats. Of matrices whose singular
/// values hardly fall this leaves an error well within a thousandth of the smallest possible one.
const OVERSAMPLING: usize = 16;
const POWER_ITERATIONS: usize = 5;
/// Below this side the exact decomposition is as quick.
const EXACT_SIDE: usize = 96;

/// `up @ down`, of a rank that was asked for.
#[derive(Debug, Clone)]
pub(super) struct LowRank {
    /// `(rows, rank)`.
    pub(super) up: Matrix,
    /// `(rank, columns)`.
    pub(super) down: Matrix,
    /// The sum of the squares of what it stands for, and the part of it that it keeps.
    pub(super) energy: Energy,
}

/// Sums of squares of matrix elements.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Energy {
    pub(super) total: f64,
    pub(super) kept: f64,
}

impl Energy {
    pub(super) fn add(&mut self, other: Self) {
        self.total += other.total;
        self.kept += other.kept;
    }

    /// The kept part of the Frobenius norm, from 0 to 1.
    pub(super) fn kept_norm(self) -> f64 {
        if self.total > 0.0 { (self.kept / self.total).sqrt().min(1.0) } else { 1.0 }
    }
}

/// The best approximation of `matrix` of at most `rank`. `what` names it in errors.
///
/// Large matrices are decomposed in the space that a few rounds of subspace iteration find (Halko, Martinsson and Tropp, 2011, algorithm 4.4),
/// begun with the same numbers each time.
pub(super) fn truncate(matrix: &Matrix, rank: usize, what: &str) -> Result<LowRank> {
    let side = matrix.nrows().min(matrix.ncols());
    let sampled = rank.saturating_add(OVERSAMPLING);
    let total = matrix.norm_squared();
    if side <= EXACT_SIDE || sampled.saturating_mul(2) >= side {
        let mut exact = decompose(matrix.clone(), rank, what)?;
        exact.energy.total = total;
        return Ok(exact);
    }
    let mut space = orthonormal(matrix * signs(matrix.ncols(), sampled));
    for _ in 0..POWER_ITERATIONS {
        let other = orthonormal(matrix.tr_mul(&space));
        space = orthonormal(matrix * other);
    }
    let small = decompose(space.tr_mul(matrix), rank, what)?;
    let energy = Energy { total, kept: small.energy.kept };
    Ok(LowRank { up: space * small.up, down: small.down, energy })
}

/// As [`truncate`] of `up @ down`, without multiplying them.
pub(super) fn truncate_product(up: &Matrix, down: &Matrix, rank: usize, what: &str) -> Result<LowRank> {
    let inner = up.ncols();
    if inner > up.nrows().min(down.ncols()) {
        return truncate(&(up * down), rank, what);
    }
    let (left, right) = (up.clone().qr(), down.transpose().qr());
    let core = decompose(left.r() * right.r().transpose(), rank, what)?;
    Ok(LowRank { up: left.q() * core.up, down: core.down * right.q().transpose(), energy: core.energy })
}

/// The exact decomposition, cut off. The singular values go to the left.
fn decompose(matrix: Matrix, rank: usize, what: &str) -> Result<LowRank> {
    // The library's own is quickest for tall matrices.
    if matrix.iter().any(|value| !value.is_finite()) {
        return Err(LoraError::NotDecomposed { what: what.to_string() }.into());
    }
    let is_wide = matrix.ncols() > matrix.nrows();
    let tall = if is_wide { matrix.transpose() } else { matrix };
    let (basis, square) = if tall.nrows() > tall.ncols() {
        let qr = tall.qr();
        (Some(qr.q()), qr.r())
    } else {
        (None, tall)
    };
    const MOST_ROUNDS: usize = 10_000;
    let (values, left, right) = square
        .try_svd(true, true, f64::EPSILON, MOST_ROUNDS)
        .and_then(|svd| Some((svd.singular_values, svd.u?, svd.v_t?)))
        .ok_or_else(|| LoraError::NotDecomposed { what: what.to_string() })?;
    let left = basis.map_or_else(|| left.clone(), |basis| basis * &left);
    let rank = rank.min(values.len());
    let kept: f64 = values.iter().take(rank).map(|value| value * value).sum();
    let (left, right) = (left.columns(0, rank).into_owned(), right.rows(0, rank).into_owned());
    let (mut up, down) = if is_wide { (right.transpose(), left.transpose()) } else { (left, right) };
    for (mut column, value) in up.column_iter_mut().zip(values.iter()) {
        column *= *value;
    }
    Ok(LowRank { up, down, energy: Energy { total: values.norm_squared(), kept } })
}

fn orthonormal(matrix: Matrix) -> Matrix {
    matrix.qr().q()
}

/// Plus and minus ones that look random and are the same each time (Steele, Lea and Flood's SplitMix64, 2014).
fn signs(rows: usize, columns: usize) -> Matrix {
    let mut state = 0u64;
    // In the order of memory, column by column.
    Matrix::from_fn(rows, columns, |_, _| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (mixed ^ (mixed >> 31)) & 1 == 0 { 1.0 } else { -1.0 }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix whose singular values fall as `0.97^i`.
    fn falling(rows: usize, columns: usize) -> Matrix {
        let side = rows.min(columns);
        let mut left = orthonormal(Matrix::from_fn(rows, side, |i, j| ((i * 31 + j * 17 + 7) as f64).sin()));
        let right = orthonormal(Matrix::from_fn(columns, side, |i, j| ((i * 13 + j * 29 + 3) as f64).cos()));
        for (i, mut column) in left.column_iter_mut().enumerate() {
            column *= 0.97f64.powi(i as i32);
        }
        left * right.transpose()
    }

    fn best_error(side: usize, rank: usize) -> f64 {
        (rank..side).map(|i| 0.97f64.powi(2 * i as i32)).sum::<f64>().sqrt()
    }

    #[test]
    fn the_error_is_the_smallest_possible() {
        for (rows, columns) in [(40, 60), (60, 40), (200, 300), (300, 200)] {
            let matrix = falling(rows, columns);
            for rank in [1, 4, 20] {
                let low = truncate(&matrix, rank, "test").unwrap();
                assert_eq!((low.up.shape(), low.down.shape()), ((rows, rank), (rank, columns)));
                let error = (&matrix - &low.up * &low.down).norm();
                let best = best_error(rows.min(columns), rank);
                assert!(error < best * 1.001, "{rows}x{columns} rank {rank}: {error} and {best}");
                let rest = (low.energy.total - low.energy.kept).sqrt();
                assert!((rest / best - 1.0).abs() < 2e-3, "{rest} and {best}");
            }
        }
    }

    #[test]
    fn a_product_is_cut_as_its_matrix_is() {
        let (up, down) = (falling(50, 12), falling(12, 70));
        let product = truncate_product(&up, &down, 5, "test").unwrap();
        let matrix = truncate(&(&up * &down), 5, "test").unwrap();
        assert!((&product.up * &product.down - &matrix.up * &matrix.down).norm() < 1e-9);
        assert!((product.energy.kept - matrix.energy.kept).abs() < 1e-9);
    }

    #[test]
    fn what_is_no_number_is_an_error() {
        let matrix = Matrix::from_element(4, 4, f64::NAN);
        assert!(truncate(&matrix, 2, "layer x").unwrap_err().to_string().contains("layer x"));
    }
}
