//! Noise levels between two extremes, and the timesteps that they belong to.

use serde::{Deserialize, Serialize};

use crate::beta_distribution;
use crate::config::check_field;
use crate::error::Result;
use crate::reference_math::{numpy_linspace, numpy_ln_f32};

/// ρ of Karras et al., table 1.
const KARRAS_RHO: f64 = 7.0;

/// The noise level at which sampling ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmasType {
    /// No noise.
    Zero,
    /// That of the first training timestep.
    SigmaMin,
}

/// How sigmas are spaced between the largest and the smallest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SigmaSpacing {
    /// <https://huggingface.co/papers/2206.00364>, equation (5).
    Karras,
    /// Evenly in the logarithm.
    Exponential,
    /// By the quantiles of a beta distribution.
    Beta,
}

impl SigmaSpacing {
    /// The spacing that the flags of a config choose; only one may be set.
    pub(crate) fn from_flags(
        class: &'static str,
        karras: bool,
        exponential: bool,
        beta: bool,
    ) -> Result<Option<Self>> {
        let set: Vec<(&str, Self)> = [
            ("use_karras_sigmas", Self::Karras, karras),
            ("use_exponential_sigmas", Self::Exponential, exponential),
            ("use_beta_sigmas", Self::Beta, beta),
        ]
        .into_iter()
        .filter_map(|(name, spacing, set)| set.then_some((name, spacing)))
        .collect();
        match set.as_slice() {
            [] => Ok(None),
            [(_, spacing)] => Ok(Some(*spacing)),
            [(first, _), (second, _), ..] => {
                check_field(class, second, "true", false, &format!("false where {first} is true"))?;
                Ok(None)
            }
        }
    }

    /// `count` sigmas from `sigma_max` down to `sigma_min`.
    pub(crate) fn sigmas(self, sigma_min: f64, sigma_max: f64, count: usize) -> Vec<f64> {
        let ramp = numpy_linspace(0.0, 1.0, count).into_iter();
        match self {
            Self::Karras => {
                let (min, max) = (sigma_min.powf(1.0 / KARRAS_RHO), sigma_max.powf(1.0 / KARRAS_RHO));
                ramp.map(|share| (max + share * (min - max)).powf(KARRAS_RHO)).collect()
            }
            Self::Exponential => {
                numpy_linspace(sigma_max.ln(), sigma_min.ln(), count).into_iter().map(f64::exp).collect()
            }
            Self::Beta => ramp
                .map(|share| sigma_min + beta_distribution::quantile(1.0 - share) * (sigma_max - sigma_min))
                .collect(),
        }
    }
}

/// The smallest and largest sigma where a config sets them: finite, and greater than 0.
pub(crate) fn check_sigma_limit(class: &'static str, field: &str, sigma: Option<f64>) -> Result<()> {
    match sigma {
        Some(sigma) => {
            let allowed = sigma.is_finite() && sigma > 0.0;
            check_field(class, field, sigma, allowed, "a number greater than 0, or null")
        }
        None => Ok(()),
    }
}

/// The sigma of each training timestep, in float32 as the reference computes it.
pub(crate) fn training_sigmas(alphas_cumprod: &[f32]) -> Vec<f32> {
    alphas_cumprod.iter().map(|&alpha| training_sigma(alpha)).collect()
}

/// The sigma of one ᾱ.
pub(crate) fn training_sigma(alpha_cumprod: f32) -> f32 {
    ((1.0 - alpha_cumprod) / alpha_cumprod).sqrt()
}

/// The logarithm of each training sigma.
pub(crate) fn log_sigmas(sigmas: &[f32]) -> Vec<f32> {
    sigmas.iter().map(|&sigma| numpy_ln_f32(sigma)).collect()
}

/// The timestep of a sigma, by interpolating between the logarithms of training sigmas.
pub(crate) fn sigma_to_timestep(sigma: f64, log_sigmas: &[f32]) -> f64 {
    let log_sigma = sigma.max(1e-10).ln();
    let Some((index, low, high)) = neighbours(log_sigma, log_sigmas) else { return 0.0 };
    let weight = ((f64::from(low) - log_sigma) / f64::from(low - high)).clamp(0.0, 1.0);
    (1.0 - weight) * index as f64 + weight * (index + 1) as f64
}

/// As [`sigma_to_timestep`] for a sigma that the reference has in float32, where its weights are float32 too.
pub(crate) fn sigma_to_timestep_f32(sigma: f32, log_sigmas: &[f32]) -> f64 {
    let log_sigma = numpy_ln_f32(sigma.max(1e-10));
    let Some((index, low, high)) = neighbours(f64::from(log_sigma), log_sigmas) else { return 0.0 };
    let weight = ((low - log_sigma) / (low - high)).clamp(0.0, 1.0);
    f64::from(1.0 - weight) * index as f64 + f64::from(weight) * (index + 1) as f64
}

/// The index of the last training sigma that is not above, with its logarithm and the following one.
fn neighbours(log_sigma: f64, log_sigmas: &[f32]) -> Option<(usize, f32, f32)> {
    let last_lower = log_sigmas.iter().rposition(|&other| f64::from(other) <= log_sigma).unwrap_or(0);
    let index = last_lower.min(log_sigmas.len().checked_sub(2)?);
    Some((index, log_sigmas[index], log_sigmas[index + 1]))
}
