//! Tiles (AMX): an instruction multiplies 16 rows of 16 pairs of bfloat16 by 16 pairs of 16 columns.
//!
//! A block of 32x32 sums is four tiles, and each step of 16 pairs takes two tiles of each factor. The left factor's rows are read where
//! they lie, all steps of a row beside each other; the right factor's panel is what the vectors' microkernels read too.

use std::mem::MaybeUninit;
#[cfg(target_os = "linux")]
use std::sync::OnceLock;

use super::microkernel::{LeftFactor, Panel};
use super::panels::Pair;
use super::parts::Parts;

/// Rows and columns of a block of sums.
pub(crate) const ROWS: usize = 2 * SIDE;
pub(crate) const COLUMNS: usize = 2 * SIDE;
/// Pairs in depth of a step of tiles.
pub(crate) const PAIRS: usize = SIDE;
/// Rows of a tile, its columns of float32, and its pairs in depth.
const SIDE: usize = 16;

/// The tile instructions of this process: whether the processor has them, and the system lets us use them.
pub(super) fn is_available() -> bool {
    #[cfg(target_os = "linux")]
    {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| has_tiles() && is_permitted())
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// AMX-TILE and AMX-BF16, by CPUID.
#[cfg(target_os = "linux")]
fn has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const BOTH: u32 = 1 << 24 | 1 << 22;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BOTH == BOTH
}

/// Asks the system to save this process's tiles: those 8 kB of a thread are only saved for who has asked.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes nothing but what this process's threads may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 }
}

/// This thread's tiles are configured as long as this lives, and released then: so other code that uses tiles finds them as they are for
/// a new thread, and the system has nothing more to save.
pub(crate) struct Configured(());

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

impl Configured {
    /// # Safety
    /// The processor must have tiles, and the process must have been permitted to use them.
    pub(crate) unsafe fn new() -> Self {
        let mut config =
            TileConfig { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };
        // There are eight tiles; all are of 16 rows of 64 bytes.
        config.bytes_per_row[..8].fill(64);
        config.rows[..8].fill(16);
        // SAFETY: a valid configuration of 64 bytes; the caller promises that tiles are there.
        unsafe { std::arch::asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, preserves_flags)) }
        Self(())
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: who made this has promised that tiles are there. Nobody else's values are lost: the configuration was made by us.
        unsafe { std::arch::asm!("tilerelease", options(nostack, preserves_flags)) }
    }
}

/// A block of sums, row by row.
#[repr(C, align(64))]
pub(crate) struct Block([f32; ROWS * COLUMNS]);

/// What one step of tiles takes of a left factor that does not lie in whole rows.
#[repr(C, align(64))]
struct Gathered<const WIDTH: usize>([[Pair; WIDTH]; SIDE]);

/// What multiplies tiles: the [`Processor`], or plain code in tests.
pub(crate) trait MultiplyTiles {
    /// `block = left * right` over `tile_steps` times 16 pairs, with 32 rows of the left factor `stride` bytes apart, and 32 columns of the right
    /// one beside each other. Each step of tiles is summed from zero before it is added.
    ///
    /// # Safety
    /// The factors must be valid for those reads and the block for writes of 32x32 numbers; the processor's tiles must be [`Configured`].
    unsafe fn multiply(
        tile_steps: usize,
        left: *const Pair,
        stride: usize,
        right: *const Pair,
        block: *mut f32,
    );

    /// The same added to the block, step by step.
    ///
    /// # Safety
    /// As [`multiply`](Self::multiply), and the block must be valid for reads.
    unsafe fn add_product(
        tile_steps: usize,
        left: *const Pair,
        stride: usize,
        right: *const Pair,
        block: *mut f32,
    );
}

/// The tiles of this thread.
pub(crate) struct Processor;

/// See [`AddProduct`](super::microkernel::AddProduct).
///
/// # Safety
/// As said there; the processor must have AVX-512F and tiles, and this thread's must be [`Configured`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn add_product<L: LeftFactor<Pair>>(
    steps: usize,
    left: L,
    right: *const Pair,
    sums: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe { add_product_by::<Processor, L>(steps, left, right, sums) }
}

