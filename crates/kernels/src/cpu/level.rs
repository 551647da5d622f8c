use crate::Level;

#[cfg(target_arch = "x86_64")]
use super::instructions::{Avx2, Avx512};
use super::instructions::{Instructions, Plain};

/// Something to compute at a level. `run` must be `#[inline(always)]`, as all that it calls: so its loops are compiled once for each level.
pub(crate) trait Work {
    type Output;

    fn run(self, instructions: impl Instructions) -> Self::Output;
}

/// Runs the work with the level's instructions; with plain ones where the processor does not have them.
#[inline]
pub(crate) fn run_at<W: Work>(level: Level, work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if level >= Level::Avx512
            && let Some(instructions) = Avx512::detect()
        {
            // SAFETY: the processor has AVX-512F by the line above.
            return unsafe { run_avx512(work, instructions) };
        }
        if level >= Level::Avx2
            && let Some(instructions) = Avx2::detect()
        {
            // SAFETY: the processor has AVX2, FMA and F16C by the line above.
            return unsafe { run_avx2(work, instructions) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = level;
    work.run(Plain)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn run_avx512<W: Work>(work: W, instructions: Avx512) -> W::Output {
    work.run(instructions)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<W: Work>(work: W, instructions: Avx2) -> W::Output {
    work.run(instructions)
}
