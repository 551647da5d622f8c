//! Plain code that compilers turn into the vectors which every processor of the target has.

use super::microkernel::LeftFactor;

pub(super) const ROWS: usize = 4;
pub(super) const COLUMNS: usize = 8;

/// See [`AddProduct`](super::microkernel::AddProduct).
///
/// # Safety
/// As said there.
pub(super) unsafe fn add_product<L: LeftFactor<f32>>(
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
            sums.iter_mut().zip(right).for_each(|(sum, right)| *sum += left * right);
        }
    }
    for (row, values) in tile.iter().enumerate() {
        // SAFETY: the caller promises that this row of the tile is there and ours.
        let sums = unsafe { std::slice::from_raw_parts_mut(sums.add(row * COLUMNS), COLUMNS) };
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
}