/// # Safety
/// As [`add_product`]; the thread must have what multiplies.
#[inline(always)]
unsafe fn add_product_by<M: MultiplyTiles, L: LeftFactor<Pair>>(
    steps: usize,
    left: L,
    right: *const Pair,
    sums: *mut f32,
) {
    let mut whole = 0;
    if let Some((first, stride)) = left.rows() {
        whole = steps / SIDE;
        // SAFETY: so many steps of the factors are there, and the sums ours, by the caller's promise.
        unsafe { M::add_product(whole, first, stride, right, sums) };
    }
    // What is less than 16 steps at the end, or in no rows, is multiplied from copies, with zeros for what they lack.
    for start in (whole * SIDE..steps).step_by(SIDE) {
        let count = SIDE.min(steps - start);
        let mut rows = [const { Gathered::<SIDE>([[Pair(0); SIDE]; SIDE]) }; 2];
        let mut columns = Gathered::<COLUMNS>([[Pair(0); COLUMNS]; SIDE]);
        for step in 0..count {
            for row in 0..ROWS {
                // SAFETY: a row and a step that the caller promises.
                rows[row / SIDE].0[row % SIDE][step] = unsafe { left.element::<ROWS>(row, start + step) };
            }
            // SAFETY: as above.
            columns.0[step] = unsafe { *right.add((start + step) * COLUMNS).cast() };
        }
        let (first, stride) = (rows.as_ptr().cast(), SIDE * size_of::<Pair>());
        // SAFETY: one step of tiles of both, which are ours as the sums are.
        unsafe { M::add_product(1, first, stride, columns.0.as_ptr().cast(), sums) };
    }
}

/// # Safety
/// `sums` must be a block that nothing else uses meanwhile.
#[inline(always)]
unsafe fn add(block: &Block, sums: *mut f32) {
    // SAFETY: the caller's promise.
    let sums = unsafe { std::slice::from_raw_parts_mut(sums, ROWS * COLUMNS) };
    sums.iter_mut().zip(&block.0).for_each(|(sum, product)| *sum += product);
}

/// Multiplies tiles, with sums that begin as the instructions say, and stores the block.
macro_rules! multiply_tiles {
    ($tile_steps:ident, $left:ident, $stride:ident, $right:ident, $block:ident, $($first:literal),*) => {
        // SAFETY: the reads and writes are those that the caller allows: a tile of the left factor is 16 rows of 64 bytes, `stride` apart; one of
        // the right factor or the block is half of 16 lines of 128 bytes. The code that the compiler makes never uses tiles by itself, and the
        // registers are named here, so none of its values is lost; no value of ours has to outlive this block.
        unsafe {
            std::arch::asm!(
                $($first,)*
                "2:",
                "tileloadd tmm4, [{left} + {stride}*1]",
                "tileloadd tmm6, [{right} + {line}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{lower} + {stride}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{right} + {line}*1 + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {left}, 64",
                "add {lower}, 64",
                "add {right}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{block} + {line}*1], tmm0",
                "tilestored [{block} + {line}*1 + 64], tmm1",
                "tilestored [{block} + {line}*1 + 2048], tmm2",
                "tilestored [{block} + {line}*1 + 2112], tmm3",
                steps = inout(reg) $tile_steps => _,
                left = inout(reg) $left => _,
                lower = inout(reg) $left.byte_add(SIDE * $stride) => _,
                right = inout(reg) $right => _,
                stride = in(reg) $stride,
                line = in(reg) COLUMNS * size_of::<Pair>(),
                block = in(reg) $block,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    };
}

impl MultiplyTiles for Processor {
    unsafe fn multiply(
        tile_steps: usize,
        left: *const Pair,
        stride: usize,
        right: *const Pair,
        block: *mut f32,
    ) {
        if tile_steps == 0 {
            // SAFETY: the caller's promise.
            return unsafe { block.write_bytes(0, ROWS * COLUMNS) };
        }
        multiply_tiles!(
            tile_steps,
            left,
            stride,
            right,
            block,
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3"
        );
    }

    unsafe fn add_product(
        tile_steps: usize,
        left: *const Pair,
        stride: usize,
        right: *const Pair,
        block: *mut f32,
    ) {
        if tile_steps == 0 {
            return;
        }
        multiply_tiles!(
            tile_steps,
            left,
            stride,
            right,
            block,
            "tileloadd tmm0, [{block} + {line}*1]",
            "tileloadd tmm1, [{block} + {line}*1 + 64]",
            "tileloadd tmm2, [{block} + {line}*1 + 2048]",
            "tileloadd tmm3, [{block} + {line}*1 + 2112]"
        );
    }
}

/// Adds the product of the factors' tiles.
macro_rules! product {
    () => {
        "tdpbf16ps tmm0, tmm4, tmm6\n tdpbf16ps tmm1, tmm4, tmm7\n tdpbf16ps tmm2, tmm5, tmm6\n tdpbf16ps tmm3, tmm5, tmm7"
    };
}

/// Four products of tiles that stay in registers, so many times; says how many multiplications and additions those are.
///
/// # Safety
/// The processor must have tiles, and the process must have been permitted to use them.
pub(super) unsafe fn multiply_registers(rounds: usize) -> f64 {
    // SAFETY: the caller's promise.
    let _configured = unsafe { Configured::new() };
    // SAFETY: nothing but tiles is used, which hold zeros; the registers are named, and none of their values has to outlive this block.
    unsafe {
        std::arch::asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            product!(),
            "dec {rounds}",
            "jnz 2b",
            rounds = inout(reg) rounds.max(1) => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem),
        );
    }
    (rounds.max(1) * 4 * 2 * SIDE * SIDE * 2 * SIDE) as f64
}

