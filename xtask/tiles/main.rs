//! Compares the tile instructions of `amx.rs` with the plain model there, bit for bit, with no system beneath: see `run`.

#![no_std]
#![no_main]

// What `amx.rs` takes of the standard library and libc.
extern crate self as libc;
extern crate self as std;
pub use core::{arch, mem, slice};

pub mod sync {
    pub struct OnceLock<T>(core::cell::OnceCell<T>);

    // SAFETY: there is one thread.
    unsafe impl<T> Sync for OnceLock<T> {}

    impl<T> OnceLock<T> {
        pub const fn new() -> Self {
            Self(core::cell::OnceCell::new())
        }

        pub fn get_or_init(&self, value: impl FnOnce() -> T) -> &T {
            self.0.get_or_init(value)
        }
    }
}

#[allow(non_camel_case_types)]
pub type c_long = i64;
#[allow(non_upper_case_globals)]
pub const SYS_arch_prctl: c_long = 158;

/// Stands for a question to the system; the boot sector has permitted tiles.
///
/// # Safety
/// There is nothing to promise.
pub unsafe fn syscall(_: c_long, _: c_long, _: c_long) -> c_long {
    0
}

// What it takes of the modules beside it, as they are there.
#[path = "../../crates/kernels/src/product/amx.rs"]
#[allow(dead_code)]
mod amx;

mod panels {
    #[derive(Clone, Copy)]
    #[repr(transparent)]
    pub struct Pair(pub u32);
}

mod parts {
    #[repr(transparent)]
    pub struct Parts<const PARTS: usize>(pub [u16; PARTS]);
}

mod microkernel {
    pub trait LeftFactor<E>: Copy {
        /// # Safety
        /// The element must be there.
        unsafe fn element<const ROWS: usize>(self, row: usize, step: usize) -> E;

        fn rows(self) -> Option<(*const E, usize)> {
            None
        }
    }

    #[derive(Clone, Copy)]
    pub struct Panel<E>(pub *const E);

    impl<E: Copy> LeftFactor<E> for Panel<E> {
        unsafe fn element<const ROWS: usize>(self, row: usize, step: usize) -> E {
            // SAFETY: the caller's promise.
            unsafe { *self.0.add(step * ROWS + row) }
        }
    }

    #[derive(Clone, Copy)]
    pub struct Rows<E> {
        pub first: *const E,
        pub stride: usize,
    }

    impl<E: Copy> LeftFactor<E> for Rows<E> {
        unsafe fn element<const ROWS: usize>(self, row: usize, step: usize) -> E {
            // SAFETY: the caller's promise.
            unsafe { self.first.byte_add(row * self.stride).add(step).read_unaligned() }
        }

        fn rows(self) -> Option<(*const E, usize)> {
            Some((self.first, self.stride))
        }
    }
}

use core::fmt::Write;
use core::ops::Range;

use amx::{COLUMNS, MultiplyTiles, PAIRS, Processor, ROWS, model};
use microkernel::{Panel, Rows};
use panels::Pair;
use parts::Parts;

/// What is compared: `depth` pairs of 32 rows that begin `stride` bytes apart, by 32 columns.
type Product = unsafe fn(depth: usize, left: *const Pair, stride: usize, right: *const Pair, sums: *mut f32);

struct Comparison {
    name: &'static str,
    depths: &'static [usize],
    /// Bytes between the rows of the left factor, which may begin at any byte; none where it must be whole.
    gaps: Option<&'static [usize]>,
    /// Pairs of a factor's row for each pair in depth.
    parts: usize,
    tiles: Product,
    model: Product,
}

/// Depths of whole tiles, and others.
const WHOLE: &[usize] = &[0, 16, 32, 48, 64, 80, 256];
const ANY: &[usize] = &[0, 1, 2, 7, 15, 16, 17, 18, 31, 32, 33, 40, 47, 48, 49, 64, 65, 255];
const GAPS: &[usize] = &[0, 1, 2, 3, 4, 6, 7, 12, 31, 60, 64, 66, 193, 1023];
const MOST_PAIRS: usize = 3 * 256;
/// So many numbers before the sums, and at least 48 after them, must stay as they are.
const MARGIN: usize = 64;

#[repr(C, align(64))]
struct Memory {
    /// The left factor as tiles read it.
    left: [u8; 64 + ROWS * (4 * MOST_PAIRS + 1023)],
    /// The same for the model: its rows beside each other, at a whole address.
    rows: [u32; ROWS * MOST_PAIRS],
    right: [u32; 16 + COLUMNS * MOST_PAIRS],
    by_tiles: [f32; 2 * MARGIN + ROWS * COLUMNS],
    by_model: [f32; 2 * MARGIN + ROWS * COLUMNS],
}

static mut MEMORY: Memory =
    Memory { left: [0; _], rows: [0; _], right: [0; _], by_tiles: [0.0; _], by_model: [0.0; _] };

