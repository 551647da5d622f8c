//! Betas and the cumulative products of alphas that every scheduler starts from.

use serde::{Deserialize, Serialize};

use crate::config::check_field;
use crate::error::Result;
use crate::reference_math::torch_linspace_f32;

/// More training timesteps than this are refused as a mistake; models in use have 1000, some 4000.
pub(crate) const MAX_TRAIN_TIMESTEPS: usize = 100_000;
/// The largest beta that the schedules defined by alpha-bar make.
const MAX_BETA: f64 = 0.999;
/// What the reference puts for an ᾱ of zero where a sigma is made of it: the smallest positive float16.
const TERMINAL_ALPHA_CUMPROD: f32 = 5.960_464_5e-8;

/// How betas go from `beta_start` to `beta_end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BetaSchedule {
    /// Evenly.
    Linear,
    /// Evenly in the square root: latent diffusion.
    ScaledLinear,
    /// Cosine ᾱ, capped: Glide and improved DDPM. Start and end are ignored.
    SquaredcosCapV2,
    /// Sigmoid between -6 and 6: GeoDiff. DDPM only.
    Sigmoid,
    /// Laplace noise schedule (<https://huggingface.co/papers/2407.03297>). DDPM only. Start and end are ignored.
    Laplace,
}

impl BetaSchedule {
    fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::ScaledLinear => "scaled_linear",
            Self::SquaredcosCapV2 => "squaredcos_cap_v2",
            Self::Sigmoid => "sigmoid",
            Self::Laplace => "laplace",
        }
    }
}

/// The fields of a config that define its noise schedule.
pub(crate) struct BetaFields<'a> {
    pub(crate) class: &'static str,
    pub(crate) num_train_timesteps: usize,
    pub(crate) beta_start: f64,
    pub(crate) beta_end: f64,
    pub(crate) beta_schedule: BetaSchedule,
    pub(crate) trained_betas: Option<&'a [f64]>,
    pub(crate) rescale_betas_zero_snr: bool,
}

/// The cumulative products of (1 - beta), in float32 as the reference has them.
///
/// # Errors
/// If a field is out of range, naming it. `allowed` are the schedules that the scheduler has.
pub(crate) fn alphas_cumprod(fields: &BetaFields, allowed: &[BetaSchedule]) -> Result<Vec<f32>> {
    let class = fields.class;
    let count = fields.num_train_timesteps;
    let in_range = (1..=MAX_TRAIN_TIMESTEPS).contains(&count);
    check_field(class, "num_train_timesteps", count, in_range, &format!("1 to {MAX_TRAIN_TIMESTEPS}"))?;
    let betas = match fields.trained_betas {
        Some(trained) => {
            let expected = format!("num_train_timesteps ({count}) numbers");
            check_field(
                class,
                "trained_betas",
                format!("{} numbers", trained.len()),
                trained.len() == count,
                &expected,
            )?;
            trained.iter().map(|&beta| beta as f32).collect()
        }
        None => scheduled_betas(fields, allowed)?,
    };
    if let Some((index, beta)) = betas.iter().enumerate().find(|(_, beta)| !(0.0..=1.0).contains(*beta)) {
        let field = if fields.trained_betas.is_some() { "trained_betas" } else { "beta_end" };
        let found = format!("such that beta {index} is {beta}");
        check_field(class, field, found, false, "betas from 0 to 1")?;
    }
    let alphas_cumprod = cumulative_product(&betas);
    if fields.rescale_betas_zero_snr {
        let rescaled = rescale_zero_terminal_snr(&alphas_cumprod);
        let finite = rescaled.iter().all(|beta| beta.is_finite());
        check_field(
            class,
            "rescale_betas_zero_snr",
            "true",
            finite,
            "false where the noise schedule is constant",
        )?;
        return Ok(cumulative_product(&rescaled));
    }
    Ok(alphas_cumprod)
}

