//! Plain code that compilers turn into the vectors which every processor of the target has.

use super::microkernel::LeftFactor;

pub(super) const ROWS: usize = 4;
pub(super) const COLUMNS: usize = 8;
#[cfg(any(target_arch = "aarch64", test))]
/// For the 32 registers of four numbers that NEON has: 24 hold sums.
pub(super) const NEON_ROWS: usize = 6;
#[cfg(any(target_arch = "aarch64", test))]
pub(super) const NEON_COLUMNS: usize = 16;

/// See [`AddProduct`](super::microkernel::AddProduct). `FUSED` where the processor multiplies and adds in one; elsewhere that would be a call for
/// each number.
///
/// # Safety
/// As said there.
pub(super) unsafe fn add_product<
    L: LeftFactor<f32>,
    const ROWS: usize,
    const COLUMNS: usize,
    const FUSED: bool,
>(
    depth: usize,
    left: L,
    right: *const f32,
    sums: *mut f32,
) {
    // SAFETY: the caller promises this length.
    let (right, _) = unsafe { std::slice::from_raw_parts(right, depth * COLUMNS) }.as_chunks::<COLUMNS>();
    let mut tile = [[0f32; COLUMNS]; ROWS];
    for (k, right) in right.iter().enumerate() {
        for (row, sums) in tile.iter_mut().enumerate() {
            // SAFETY: the caller promises so many steps of each row.
            let left = unsafe { left.element::<ROWS>(row, k) };
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = if FUSED { left.mul_add(*right, *sum) } else { *sum + left * right };
            }
        }
    }
    for (row, values) in tile.iter().enumerate() {
        // SAFETY: the caller promises that this row of the tile is there and ours.
        let sums = unsafe { std::slice::from_raw_parts_mut(sums.add(row * COLUMNS), COLUMNS) };
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
}
