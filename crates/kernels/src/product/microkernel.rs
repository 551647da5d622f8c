use super::level::Level;
use super::packed::Side;
use super::panels::{Element, Pair, Source};
use super::parts::{Order, Parts};
use super::portable;
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, avx512, avx512bf16};

/// Of the kernels that take a left factor row by row: by tiles, and in float32 by vectors beside them.
pub(super) const ROWS_OF_TILES: [usize; 2] = [32, 12];
/// The most columns that a tile has at any level.
pub(super) const MAX_COLUMNS: usize = 32;

/// The innermost piece of a product: a tile of `rows` by `columns` sums that stays in registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Microkernel<E = f32> {
    pub(super) rows: usize,
    /// The width of a panel of the left factor: `rows`, or 1 where the factor is `rows` panels of one row each, which lie beside each other.
    pub(super) left_width: usize,
    /// The width of a panel of the right factor.
    pub(super) columns: usize,
    /// The level that it was made for.
    pub(super) level: Level,
    /// Whether a thread must be [`configured`](Self::configured) for it.
    needs_tiles: bool,
    add_product: AddProduct<E, Panel<E>>,
    /// For factors whose rows are multiplied as they are.
    add_product_of_rows: Option<AddProduct<E, Rows<E>>>,
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

    /// Where the first row begins, and how many bytes from one to the next, if all steps of a row are beside each other.
    fn rows(self) -> Option<(*const E, usize)> {
        None
    }

    /// Has the processor read a step ahead of its use; it need not be there.
    fn prefetch<const ROWS: usize>(self, _step: usize) {}
}

/// A panel: all rows of a step beside each other.
#[derive(Clone, Copy)]
pub(super) struct Panel<E>(pub(super) *const E);

impl<E: Element> LeftFactor<E> for Panel<E> {
    #[inline(always)]
    unsafe fn element<const ROWS: usize>(self, row: usize, step: usize) -> E {
        // SAFETY: the caller's promise.
        unsafe { *self.0.add(step * ROWS + row) }
    }

    #[inline(always)]
    fn prefetch<const ROWS: usize>(self, step: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let place = self.0.wrapping_add(step * ROWS);
            // SAFETY: a hint that reads nothing; any address will do.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) };
        }
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

    #[inline(always)]
    fn rows(self) -> Option<(*const E, usize)> {
        Some((self.first, self.stride))
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
            Level::Avx512 | Level::Avx512Bf16 | Level::Amx if Level::Avx512.is_available() => Self {
                rows: avx512::ROWS,
                left_width: avx512::ROWS,
                columns: avx512::COLUMNS,
                level,
                needs_tiles: false,
                add_product: avx512::add_product,
                add_product_of_rows: Some(avx512::add_product),
            },
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 if level.is_available() => Self {
                rows: avx2::ROWS,
                left_width: avx2::ROWS,
                columns: avx2::COLUMNS,
                level,
                needs_tiles: false,
                add_product: avx2::add_product,
                add_product_of_rows: Some(avx2::add_product),
            },
            #[cfg(any(target_arch = "aarch64", test))]
            Level::Neon => Self {
                rows: portable::NEON_ROWS,
                left_width: portable::NEON_ROWS,
                columns: portable::NEON_COLUMNS,
                level,
                needs_tiles: false,
                add_product: portable::add_product::<
                    _,
                    { portable::NEON_ROWS },
                    { portable::NEON_COLUMNS },
                    true,
                >,
                add_product_of_rows: Some(
                    portable::add_product::<_, { portable::NEON_ROWS }, { portable::NEON_COLUMNS }, true>,
                ),
            },
            _ => Self {
                rows: portable::ROWS,
                left_width: portable::ROWS,
                columns: portable::COLUMNS,
                level: Level::Portable,
                needs_tiles: false,
                add_product: portable::add_product::<_, { portable::ROWS }, { portable::COLUMNS }, false>,
                add_product_of_rows: Some(
                    portable::add_product::<_, { portable::ROWS }, { portable::COLUMNS }, false>,
                ),
            },
        }
    }

    /// The same for left factors that are packed row by row.
    pub(super) fn of_rows(self) -> Self {
        Self { left_width: 1, ..self }
    }
}

impl Microkernel<Pair> {
    /// The one for levels that multiply bfloat16.
    pub(super) fn of_pairs(level: Level) -> Option<Self> {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 if level.is_available() => Some(Self {
                rows: avx512bf16::ROWS,
                left_width: avx512bf16::ROWS,
                columns: avx512bf16::COLUMNS,
                level,
                needs_tiles: false,
                add_product: avx512bf16::add_product,
                add_product_of_rows: Some(avx512bf16::add_product),
            }),
            #[cfg(target_arch = "x86_64")]
            Level::Amx if level.is_available() => Some(Self {
                rows: amx::ROWS,
                left_width: 1,
                columns: amx::COLUMNS,
                level,
                needs_tiles: true,
                add_product: amx::add_product,
                add_product_of_rows: Some(amx::add_product),
            }),
            // So that all around the tiles is tested everywhere.
            #[cfg(all(target_arch = "x86_64", any(test, feature = "model-of-tiles")))]
            Level::Amx => Some(Self {
                rows: amx::ROWS,
                left_width: 1,
                columns: amx::COLUMNS,
                level,
                needs_tiles: false,
                add_product: amx::model::add_product,
                add_product_of_rows: Some(amx::model::add_product),
            }),
            _ => None,
        }
    }
}

