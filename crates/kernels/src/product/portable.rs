//! Plain code that compilers turn into the vectors which every processor of the target has.

pub(super) const ROWS: usize = 4;
pub(super) const COLUMNS: usize = 8;

/// See [`AddProduct`](super::microkernel::AddProduct).
///
/// # Safety
/// As said there.
pub(super) unsafe fn add_product(depth: usize, left: *const f32, right: *const f32, sums: *mut f32) {
    // SAFETY: the caller promises these lengths.
    let (left, right) = unsafe {
        (std::slice::from_raw_parts(left, depth * ROWS), std::slice::from_raw_parts(right, depth * COLUMNS))
    };
    let (left, _) = left.as_chunks::<ROWS>();
    let (right, _) = right.as_chunks::<COLUMNS>();
    let mut tile = [[0f32; COLUMNS]; ROWS];
    for (left, right) in left.iter().zip(right) {
        for row in 0..ROWS {
            for column in 0..COLUMNS {
                tile[row][column] += left[row] * right[column];
            }
        }
    }
    for (row, values) in tile.iter().enumerate() {
        // SAFETY: the caller promises that this row of the tile is there and ours.
        let sums = unsafe { std::slice::from_raw_parts_mut(sums.add(row * COLUMNS), COLUMNS) };
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
}