/// What schedulers that step along sigmas do after rescaling: the last ᾱ is not quite zero, so that no sigma is infinite.
pub(crate) fn keep_sigmas_finite(alphas_cumprod: &mut [f32], rescale_betas_zero_snr: bool) {
    if let Some(last) = alphas_cumprod.last_mut().filter(|_| rescale_betas_zero_snr) {
        *last = TERMINAL_ALPHA_CUMPROD;
    }
}

fn scheduled_betas(fields: &BetaFields, allowed: &[BetaSchedule]) -> Result<Vec<f32>> {
    let class = fields.class;
    let schedule = fields.beta_schedule;
    let names: Vec<&str> = allowed.iter().map(|schedule| schedule.name()).collect();
    let expected = format!("one of {}", names.join(", "));
    check_field(class, "beta_schedule", schedule.name(), allowed.contains(&schedule), &expected)?;
    for (field, beta) in [("beta_start", fields.beta_start), ("beta_end", fields.beta_end)] {
        check_field(class, field, beta, (0.0..=1.0).contains(&beta), "a number from 0 to 1")?;
    }
    let (start, end, count) = (fields.beta_start, fields.beta_end, fields.num_train_timesteps);
    Ok(match schedule {
        BetaSchedule::Linear => torch_linspace_f32(start, end, count),
        BetaSchedule::ScaledLinear => {
            torch_linspace_f32(start.sqrt(), end.sqrt(), count).into_iter().map(|root| root * root).collect()
        }
        BetaSchedule::SquaredcosCapV2 => betas_for_alpha_bar(count, cosine_alpha_bar),
        BetaSchedule::Laplace => betas_for_alpha_bar(count, laplace_alpha_bar),
        BetaSchedule::Sigmoid => {
            let sigmoid = |x: f32| (1.0 / (1.0 + (-f64::from(x)).exp())) as f32;
            let scale = |y: f32| y * (end - start) as f32 + start as f32;
            torch_linspace_f32(-6.0, 6.0, count).into_iter().map(|x| scale(sigmoid(x))).collect()
        }
    })
}

/// Betas such that ᾱ(t) is the cumulative product of (1 - beta), in float64 and rounded once.
fn betas_for_alpha_bar(count: usize, alpha_bar: fn(f64) -> f64) -> Vec<f32> {
    let time = |index: usize| index as f64 / count as f64;
    let beta = |index| (1.0 - alpha_bar(time(index + 1)) / alpha_bar(time(index))).min(MAX_BETA);
    (0..count).map(|index| beta(index) as f32).collect()
}

fn cosine_alpha_bar(t: f64) -> f64 {
    ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2)
}

fn laplace_alpha_bar(t: f64) -> f64 {
    let lambda = -0.5 * 1f64.copysign(0.5 - t) * (1.0 - 2.0 * (0.5 - t).abs() + 1e-6).ln();
    let snr = lambda.exp();
    (snr / (1.0 + snr)).sqrt()
}

/// torch accumulates a float32 cumulative product in float64 and rounds every value of it.
fn cumulative_product(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0f64;
    let mut accumulate = |beta: &f32| {
        product *= f64::from(1.0 - beta);
        product as f32
    };
    betas.iter().map(&mut accumulate).collect()
}

/// Betas rescaled so that the last timestep is pure noise (algorithm 1 of <https://huggingface.co/papers/2305.08891>).
fn rescale_zero_terminal_snr(alphas_cumprod: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alphas_cumprod.iter().map(|product| product.sqrt()).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else { return Vec::new() };
    let scale = first / (first - last);
    let alphas_bar: Vec<f32> =
        roots.iter().map(|root| (root - last) * scale).map(|root| root * root).collect();
    let previous = std::iter::once(1.0).chain(alphas_bar.iter().copied());
    alphas_bar.iter().zip(previous).map(|(alpha_bar, previous)| 1.0 - alpha_bar / previous).collect()
}
