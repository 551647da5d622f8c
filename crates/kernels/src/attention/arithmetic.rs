//! What attention's products are computed in, chosen for a level and a dtype.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::backward_step::{BackwardStep, backward_step};
use super::step::{Panels, Products, Step, step};
#[cfg(target_arch = "x86_64")]
use super::tiles::Tiles;
use super::vector::{Four, Vector};
use crate::Level;
#[cfg(all(target_arch = "x86_64", any(test, feature = "model-of-tiles")))]
use crate::product::amx::model;
#[cfg(target_arch = "x86_64")]
use crate::product::amx::{Configured, Processor};
#[cfg(target_arch = "x86_64")]
use crate::product::avx512bf16::pairs_of;

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

    /// The numbers of two vectors, one after the other, as units of neighbours; the first vector where a unit is one number.
    ///
    /// # Safety
    /// As above.
    unsafe fn neighbours(first: Self::Vector, second: Self::Vector) -> Self::Vector;
}

/// Products of float32.
pub(super) struct Single<V>(PhantomData<V>);

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

    #[inline(always)]
    unsafe fn neighbours(first: V, _second: V) -> V {
        first
    }
}

/// Products of bfloat16, two at a time, summed in float32. Weights are rounded to bfloat16 too; their sum is taken before that.
#[cfg(target_arch = "x86_64")]
pub(super) struct Pairs;

#[cfg(target_arch = "x86_64")]
impl Arithmetic for Pairs {
    type Vector = __m512;
    const UNIT: usize = 2;
    // Greatest relative error 2.8e-6, a hundredth of what rounding to bfloat16 brings; as above.
    const EXP2: &'static [f32] = &[9.582_853e-3, 5.590_642_6e-2, 2.402_41e-1, 6.931_242e-1];

    #[inline(always)]
    unsafe fn add_product(left: __m512, right: __m512, sum: __m512) -> __m512 {
        // SAFETY: the caller's promise; the bits of any vector are pairs of bfloat16.
        unsafe {
            let (left, right) = (_mm512_castps_si512(left), _mm512_castps_si512(right));
            _mm512_dpbf16_ps(
                sum,
                std::mem::transmute::<__m512i, __m512bh>(left),
                std::mem::transmute::<__m512i, __m512bh>(right),
            )
        }
    }

    #[inline(always)]
    unsafe fn unit(first: __m512, second: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_castsi512_ps(pairs_of(first, second)) }
    }

    #[inline(always)]
    unsafe fn neighbours(first: __m512, second: __m512) -> __m512 {
        // SAFETY: the caller's promise; the bits of any vector are a vector of float32.
        unsafe { std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(second, first)) }
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
    /// Of a step's [`Products`].
    pub(super) rows: usize,
    /// Of a step's [`Products`].
    pub(super) depth: usize,
    /// Whether a thread must be [`configured`](Self::configured) for it.
    #[cfg(target_arch = "x86_64")]
    needs_tiles: bool,
    step: unsafe fn(&mut Step<'_>),
    backward_step: unsafe fn(&mut BackwardStep<'_>),
}

impl Kernel {
    /// The one in bfloat16, where the level and the processor have it; else, or if the factors are not of bfloat16, the one in float32.
    pub(super) fn choose(level: Level, is_bfloat16: bool) -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_bfloat16 && level >= Level::Avx512Bf16 && Level::Avx512Bf16.is_available() {
            if level == Level::Amx && level.is_available() {
                let kernel = Self::new::<Tiles<Processor>>(step_tiles, backward_step_pairs);
                return Self { needs_tiles: true, ..kernel };
            }
            // So that all around the tiles is tested everywhere.
            #[cfg(any(test, feature = "model-of-tiles"))]
            if level == Level::Amx {
                return Self::new::<Tiles<model::Model>>(step_tiles_of_model, backward_step_pairs);
            }
            return Self::new::<Panels<Pairs>>(step_pairs, backward_step_pairs);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = is_bfloat16;
        Self::single(level)
    }

    /// The one in float32 for a level; the portable one where the processor does not have it.
    fn single(level: Level) -> Self {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 | Level::Amx if Level::Avx512.is_available() => {
                Self::new::<Panels<Single<__m512>>>(step_avx512, backward_step_avx512)
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 if level.is_available() => {
                Self::new::<Panels<Single<__m256>>>(step_avx2, backward_step_avx2)
            }
            _ => {
                Self::new::<Panels<Single<Four>>>(step::<Panels<Single<Four>>>, backward_step::<Single<Four>>)
            }
        }
    }

    /// The steps are of these products and their arithmetic, and the processor has what they need.
    fn new<P: Products>(
        step: unsafe fn(&mut Step<'_>),
        backward_step: unsafe fn(&mut BackwardStep<'_>),
    ) -> Self {
        Self {
            queries: 2 * <P::Arithmetic as Arithmetic>::Vector::LANES,
            panel: <P::Arithmetic as Arithmetic>::Vector::ROWS,
            unit: P::Arithmetic::UNIT,
            rows: P::ROWS,
            depth: P::DEPTH,
            #[cfg(target_arch = "x86_64")]
            needs_tiles: false,
            step,
            backward_step,
        }
    }

    /// What a thread holds while it takes steps.
    pub(super) fn configured(&self) -> impl Sized + use<> {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: who made this kernel has asked whether the processor has tiles, if it needs them.
        return self.needs_tiles.then(|| unsafe { Configured::new() });
    }

    pub(super) fn backward_step(&self, mut step: BackwardStep<'_>) {
        // SAFETY: who made this kernel has asked whether the processor has what it needs.
        unsafe { (self.backward_step)(&mut step) }
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
    unsafe { step::<Panels<Single<__m256>>>(arguments) }
}

/// # Safety
/// The processor must have AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn step_avx512(arguments: &mut Step<'_>) {
    // SAFETY: the caller's promise.
    unsafe { step::<Panels<Single<__m512>>>(arguments) }
}

/// # Safety
/// The processor must have AVX-512F, BW and BF16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn step_pairs(arguments: &mut Step<'_>) {
    // SAFETY: the caller's promise.
    unsafe { step::<Panels<Pairs>>(arguments) }
}

/// # Safety
/// The processor must have AVX-512F, BW and BF16, and tiles that this thread has configured.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn step_tiles(arguments: &mut Step<'_>) {
    // SAFETY: the caller's promise.
    unsafe { step::<Tiles<Processor>>(arguments) }
}

/// # Safety
/// The processor must have AVX-512F, BW and BF16.
#[cfg(all(target_arch = "x86_64", any(test, feature = "model-of-tiles")))]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn step_tiles_of_model(arguments: &mut Step<'_>) {
    // SAFETY: the caller's promise.
    unsafe { step::<Tiles<model::Model>>(arguments) }
}

/// # Safety
/// The processor must have AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn backward_step_avx2(arguments: &mut BackwardStep<'_>) {
    // SAFETY: the caller's promise.
    unsafe { backward_step::<Single<__m256>>(arguments) }
}

/// # Safety
/// The processor must have AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn backward_step_avx512(arguments: &mut BackwardStep<'_>) {
    // SAFETY: the caller's promise.
    unsafe { backward_step::<Single<__m512>>(arguments) }
}

/// # Safety
/// The processor must have AVX-512F, BW and BF16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn backward_step_pairs(arguments: &mut BackwardStep<'_>) {
    // SAFETY: the caller's promise.
    unsafe { backward_step::<Pairs>(arguments) }
}