/// The function of a module that multiplies so many parts of the left factor by so many of the right one.
macro_rules! product_of_parts {
    ($parts:expr, $($module:ident)::+) => {
        match $parts {
            (1, 1) => $($module::)+add_product_of_parts::<PARTS, 1, 1>,
            (2, 1) => $($module::)+add_product_of_parts::<PARTS, 2, 1>,
            (1, 2) => $($module::)+add_product_of_parts::<PARTS, 1, 2>,
            (3, 1) => $($module::)+add_product_of_parts::<PARTS, 3, 1>,
            (1, 3) => $($module::)+add_product_of_parts::<PARTS, 1, 3>,
            (3, 2) => $($module::)+add_product_of_parts::<PARTS, 3, 2>,
            (2, 3) => $($module::)+add_product_of_parts::<PARTS, 2, 3>,
            _ => $($module::)+add_product_of_parts::<PARTS, PARTS, PARTS>,
        }
    };
}

impl<const PARTS: usize> Microkernel<Parts<PARTS>> {
    /// The one for levels that multiply float32 in parts, by a weight that has `weight_parts` at most, with the orders of the left and the right
    /// factor's numbers. Depths are multiples of 32.
    pub(super) fn in_parts(level: Level, side: Side, weight_parts: usize) -> Option<(Self, [Order; 2])> {
        let parts = match side {
            Side::Left => (PARTS.min(weight_parts), PARTS),
            Side::Right => (PARTS, PARTS.min(weight_parts)),
        };
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 if level.is_available() && PARTS == 1 => {
                let kernel = Self {
                    rows: avx512bf16::ROWS,
                    left_width: avx512bf16::ROWS,
                    columns: avx512bf16::COLUMNS,
                    level,
                    needs_tiles: false,
                    add_product: avx512bf16::add_product_of_parts,
                    add_product_of_rows: None,
                };
                let pairs = |width| Order::Pairs { width };
                Some((kernel, [pairs(avx512bf16::ROWS), pairs(avx512bf16::COLUMNS)]))
            }
            #[cfg(target_arch = "x86_64")]
            Level::Amx if level.is_available() => {
                let kernel = Self {
                    rows: amx::ROWS,
                    left_width: amx::ROWS,
                    columns: amx::COLUMNS,
                    level,
                    needs_tiles: true,
                    add_product: product_of_parts!(parts, amx),
                    add_product_of_rows: None,
                };
                Some((kernel, [Order::Tiles, Order::Pairs { width: amx::COLUMNS }]))
            }
            #[cfg(all(target_arch = "x86_64", any(test, feature = "model-of-tiles")))]
            Level::Amx => {
                let kernel = Self {
                    rows: amx::ROWS,
                    left_width: amx::ROWS,
                    columns: amx::COLUMNS,
                    level,
                    needs_tiles: false,
                    add_product: product_of_parts!(parts, amx::model),
                    add_product_of_rows: None,
                };
                Some((kernel, [Order::Tiles, Order::Pairs { width: amx::COLUMNS }]))
            }
            _ => None,
        }
    }
}

impl<E: Element> Microkernel<E> {
    /// What a thread holds while it multiplies.
    pub(super) fn configured(&self) -> impl Sized + use<E> {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: whoever made this has asked whether the processor has the level.
        return self.needs_tiles.then(|| unsafe { amx::Configured::new() });
    }

    /// Adds the product of two panels of equal depth to a tile, `rows * columns` sums row by row.
    pub(super) fn add_product(&self, left: &[E], right: &[E], tile: &mut [f32]) {
        let steps = left.len() / self.rows;
        assert!(
            self.left_width == self.rows
                && left.len() == steps * self.rows
                && right.len() == steps * self.columns
        );
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
        let add_product = self.add_product_of_rows.expect("a microkernel that multiplies rows");
        assert!(S::IS_AS_STEPS);
        let steps = right.len() / self.columns;
        assert!(right.len() == steps * self.columns && tile.len() == self.rows * self.columns);
        assert!(left.values.len() >= (self.rows - 1) * left.stride + steps * S::PER_STEP);
        let rows = Rows { first: left.values.as_ptr().cast(), stride: left.stride * size_of::<S>() };
        // SAFETY: the lengths are as the lines above say; an element is as many numbers as a step has, at any address. Whoever made this
        // has asked whether the processor has the level.
        unsafe { add_product(steps, rows, right.as_ptr(), tile.as_mut_ptr()) }
    }
}