/// The same with [`Parts`]: the left factor's in tiles, the right one's in pairs. The factors have so many parts, of which the least products are left
/// out: those of parts that are together as little as what `PARTS` parts leave of a number.
///
/// # Safety
/// As [`add_product`]; the steps must be a multiple of 32.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn add_product_of_parts<const PARTS: usize, const LEFT: usize, const RIGHT: usize>(
    steps: usize,
    left: Panel<Parts<PARTS>>,
    right: *const Parts<PARTS>,
    sums: *mut f32,
) {
    let multiply = const {
        match (LEFT, RIGHT) {
            (1, 1) => multiply_tiles_1_1,
            (2, 1) => multiply_tiles_2_1,
            (1, 2) => multiply_tiles_1_2,
            (2, 2) => multiply_tiles_2_2,
            (3, 1) => multiply_tiles_3_1,
            (1, 3) => multiply_tiles_1_3,
            (3, 2) => multiply_tiles_3_2,
            (2, 3) => multiply_tiles_2_3,
            (3, 3) => multiply_tiles_3_3,
            _ => panic!("one to three parts, of one factor at least as many as of any"),
        }
    };
    let mut block = MaybeUninit::<Block>::uninit();
    // SAFETY: the caller's promise; the block is ours, and has been written before it is added.
    unsafe {
        multiply(steps / (2 * SIDE), left.0.cast(), right.cast(), block.as_mut_ptr().cast());
        add(block.assume_init_ref(), sums);
    }
}

