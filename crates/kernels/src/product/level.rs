use std::env;
use std::sync::OnceLock;

use candle_core::Result;

/// Names the instructions to use at most: `portable`, `neon`, `avx2`, `avx512`, `avx512bf16` or `amx`.
const VARIABLE: &str = "CANDLE_DIFFUSERS_CPU";

/// The instructions that products on the CPU are computed with. A greater level is faster.
///
/// Results of two levels differ in their last bits; within one level they depend on the inputs alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Level {
    /// Plain code, for any processor.
    Portable,
    /// 128-bit vectors with fused multiply-add (aarch64).
    Neon,
    /// 256-bit vectors with fused multiply-add and conversions of float16 (x86-64).
    Avx2,
    /// 512-bit vectors (x86-64).
    Avx512,
    /// The same with dot products of bfloat16.
    Avx512Bf16,
    /// The same with tiles of bfloat16 (AMX).
    Amx,
}

impl Level {
    /// All levels, the slowest first.
    pub const ALL: [Self; 6] =
        [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// The level in use: the greatest that the processor has, or a lower one that the environment variable `CANDLE_DIFFUSERS_CPU`
    /// names (`portable`, `neon`, `avx2`, `avx512`, `avx512bf16`, `amx`). It is read once.
    ///
    /// # Errors
    /// When the variable names no level.
    pub fn current() -> Result<Self> {
        static CURRENT: OnceLock<std::result::Result<Level, String>> = OnceLock::new();
        let wish = || env::var_os(VARIABLE).map(|name| name.to_string_lossy().into_owned());
        match CURRENT.get_or_init(|| Self::greatest(wish().as_deref())) {
            Ok(level) => Ok(*level),
            Err(problem) => candle_core::bail!("{problem}"),
        }
    }

    /// The greatest level that the processor has, up to the one that is named.
    fn greatest(wish: Option<&str>) -> std::result::Result<Self, String> {
        let limit = match wish {
            None | Some("") => Self::Amx,
            Some(name) => Self::ALL.into_iter().find(|level| level.name() == name).ok_or_else(|| {
                format!("the environment variable {VARIABLE} is {name:?}; it can be portable, neon, avx2, avx512, avx512bf16 or amx")
            })?,
        };
        if cfg!(feature = "model-of-tiles") && wish == Some("amx") && Self::Avx512Bf16.is_available() {
            return Ok(Self::Amx);
        }
        let available = Self::ALL.into_iter().filter(|level| *level <= limit && level.is_available());
        Ok(available.max().unwrap_or(Self::Portable))
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512Bf16.is_available() && super::amx::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 | Self::Avx512Bf16 | Self::Amx => false,
        }
    }

    /// As the environment variable spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_names_the_greatest_level() {
        assert_eq!(Level::greatest(Some("portable")), Ok(Level::Portable));
        assert!(Level::greatest(Some("avx2")).unwrap() <= Level::Avx2);
        assert!(Level::greatest(None) <= Level::greatest(Some("amx")));
        assert_eq!(Level::greatest(None), Level::greatest(Some("")));
        let problem = Level::greatest(Some("sse9")).unwrap_err();
        assert!(problem.contains("CANDLE_DIFFUSERS_CPU is \"sse9\"; it can be portable"), "{problem}");
    }
}