// SAFETY, of all: `compare` hands in what they ask for, with tiles configured.
const COMPARISONS: &[Comparison] = &[
    Comparison {
        name: "multiply",
        depths: WHOLE,
        gaps: Some(GAPS),
        parts: 1,
        tiles: |depth, left, stride, right, sums| unsafe {
            Processor::multiply(depth / PAIRS, left, stride, right, sums)
        },
        model: |depth, left, stride, right, sums| unsafe {
            model::Model::multiply(depth / PAIRS, left, stride, right, sums)
        },
    },
    Comparison {
        name: "add_product",
        depths: WHOLE,
        gaps: Some(GAPS),
        parts: 1,
        tiles: |depth, left, stride, right, sums| unsafe {
            Processor::add_product(depth / PAIRS, left, stride, right, sums)
        },
        model: |depth, left, stride, right, sums| unsafe {
            model::Model::add_product(depth / PAIRS, left, stride, right, sums)
        },
    },
    Comparison {
        name: "add_product of rows",
        depths: ANY,
        gaps: Some(&[0, 2, 7]),
        parts: 1,
        tiles: |depth, first, stride, right, sums| unsafe {
            amx::add_product(depth, Rows { first, stride }, right, sums)
        },
        model: |depth, first, stride, right, sums| unsafe {
            model::add_product(depth, Rows { first, stride }, right, sums)
        },
    },
    Comparison {
        name: "add_product of a panel",
        depths: ANY,
        gaps: None,
        parts: 1,
        tiles: |depth, left, _, right, sums| unsafe { amx::add_product(depth, Panel(left), right, sums) },
        model: |depth, left, _, right, sums| unsafe { model::add_product(depth, Panel(left), right, sums) },
    },
    of_parts::<1, 1>("add_product_of_parts, 1 part by 1"),
    of_parts::<2, 1>("add_product_of_parts, 2 parts by 1"),
    of_parts::<1, 2>("add_product_of_parts, 1 part by 2"),
    of_parts::<2, 2>("add_product_of_parts, 2 parts by 2"),
    of_parts::<3, 1>("add_product_of_parts, 3 parts by 1"),
    of_parts::<1, 3>("add_product_of_parts, 1 part by 3"),
    of_parts::<3, 2>("add_product_of_parts, 3 parts by 2"),
    of_parts::<2, 3>("add_product_of_parts, 2 parts by 3"),
    of_parts::<3, 3>("add_product_of_parts, 3 parts by 3"),
];

/// Both factors have as many numbers as three parts would be, of which one may not read all.
const fn of_parts<const LEFT: usize, const RIGHT: usize>(name: &'static str) -> Comparison {
    Comparison {
        name,
        depths: WHOLE,
        gaps: None,
        parts: 3,
        tiles: |depth, left, _, right, sums| unsafe {
            let left = Panel(left.cast::<Parts<3>>());
            amx::add_product_of_parts::<3, LEFT, RIGHT>(2 * depth, left, right.cast(), sums)
        },
        model: |depth, left, _, right, sums| unsafe {
            let left = Panel(left.cast::<Parts<3>>());
            model::add_product_of_parts::<3, LEFT, RIGHT>(2 * depth, left, right.cast(), sums)
        },
    }
}

#[unsafe(no_mangle)]
extern "C" fn main() -> ! {
    // SAFETY: this is called once.
    let memory = unsafe { &mut *(&raw mut MEMORY) };
    write_port(0x3fb, 3); // the serial port's bytes are of 8 bits
    assert!(amx::is_available(), "the processor has no tiles");
    let mut random = Random(1);
    for comparison in COMPARISONS {
        let mut cases = 0;
        for &depth in comparison.depths {
            for &gap in comparison.gaps.unwrap_or(&[0]) {
                for kind in &KINDS {
                    compare(comparison, depth, gap, kind, &mut random, memory);
                    cases += 1;
                }
            }
        }
        writeln!(Serial, "{}: {cases} equal", comparison.name).unwrap();
    }
    for rounds in [0, 1, 2, 1000] {
        // SAFETY: there are tiles, and nobody has to permit them.
        let operations = unsafe { amx::multiply_registers(rounds) };
        assert_eq!(operations, (rounds.max(1) * 4 * 2 * 16 * 16 * 32) as f64);
        assert!(!is_configured(), "tiles are still configured");
    }
    writeln!(Serial, "multiply_registers: 4 came back").unwrap();
    end("all equal")
}

