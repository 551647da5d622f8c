//! Vectors of 16 pairs of bfloat16: each step adds two products to each of 16 sums.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::microkernel::LeftFactor;
use super::panels::Pair;

pub(super) const ROWS: usize = 12;
pub(super) const COLUMNS: usize = 2 * LANES;
const LANES: usize = 16;

/// See [`AddProduct`](super::microkernel::AddProduct).
///
/// # Safety
/// As said there; the processor must have AVX-512F and AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn add_product<L: LeftFactor<Pair>>(
    steps: usize,
    left: L,
    right: *const Pair,
    sums: *mut f32,
) {
    let mut tile: [[__m512; 2]; ROWS] = [[_mm512_setzero_ps(); 2]; ROWS];
    for k in 0..steps {
        // SAFETY: k is below the steps, and the caller promises so many steps of both factors.
        unsafe {
            let right = right.add(k * COLUMNS);
            let first = pairs(_mm512_loadu_si512(right.cast()));
            let second = pairs(_mm512_loadu_si512(right.add(LANES).cast()));
            for (row, tile) in tile.iter_mut().enumerate() {
                let factor = pairs(_mm512_set1_epi32(left.element::<ROWS>(row, k).0.cast_signed()));
                tile[0] = _mm512_dpbf16_ps(tile[0], factor, first);
                tile[1] = _mm512_dpbf16_ps(tile[1], factor, second);
            }
        }
    }
    for (row, values) in tile.iter().enumerate() {
        for (part, value) in values.iter().enumerate() {
            // SAFETY: the caller promises that the tile is there and ours.
            unsafe {
                let sums = sums.add(row * COLUMNS + part * LANES);
                _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_loadu_ps(sums), *value));
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits, and any bits are either.
    unsafe { std::mem::transmute(bits) }
}
