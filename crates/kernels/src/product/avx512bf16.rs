//! Vectors of 16 pairs of bfloat16: each step adds two products to each of 16 sums.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_permutexvar_epi16, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::microkernel::{LeftFactor, Panel};
use super::panels::Pair;
use super::parts::Parts;

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

/// The same with [`Parts`] in the order of pairs, one of each number.
///
/// # Safety
/// As [`add_product`]; the steps must be an even number.
pub(super) unsafe fn add_product_of_parts<const PARTS: usize>(
    steps: usize,
    left: Panel<Parts<PARTS>>,
    right: *const Parts<PARTS>,
    sums: *mut f32,
) {
    // SAFETY: the first part of a panel is so many pairs of it; the rest is the caller's promise.
    unsafe { add_product(steps / 2, Panel(left.0.cast()), right.cast(), sums) }
}

/// Two vectors of float32 as pairs of the nearest bfloat16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(crate) fn pairs_of(first: __m512, second: __m512) -> __m512i {
    const SECOND: u16 = 16;
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut lane = 0;
        while lane < 16 {
            order[2 * lane] = lane as u16;
            order[2 * lane + 1] = lane as u16 + SECOND;
            lane += 1;
        }
        order
    };
    // SAFETY: ORDER is 512 bits, and any bits are a vector of whole numbers.
    unsafe {
        // The numbers of the second vector come to the upper half, and from there beside the first's.
        let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
        _mm512_permutexvar_epi16(_mm512_loadu_si512(ORDER.as_ptr().cast()), both)
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits, and any bits are either.
    unsafe { std::mem::transmute(bits) }
}
