#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use super::{level::Level, portable};

/// The most numbers that a tile has at any level.
pub(super) const MAX_TILE: usize = 12 * 32;

/// The innermost piece of a product: a tile of `rows` by `columns` sums that stays in registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Microkernel {
    /// The width of a panel of the left factor.
    pub(super) rows: usize,
    /// The width of a panel of the right factor.
    pub(super) columns: usize,
    add_product: AddProduct,
}

/// `sums[row * stride + column] += sum over k < depth of left[k * rows + row] * right[k * columns + column]`, summed from k = 0 on
/// before it is added: so a sum's bits depend on nothing but its own factors.
///
/// # Safety
/// `left` must be valid for reads of `depth * rows` numbers and `right` of `depth * columns`; `sums` must be valid for reads and
/// writes of `columns` numbers from each of `row * stride`, which nothing else uses meanwhile. The processor must have the level.
pub(super) type AddProduct =
    unsafe fn(depth: usize, left: *const f32, right: *const f32, sums: *mut f32, stride: usize);

impl Microkernel {
    /// The one for a level; the portable one where the processor does not have it.
    pub(super) fn new(level: Level) -> Self {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if level.is_available() => {
                Self { rows: avx512::ROWS, columns: avx512::COLUMNS, add_product: avx512::add_product }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 if level.is_available() => {
                Self { rows: avx2::ROWS, columns: avx2::COLUMNS, add_product: avx2::add_product }
            }
            _ => {
                Self { rows: portable::ROWS, columns: portable::COLUMNS, add_product: portable::add_product }
            }
        }
    }

    /// Adds the product of two panels of equal depth to the tile whose first number `sums` points to.
    ///
    /// # Safety
    /// `sums` must be valid for reads and writes of `columns` numbers from each of `row * stride`, which nothing else uses meanwhile.
    pub(super) unsafe fn add_product(&self, left: &[f32], right: &[f32], sums: *mut f32, stride: usize) {
        let depth = left.len() / self.rows;
        assert!(left.len() == depth * self.rows && right.len() == depth * self.columns);
        // SAFETY: the panels are as long as the line above says, `sums` is the caller's promise, and `new` has asked whether the
        // processor has the level.
        unsafe { (self.add_product)(depth, left.as_ptr(), right.as_ptr(), sums, stride) }
    }
}