/// Defines a function that multiplies tiles of parts: `block = left * right` over `tile_steps` times 32 numbers, of which a part of either factor
/// is 2048 bytes a step.
macro_rules! multiply_tiles_of_parts {
    ($name:ident, [$($left_part:literal $left:ident),*], [$($right_part:literal $right:ident),*], $($instruction:expr),*) => {
        /// # Safety
        /// The factors must be valid for reads of all their parts, and the block for writes of 32x32 numbers; this thread's tiles must be
        /// [`Configured`].
        unsafe fn $name(tile_steps: usize, left: *const u8, right: *const u8, block: *mut f32) {
            if tile_steps == 0 {
                // SAFETY: the caller's promise.
                return unsafe { block.write_bytes(0, ROWS * COLUMNS) };
            }
            // SAFETY: as in `MultiplyTiles for Processor`.
            unsafe {
                std::arch::asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    $($instruction,)*
                    $(concat!("add {", stringify!($left), "}, 2048"),)*
                    $(concat!("add {", stringify!($right), "}, 2048"),)*
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{block} + {line}*1], tmm0",
                    "tilestored [{block} + {line}*1 + 64], tmm1",
                    "tilestored [{block} + {line}*1 + 2048], tmm2",
                    "tilestored [{block} + {line}*1 + 2112], tmm3",
                    steps = inout(reg) tile_steps => _,
                    $($left = inout(reg) left.add($left_part * 2048 * tile_steps) => _,)*
                    $($right = inout(reg) right.add($right_part * 2048 * tile_steps) => _,)*
                    row = in(reg) SIDE * size_of::<Pair>(),
                    line = in(reg) COLUMNS * size_of::<Pair>(),
                    block = in(reg) block,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

/// Takes a part's 32 rows.
macro_rules! left {
    ($name:ident) => {
        concat!(
            "tileloadd tmm4, [{",
            stringify!($name),
            "} + {row}*1]\n",
            "tileloadd tmm5, [{",
            stringify!($name),
            "} + {row}*1 + 1024]"
        )
    };
}

/// Takes a part's 32 columns.
macro_rules! right {
    ($name:ident) => {
        concat!(
            "tileloadd tmm6, [{",
            stringify!($name),
            "} + {line}*1]\n",
            "tileloadd tmm7, [{",
            stringify!($name),
            "} + {line}*1 + 64]"
        )
    };
}

multiply_tiles_of_parts!(multiply_tiles_1_1, [0 l0], [0 r0], left!(l0), right!(r0), product!());
// Each line is a product of the part that was taken last with the other factor's.
multiply_tiles_of_parts!(
    multiply_tiles_2_1, [0 l0, 1 l1], [0 r0],
    left!(l1), right!(r0), product!(),
    left!(l0), product!()
);
multiply_tiles_of_parts!(
    multiply_tiles_1_2, [0 l0], [0 r0, 1 r1],
    right!(r1), left!(l0), product!(),
    right!(r0), product!()
);
multiply_tiles_of_parts!(
    multiply_tiles_2_2, [0 l0, 1 l1], [0 r0, 1 r1],
    left!(l1), right!(r0), product!(),
    left!(l0), product!(),
    right!(r1), product!()
);
multiply_tiles_of_parts!(
    multiply_tiles_3_1, [0 l0, 1 l1, 2 l2], [0 r0],
    left!(l2), right!(r0), product!(),
    left!(l1), product!(),
    left!(l0), product!()
);
multiply_tiles_of_parts!(
    multiply_tiles_1_3, [0 l0], [0 r0, 1 r1, 2 r2],
    right!(r2), left!(l0), product!(),
    right!(r1), product!(),
    right!(r0), product!()
);
multiply_tiles_of_parts!(
    multiply_tiles_3_2, [0 l0, 1 l1, 2 l2], [0 r0, 1 r1],
    left!(l2), right!(r0), product!(),
    left!(l1), product!(),
    right!(r1), product!(),
    left!(l0), product!(),
    right!(r0), product!()
);
multiply_tiles_of_parts!(
    multiply_tiles_2_3, [0 l0, 1 l1], [0 r0, 1 r1, 2 r2],
    right!(r2), left!(l0), product!(),
    right!(r1), product!(),
    left!(l1), product!(),
    right!(r0), product!(),
    left!(l0), product!()
);
multiply_tiles_of_parts!(
    multiply_tiles_3_3, [0 l0, 1 l1, 2 l2], [0 r0, 1 r1, 2 r2],
    left!(l2), right!(r0), product!(),
    left!(l1), product!(),
    right!(r1), product!(),
    left!(l0), product!(),
    right!(r2), product!(),
    right!(r0), product!()
);

/// The same in plain code, number for number, for processors without tiles.
#[cfg(any(test, feature = "model-of-tiles"))]
pub(crate) mod model {
    use super::{
        Block, COLUMNS, LeftFactor, MultiplyTiles, Pair, Panel, Parts, ROWS, SIDE, add, add_product_by,
    };

    /// See [`add_product`](super::add_product).
    ///
    /// # Safety
    /// As said there, but for tiles.
    pub(in super::super) unsafe fn add_product<L: LeftFactor<Pair>>(
        steps: usize,
        left: L,
        right: *const Pair,
        sums: *mut f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe { add_product_by::<Model, L>(steps, left, right, sums) }
    }

    pub(crate) struct Model;

    impl MultiplyTiles for Model {
        unsafe fn multiply(
            tile_steps: usize,
            left: *const Pair,
            stride: usize,
            right: *const Pair,
            block: *mut f32,
        ) {
            // SAFETY: the caller's promise.
            unsafe {
                block.write_bytes(0, ROWS * COLUMNS);
                Self::add_product(tile_steps, left, stride, right, block);
            }
        }

        unsafe fn add_product(
            tile_steps: usize,
            left: *const Pair,
            stride: usize,
            right: *const Pair,
            block: *mut f32,
        ) {
            for row in 0..ROWS {
                for column in 0..COLUMNS {
                    // SAFETY: the caller's promise.
                    let sum = unsafe { &mut *block.add(row * COLUMNS + column) };
                    for tile in 0..tile_steps {
                        // SAFETY: the caller's promise.
                        let steps = (tile * SIDE..(tile + 1) * SIDE).map(|step| unsafe {
                            (*left.byte_add(row * stride).add(step), *right.add(step * COLUMNS + column))
                        });
                        *sum = flushed(flushed(*sum) + dot_product(steps));
                    }
                }
            }
        }
    }

    /// See [`add_product_of_parts`](super::add_product_of_parts).
    ///
    /// # Safety
    /// As said there, but for tiles.
    pub(in super::super) unsafe fn add_product_of_parts<
        const PARTS: usize,
        const LEFT: usize,
        const RIGHT: usize,
    >(
        steps: usize,
        left: Panel<Parts<PARTS>>,
        right: *const Parts<PARTS>,
        sums: *mut f32,
    ) {
        let products: &[(usize, usize)] = const {
            match (LEFT, RIGHT) {
                (1, 1) => &[(0, 0)],
                (2, 1) => &[(1, 0), (0, 0)],
                (1, 2) => &[(0, 1), (0, 0)],
                (2, 2) => &[(1, 0), (0, 0), (0, 1)],
                (3, 1) => &[(2, 0), (1, 0), (0, 0)],
                (1, 3) => &[(0, 2), (0, 1), (0, 0)],
                (3, 2) => &[(2, 0), (1, 0), (1, 1), (0, 1), (0, 0)],
                (2, 3) => &[(0, 2), (0, 1), (1, 1), (1, 0), (0, 0)],
                (3, 3) => &[(2, 0), (1, 0), (1, 1), (0, 1), (0, 2), (0, 0)],
                _ => panic!("one to three parts"),
            }
        };
        let (left, right) = (left.0.cast::<Pair>(), right.cast::<Pair>());
        let mut block = Block([0.0; ROWS * COLUMNS]);
        for (index, sum) in block.0.iter_mut().enumerate() {
            let (row, column) = (index / COLUMNS, index % COLUMNS);
            for tile in 0..steps / (2 * SIDE) {
                for (left_part, right_part) in products {
                    // SAFETY: the caller's promise.
                    let steps = (0..SIDE).map(|step| unsafe {
                        let left_start = left_part * steps / 2 * ROWS + tile * SIDE * ROWS;
                        let right_start = right_part * steps / 2 * COLUMNS + tile * SIDE * COLUMNS;
                        (
                            *left.add(left_start + row * SIDE + step),
                            *right.add(right_start + step * COLUMNS + column),
                        )
                    });
                    *sum = flushed(*sum + dot_product(steps));
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { add(&block, sums) };
    }

    /// What TDPBF16PS adds to a sum: the halves of the pairs are summed apart, and a product is not rounded before it is added.
    fn dot_product(steps: impl Iterator<Item = (Pair, Pair)>) -> f32 {
        let mut halves = [0f32; 2];
        for (left, right) in steps {
            for (half, sum) in halves.iter_mut().enumerate() {
                // Float64 holds the product, and of its sum with a float32 all that rounding to float32 asks for.
                let product = f64::from(number(left, half)) * f64::from(number(right, half));
                *sum = flushed((f64::from(*sum) + product) as f32);
            }
        }
        flushed(halves[0] + halves[1])
    }

    fn number(Pair(bits): Pair, half: usize) -> f32 {
        flushed(f32::from_bits(if half == 0 { bits << 16 } else { bits & 0xffff_0000 }))
    }

    /// What is smaller than normal numbers counts as zero.
    fn flushed(number: f32) -> f32 {
        if number.is_subnormal() { 0f32.copysign(number) } else { number }
    }
}
