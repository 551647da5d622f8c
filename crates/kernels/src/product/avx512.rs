//! Vectors of 16 floats: 24 of the 32 registers hold sums.

use std::arch::x86_64::{
    __m512, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_storeu_ps,
};

use super::microkernel::LeftFactor;

pub(super) const ROWS: usize = 12;
pub(super) const COLUMNS: usize = 2 * LANES;
const LANES: usize = 16;
/// Steps of a left panel that are fetched ahead.
const AHEAD: usize = 64;

/// See [`AddProduct`](super::microkernel::AddProduct).
///
/// # Safety
/// As said there; the processor must have AVX-512F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn add_product<L: LeftFactor<f32>>(
    depth: usize,
    left: L,
    right: *const f32,
    sums: *mut f32,
) {
    let mut tile: [[__m512; 2]; ROWS] = [[_mm512_setzero_ps(); 2]; ROWS];
    for k in 0..depth {
        // SAFETY: k is below depth, and the caller promises so many steps of both factors.
        unsafe {
            let right = right.add(k * COLUMNS);
            left.prefetch::<ROWS>(k + AHEAD);
            let (first, second) = (_mm512_loadu_ps(right), _mm512_loadu_ps(right.add(LANES)));
            for (row, tile) in tile.iter_mut().enumerate() {
                let factor = _mm512_set1_ps(left.element::<ROWS>(row, k));
                tile[0] = _mm512_fmadd_ps(factor, first, tile[0]);
                tile[1] = _mm512_fmadd_ps(factor, second, tile[1]);
            }
        }
    }
    for (row, values) in tile.iter().enumerate() {
        for (part, value) in values.iter().enumerate() {
            // SAFETY: the caller promises that this row of the tile is there and ours.
            unsafe {
                let sums = sums.add(row * COLUMNS + part * LANES);
                _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_loadu_ps(sums), *value));
            }
        }
    }
}
