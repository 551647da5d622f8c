//! Vectors of 8 floats: 12 of the 16 registers hold sums.

use std::arch::x86_64::{
    __m256, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_storeu_ps,
};

use super::microkernel::LeftFactor;

pub(super) const ROWS: usize = 6;
pub(super) const COLUMNS: usize = 2 * LANES;
const LANES: usize = 8;
/// Steps of a left panel that are fetched ahead.
const AHEAD: usize = 64;

/// See [`AddProduct`](super::microkernel::AddProduct).
///
/// # Safety
/// As said there; the processor must have AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn add_product<L: LeftFactor<f32>>(
    depth: usize,
    left: L,
    right: *const f32,
    sums: *mut f32,
) {
    let mut tile: [[__m256; 2]; ROWS] = [[_mm256_setzero_ps(); 2]; ROWS];
    for k in 0..depth {
        // SAFETY: k is below depth, and the caller promises so many steps of both factors.
        unsafe {
            let right = right.add(k * COLUMNS);
            left.prefetch::<ROWS>(k + AHEAD);
            let (first, second) = (_mm256_loadu_ps(right), _mm256_loadu_ps(right.add(LANES)));
            for (row, tile) in tile.iter_mut().enumerate() {
                let factor = _mm256_set1_ps(left.element::<ROWS>(row, k));
                tile[0] = _mm256_fmadd_ps(factor, first, tile[0]);
                tile[1] = _mm256_fmadd_ps(factor, second, tile[1]);
            }
        }
    }
    for (row, values) in tile.iter().enumerate() {
        for (part, value) in values.iter().enumerate() {
            // SAFETY: the caller promises that this row of the tile is there and ours.
            unsafe {
                let sums = sums.add(row * COLUMNS + part * LANES);
                _mm256_storeu_ps(sums, _mm256_add_ps(_mm256_loadu_ps(sums), *value));
            }
        }
    }
}
