//! The best approximation of a matrix by one of a given rank, from its singular values (Eckart and Young, 1936).

use nalgebra::DMatrix;

use crate::Result;
use crate::lora::LoraError;

/// A matrix in double precision.
pub(super) type Matrix = DMatrix<f64>;

/// Columns beyond the rank that the search for singular vectors carries along, and how often it repeats. Of noise, whose singular values hardly
/// fall, this leaves an error within a thousandth of the smallest possible one (see the tests; five rounds leave 0.23% at rank 32).
const OVERSAMPLING: usize = 16;
const POWER_ITERATIONS: usize = 10;
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

impl LowRank {
    /// A product that is kept as it is.
    ///
    /// # Errors
    /// When it has values that are no numbers; `what` names it.
    pub(super) fn whole(up: Matrix, down: Matrix, what: &str) -> Result<Self> {
        if up.iter().chain(&down).any(|value| !value.is_finite()) {
            return Err(LoraError::NotDecomposed { what: what.to_string() }.into());
        }
        // The sum of the squares of the product's elements, without the product.
        let norm = up.tr_mul(&up).dot(&(&down * down.transpose())).max(0.0);
        Ok(Self { up, down, energy: Energy { total: norm, kept: norm } })
    }
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
    let not_decomposed = || LoraError::NotDecomposed { what: what.to_string() };
    if matrix.iter().any(|value| !value.is_finite()) {
        return Err(not_decomposed().into());
    }
    let is_wide = matrix.ncols() > matrix.nrows();
    let qr = if is_wide { matrix.transpose().qr() } else { matrix.qr() };
    let mut scaled = if is_wide { qr.r().transpose() } else { qr.r() };
    let right = orthogonalize(&mut scaled).ok_or_else(not_decomposed)?;
    let squares: Vec<f64> = scaled.column_iter().map(|column| column.norm_squared()).collect();
    let mut order: Vec<usize> = (0..squares.len()).collect();
    order.sort_by(|one, other| squares[*other].total_cmp(&squares[*one]));
    order.truncate(rank);
    let kept = order.iter().map(|column| squares[*column]).sum();
    let (left, right) = (scaled.select_columns(&order), right.select_columns(&order));
    let (up, down) = match is_wide {
        true => (left, (qr.q() * right).transpose()),
        false => (qr.q() * left, right.transpose()),
    };
    Ok(LowRank { up, down, energy: Energy { total: squares.iter().sum(), kept } })
}

/// Turns the columns of a square matrix until each is orthogonal to all others, and gives the product of the turns: then
/// `matrix = columns @ turns^T`, and the columns' lengths are the singular values. One-sided Jacobi (Hestenes, 1958; Demmel and Veselic, 1992), which
/// is as exact for matrices of low rank and equal singular values as for others. `None` where it does not end.
fn orthogonalize(columns: &mut Matrix) -> Option<Matrix> {
    const MOST_ROUNDS: usize = 64;
    const ORTHOGONAL: f64 = 1e-14;
    let side = columns.ncols();
    let mut turns = Matrix::identity(side, side);
    // Columns so short are rounding errors of zeros.
    let shortest = columns.norm() * f64::EPSILON * 1e-3;
    for _ in 0..MOST_ROUNDS {
        let mut is_done = true;
        for i in 0..side {
            for j in i + 1..side {
                let (one, other) = (columns.column(i), columns.column(j));
                let (a, b, both) = (one.norm_squared(), other.norm_squared(), one.dot(&other));
                let lengths = (a * b).sqrt();
                if a.min(b) <= shortest * shortest || both.abs() <= ORTHOGONAL * lengths {
                    continue;
                }
                is_done = false;
                let zeta = (b - a) / (2.0 * both);
                let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                turn(columns, (i, j), cosine, cosine * tangent);
                turn(&mut turns, (i, j), cosine, cosine * tangent);
            }
        }
        if is_done {
            return Some(turns);
        }
    }
    None
}

/// Turns two columns towards each other by an angle.
fn turn(matrix: &mut Matrix, (i, j): (usize, usize), cosine: f64, sine: f64) {
    let (mut one, mut other) = matrix.columns_range_pair_mut(i, j);
    for (one, other) in one.iter_mut().zip(other.iter_mut()) {
        (*one, *other) = (cosine * *one - sine * *other, sine * *one + cosine * *other);
    }
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

    /// Values that look random, from -1 to 1.
    fn noise(rows: usize, columns: usize) -> Matrix {
        let mut state = 1u64;
        Matrix::from_fn(rows, columns, |_, _| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
    }

    /// Noise has the flattest singular values that there are.
    #[test]
    fn noise_is_approximated_as_well_as_can_be() {
        let matrix = noise(400, 400);
        let exact = decompose(matrix.clone(), 400, "test").unwrap();
        assert!((&matrix - &exact.up * &exact.down).norm() <= 1e-12 * matrix.norm());
        for rank in [1, 8, 32, 128] {
            let best = exact.up.columns(rank, 400 - rank).norm();
            let low = truncate(&matrix, rank, "test").unwrap();
            let excess = (&matrix - &low.up * &low.down).norm() / best - 1.0;
            println!("rank {rank}: {:.5}% above the smallest error", 100.0 * excess);
            assert!(excess < 1e-3, "rank {rank}: {excess}");
        }
    }

    /// Singular values that are equal or zero are where decompositions go wrong.
    #[test]
    fn whole_matrices_come_back_whatever_their_rank() {
        let rank_two = noise(60, 2) * noise(2, 40);
        let blocks = Matrix::from_fn(60, 40, |i, j| f64::from(u8::from(i / 20 == j / 20)));
        let cases = [
            Matrix::zeros(60, 40),
            Matrix::identity(60, 40),
            Matrix::from_element(60, 40, 1.0),
            rank_two,
            blocks,
        ];
        for (case, matrix) in cases.into_iter().enumerate() {
            for matrix in [matrix.transpose(), matrix] {
                let low = truncate(&matrix, 40, "test").unwrap();
                let error = (&matrix - &low.up * &low.down).norm();
                assert!(error <= 1e-12 * matrix.norm(), "case {case}: {error} of {}", matrix.norm());
            }
        }
    }

    #[test]
    fn the_norm_of_a_product_is_its_matrix_norm() {
        let (up, down) = (noise(30, 5), noise(5, 20));
        let norm = (&up * &down).norm_squared();
        assert!((LowRank::whole(up, down, "test").unwrap().energy.kept / norm - 1.0).abs() < 1e-12);
    }

    #[test]
    fn what_is_no_number_is_an_error() {
        let matrix = Matrix::from_element(4, 4, f64::NAN);
        assert!(truncate(&matrix, 2, "layer x").unwrap_err().to_string().contains("layer x"));
    }
}
