use super::level::Level;
use super::panels::{Element, Pair};
use super::portable;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, avx512bf16};

/// The most columns that a tile has at any level.
pub(super) const MAX_COLUMNS: usize = 32;

/// The innermost piece of a product: a tile of `rows` by `columns` sums that stays in registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Microkernel<E = f32> {
    /// The width of a panel of the left factor.
    pub(super) rows: usize,
    /// The width of a panel of the right factor.
    pub(super) columns: usize,
    /// The level that it was made for.
    pub(super) level: Level,
    add_product: AddProduct<E>,
}

/// `sums[row * columns + column] += sum over k < steps of left[k * rows + row] * right[k * columns + column]`, summed from k = 0 on
/// before it is added: so a sum's bits depend on nothing but its own factors.
///
/// # Safety
/// `left` must be valid for reads of `steps * rows` elements and `right` of `steps * columns`; `sums` must be valid for reads and
/// writes of `rows * columns` numbers, which nothing else uses meanwhile. The processor must have the level.
pub(super) type AddProduct<E> = unsafe fn(steps: usize, left: *const E, right: *const E, sums: *mut f32);

impl Microkernel<f32> {
    /// The one for a level; the portable one where the processor does not have it.
    pub(super) fn new(level: Level) -> Self {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 if level.is_available() => {
                Self { rows: avx512::ROWS, columns: avx512::COLUMNS, level, add_product: avx512::add_product }
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 if level.is_available() => {
                Self { rows: avx2::ROWS, columns: avx2::COLUMNS, level, add_product: avx2::add_product }
            }
            _ => Self {
                rows: portable::ROWS,
                columns: portable::COLUMNS,
                level: Level::Portable,
                add_product: portable::add_product,
            },
        }
    }
}

impl Microkernel<Pair> {
    /// The one for levels that multiply bfloat16.
    pub(super) fn of_pairs(level: Level) -> Option<Self> {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 if level.is_available() => Some(Self {
                rows: avx512bf16::ROWS,
                columns: avx512bf16::COLUMNS,
                level,
                add_product: avx512bf16::add_product,
            }),
            _ => None,
        }
    }
}

impl<E: Element> Microkernel<E> {
    /// Adds the product of two panels of equal depth to a tile, `rows * columns` sums row by row.
    pub(super) fn add_product(&self, left: &[E], right: &[E], tile: &mut [f32]) {
        let steps = left.len() / self.rows;
        assert!(left.len() == steps * self.rows && right.len() == steps * self.columns);
        assert!(tile.len() == self.rows * self.columns);
        // SAFETY: the panels and the tile are as long as the lines above say, and whoever made this has asked whether the processor has the
        // level.
        unsafe { (self.add_product)(steps, left.as_ptr(), right.as_ptr(), tile.as_mut_ptr()) }
    }
}
