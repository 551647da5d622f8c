use super::level::Level;
use super::panels::{Element, Pair, Source};
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
    add_product: AddProduct<E, Panel<E>>,
    add_product_of_rows: AddProduct<E, Rows<E>>,
}

/// `sums[row * columns + column] += sum over k < steps of left(row, k) * right[k * columns + column]`, summed from k = 0 on before it is
/// added: so a sum's bits depend on nothing but its own factors.
///
/// # Safety
/// `left` must be valid for reads of each of `rows` at each of the steps, `right` for reads of `steps * columns` elements; `sums` must be valid
/// for reads and writes of `rows * columns` numbers, which nothing else uses meanwhile. The processor must have the level.
pub(super) type AddProduct<E, L> = unsafe fn(steps: usize, left: L, right: *const E, sums: *mut f32);

/// Where the numbers of a left factor are.
pub(super) trait LeftFactor<E>: Copy {
    /// # Safety
    /// The element must be there; `rows` is how many the factor has.
    unsafe fn element<const ROWS: usize>(self, row: usize, step: usize) -> E;
}

/// A panel: all rows of a step beside each other.
#[derive(Clone, Copy)]
pub(super) struct Panel<E>(*const E);

impl<E: Element> LeftFactor<E> for Panel<E> {
    #[inline(always)]
    unsafe fn element<const ROWS: usize>(self, row: usize, step: usize) -> E {
        // SAFETY: the caller's promise.
        unsafe { *self.0.add(step * ROWS + row) }
    }
}

/// Rows as they lie in a matrix, `stride` bytes apart: all steps of a row beside each other, at any address.
#[derive(Clone, Copy)]
pub(super) struct Rows<E> {
    first: *const E,
    stride: usize,
}

impl<E: Element> LeftFactor<E> for Rows<E> {
    #[inline(always)]
    unsafe fn element<const ROWS: usize>(self, row: usize, step: usize) -> E {
        // SAFETY: the caller's promise.
        unsafe { self.first.byte_add(row * self.stride).add(step).read_unaligned() }
    }
}

/// The rows of a matrix that a panel would hold, where they are.
#[derive(Clone, Copy)]
pub(super) struct MatrixRows<'a, S> {
    values: &'a [S],
    /// Numbers from one row to the next.
    stride: usize,
}

impl<'a, S> MatrixRows<'a, S> {
    /// Rows that begin `stride` numbers apart, the first with the first of the values.
    pub(super) fn new(values: &'a [S], stride: usize) -> Self {
        Self { values, stride }
    }
}

impl Microkernel<f32> {
    /// The one for a level; the portable one where the processor does not have it.
    pub(super) fn new(level: Level) -> Self {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 if level.is_available() => Self {
                rows: avx512::ROWS,
                columns: avx512::COLUMNS,
                level,
                add_product: avx512::add_product,
                add_product_of_rows: avx512::add_product,
            },
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 if level.is_available() => Self {
                rows: avx2::ROWS,
                columns: avx2::COLUMNS,
                level,
                add_product: avx2::add_product,
                add_product_of_rows: avx2::add_product,
            },
            _ => Self {
                rows: portable::ROWS,
                columns: portable::COLUMNS,
                level: Level::Portable,
                add_product: portable::add_product,
                add_product_of_rows: portable::add_product,
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
                add_product_of_rows: avx512bf16::add_product,
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
        unsafe { (self.add_product)(steps, Panel(left.as_ptr()), right.as_ptr(), tile.as_mut_ptr()) }
    }

    /// The same with rows in place of the left panel.
    pub(super) fn add_product_of_rows<S: Source<E>>(
        &self,
        left: MatrixRows<'_, S>,
        right: &[E],
        tile: &mut [f32],
    ) {
        assert!(S::IS_AS_STEPS);
        let steps = right.len() / self.columns;
        assert!(right.len() == steps * self.columns && tile.len() == self.rows * self.columns);
        assert!(left.values.len() >= (self.rows - 1) * left.stride + steps * S::PER_STEP);
        let rows = Rows { first: left.values.as_ptr().cast(), stride: left.stride * size_of::<S>() };
        // SAFETY: the lengths are as the lines above say; an element is as many numbers as a step has, at any address. Whoever made this
        // has asked whether the processor has the level.
        unsafe { (self.add_product_of_rows)(steps, rows, right.as_ptr(), tile.as_mut_ptr()) }
    }
}