fn compare(
    comparison: &Comparison,
    depth: usize,
    gap: usize,
    kind: &Kind,
    random: &mut Random,
    memory: &mut Memory,
) {
    let width = depth * comparison.parts;
    let stride = 4 * width + gap;
    let mut below = |end| (random.next() % end) as usize;
    let left_start = if comparison.gaps.is_some() { below(64) } else { 4 * below(16) };
    let (right_start, sums_start) = (below(16), MARGIN + below(16));

    memory.rows[..ROWS * width].fill_with(|| random.pair(kind));
    memory.right[..right_start + COLUMNS * width].fill_with(|| random.pair(kind));
    for row in 0..ROWS {
        for step in 0..width {
            memory.left[left_start + row * stride + 4 * step..][..4]
                .copy_from_slice(&memory.rows[row * width + step].to_le_bytes());
        }
    }
    memory.by_tiles.fill_with(|| random.float(&kind.sums, kind));
    memory.by_model = memory.by_tiles;

    let right = memory.right[right_start..].as_ptr().cast();
    let sums = memory.by_tiles[sums_start..].as_mut_ptr();
    // SAFETY: tiles read the factors where they have been written just now, and write the sums; those are there with a margin.
    unsafe {
        let configured = amx::Configured::new();
        (comparison.tiles)(depth, memory.left[left_start..].as_ptr().cast(), stride, right, sums);
        assert!(is_configured(), "tiles are not configured");
        drop(configured);
    }
    assert!(!is_configured(), "tiles are still configured");
    let sums = memory.by_model[sums_start..].as_mut_ptr();
    // SAFETY: as above.
    unsafe { (comparison.model)(depth, memory.rows.as_ptr().cast(), 4 * width, right, sums) };

    for (index, (tiles, model)) in memory.by_tiles.iter().zip(&memory.by_model).enumerate() {
        let place = index as isize - sums_start as isize;
        assert!(
            tiles.to_bits() == model.to_bits() || tiles.is_nan() && model.is_nan(),
            "{}, {width} pairs in rows {stride} bytes apart, exponents {:?}: sum {place} is {tiles:e}, \
             the model's {model:e}",
            comparison.name,
            kind.factors
        );
    }
}

/// Whether tiles are configured, by what the processor says is in use (XINUSE).
fn is_configured() -> bool {
    let bits: u32;
    // SAFETY: reads a register that processors with tiles have.
    unsafe { arch::asm!("xgetbv", in("ecx") 1, out("eax") bits, out("edx") _, options(nomem, nostack)) }
    // Of the next bit, the tiles' numbers, Bochs 3.0 says the contrary.
    bits & 1 << 17 != 0
}

/// Numbers about 1; with products and sums about the least normal number; of all sizes, so that sums become infinite; about 1, and seldom
/// infinite or no number.
const KINDS: [Kind; 4] = [
    Kind { factors: 120..135, sums: 120..135, is_signed: true, has_infinite: false },
    // Where signed numbers leave one from 2^-126 to 2^-125, Bochs 3.0 leaves zero, as if that were no normal number.
    Kind { factors: 52..76, sums: 0..24, is_signed: false, has_infinite: false },
    Kind { factors: 0..255, sums: 0..255, is_signed: true, has_infinite: false },
    Kind { factors: 120..135, sums: 120..135, is_signed: true, has_infinite: true },
];

struct Kind {
    /// Exponents as float32 has them, 127 for 1.
    factors: Range<u32>,
    sums: Range<u32>,
    is_signed: bool,
    has_infinite: bool,
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// Two bfloat16.
    fn pair(&mut self, kind: &Kind) -> u32 {
        self.float(&kind.factors, kind).to_bits() >> 16
            | self.float(&kind.factors, kind).to_bits() & 0xffff_0000
    }

    fn float(&mut self, exponents: &Range<u32>, kind: &Kind) -> f32 {
        if kind.has_infinite && self.next() % 512 == 0 {
            return [f32::INFINITY, f32::NEG_INFINITY, f32::NAN][self.next() as usize % 3];
        }
        let exponent = exponents.start + self.next() % (exponents.end - exponents.start);
        let bits = self.next() & if kind.is_signed { 0x807f_ffff } else { 0x7f_ffff };
        f32::from_bits(bits | exponent << 23)
    }
}

/// The first serial port.
struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            while read_port(0x3fd) & 0x20 == 0 {}
            write_port(0x3f8, byte);
        }
        Ok(())
    }
}

fn read_port(port: u16) -> u8 {
    let byte;
    // SAFETY: the serial port's state.
    unsafe { arch::asm!("in al, dx", in("dx") port, out("al") byte, options(nomem, nostack)) }
    byte
}

fn write_port(port: u16, byte: u8) {
    // SAFETY: the serial port, or the emulator's.
    unsafe { arch::asm!("out dx, al", in("dx") port, in("al") byte, options(nomem, nostack)) }
}

/// Says the verdict, and asks the emulator to end.
fn end(verdict: impl core::fmt::Display) -> ! {
    let _ = writeln!(Serial, "{verdict}");
    while read_port(0x3fd) & 0x40 == 0 {}
    "Shutdown".bytes().for_each(|byte| write_port(0x8900, byte));
    loop {
        core::hint::spin_loop();
    }
}

#[panic_handler]
fn panic(panic: &core::panic::PanicInfo<'_>) -> ! {
    end(panic.message())
}
