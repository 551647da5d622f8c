//! What attention's products are computed in, chosen for a level and a dtype.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m512};
use std::marker::PhantomData;

use super::step::{Step, step};
use super::vector::{Four, Vector};
use crate::Level;

pub(super) trait Arithmetic {
    type Vector: Vector;
    /// How many numbers a unit of the factors has.
    const UNIT: usize;
    /// The polynomial of [`Vector::exp2`].
    const EXP2: &'static [f32];

    /// `left * right + sum`, where each lane of the factors is a unit.
    ///
    /// # Safety
    /// The processor must have what the arithmetic needs.
    unsafe fn add_product(left: Self::Vector, right: Self::Vector, sum: Self::Vector) -> Self::Vector;

    /// Units of two numbers, or of the first where a unit is one number.
    ///
    /// # Safety
    /// As above.
    unsafe fn unit(first: Self::Vector, second: Self::Vector) -> Self::Vector;
}

/// Products of float32.
struct Single<V>(PhantomData<V>);

impl<V: Vector> Arithmetic for Single<V> {
    type Vector = V;
    const UNIT: usize = 1;
    // Greatest relative error 1.6e-8, by least squares weighted until the error was even.
    const EXP2: &'static [f32] = &[
        1.535_336_2e-4,
        1.339_887_5e-3,
        9.618_437e-3,
        5.550_332_4e-2,
        2.402_264_8e-1,
        std::f32::consts::LN_2,
    ];

    #[inline(always)]
    unsafe fn add_product(left: V, right: V, sum: V) -> V {
        // SAFETY: the caller's promise.
        unsafe { left.mul_add(right, sum) }
    }

    #[inline(always)]
    unsafe fn unit(first: V, _second: V) -> V {
        first
    }
}

/// How attention is computed at a level.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// How many queries a step takes.
    pub(super) queries: usize,
    /// How many keys a panel has at most.
    pub(super) panel: usize,
    /// How many numbers a unit of the factors has: 1 of float32 or 2 of bfloat16.
    pub(super) unit: usize,
    step: unsafe fn(&mut Step<'_>),
}

impl Kernel {
    /// The one in float32 for a level; the portable one where the processor does not have it.
    pub(super) fn single(level: Level) -> Self {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 if level.is_available() => {
                Self::new::<Single<__m512>>(step_avx512)
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 if level.is_available() => Self::new::<Single<__m256>>(step_avx2),
            _ => Self::new::<Single<Four>>(step::<Single<Four>>),
        }
    }

    /// `step` is the arithmetic's, and the processor has what it needs.
    fn new<A: Arithmetic>(step: unsafe fn(&mut Step<'_>)) -> Self {
        Self { queries: 2 * A::Vector::LANES, panel: A::Vector::ROWS, unit: A::UNIT, step }
    }

    pub(super) fn step(&self, mut step: Step<'_>) {
        // SAFETY: who made this kernel has asked whether the processor has what it needs.
        unsafe { (self.step)(&mut step) }
    }
}

/// # Safety
/// The processor must have AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn step_avx2(arguments: &mut Step<'_>) {
    // SAFETY: the caller's promise.
    unsafe { step::<Single<__m256>>(arguments) }
}

/// # Safety
/// The processor must have AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn step_avx512(arguments: &mut Step<'_>) {
    // SAFETY: the caller's promise.
    unsafe { step::<Single<__m512>>(arguments) }
}
