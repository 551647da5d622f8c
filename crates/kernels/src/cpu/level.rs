use crate::Level;

/// Something to compute at a level. `run` must be `#[inline(always)]`, as all that it calls: so its loops are compiled once for each level.
pub(crate) trait Work {
    type Output;

    fn run(self) -> Self::Output;
}

/// Runs the work with the level's instructions; with plain ones where the processor does not have them.
pub(crate) fn run_at<W: Work>(level: Level, work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if level >= Level::Avx512 && Level::Avx512.is_available() {
            // SAFETY: the processor has AVX-512F by the line above.
            return unsafe { run_avx512(work) };
        }
        if level >= Level::Avx2 && Level::Avx2.is_available() {
            // SAFETY: the processor has AVX2 and FMA by the line above.
            return unsafe { run_avx2(work) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = level;
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn run_avx512<W: Work>(work: W) -> W::Output {
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<W: Work>(work: W) -> W::Output {
    work.run()
}
