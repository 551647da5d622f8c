//! The solver's formulas, as weights on the sample, the converted model outputs and noise.

use crate::reference_math::{exp_f32, ln_f32};

use super::config::{AlgorithmType, SolverType};

/// Signal, noise and half the logarithm of their ratio at one sigma, in float32 as the reference has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoiseLevel {
    pub(super) alpha: f32,
    pub(super) sigma: f32,
    lambda: f32,
}

impl NoiseLevel {
    pub(super) fn new(sigma: f32, is_flow: bool) -> Self {
        let (alpha, sigma) = if is_flow {
            (1.0 - sigma, sigma)
        } else {
            let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
            (alpha, sigma * alpha)
        };
        Self { alpha, sigma, lambda: ln_f32(alpha) - ln_f32(sigma) }
    }
}

/// A step of the solver: the weights of what it adds up.
#[derive(Clone, Debug)]
pub(super) struct Update {
    pub(super) sample: f64,
    /// Of the converted model outputs, newest first.
    pub(super) model_outputs: Vec<f64>,
    pub(super) noise: f64,
}

/// The coefficients that all orders share, and those of the differences D0, D1 and D2 of model outputs.
struct Coefficients {
    sample: f32,
    d0: f32,
    d1_midpoint: f32,
    d1_heun: f32,
    d2: f32,
    noise: f32,
}

/// Formulas of the papers, for a step of length `h` in lambda from `s` to `t`.
fn coefficients(algorithm: AlgorithmType, t: NoiseLevel, s: NoiseLevel) -> Coefficients {
    let h = t.lambda - s.lambda;
    match algorithm {
        AlgorithmType::DpmSolverPlusPlus => {
            let decay = exp_f32(-h) - 1.0;
            Coefficients {
                sample: t.sigma / s.sigma,
                d0: -(t.alpha * decay),
                d1_midpoint: -0.5 * (t.alpha * decay),
                d1_heun: t.alpha * (decay / h + 1.0),
                d2: -(t.alpha * ((decay + h) / (h * h) - 0.5)),
                noise: 0.0,
            }
        }
        AlgorithmType::DpmSolver => {
            let growth = exp_f32(h) - 1.0;
            Coefficients {
                sample: t.alpha / s.alpha,
                d0: -(t.sigma * growth),
                d1_midpoint: -0.5 * (t.sigma * growth),
                d1_heun: -(t.sigma * (growth / h - 1.0)),
                d2: -(t.sigma * ((growth - h) / (h * h) - 0.5)),
                noise: 0.0,
            }
        }
        AlgorithmType::SdeDpmSolverPlusPlus => {
            let decay = 1.0 - exp_f32(-2.0 * h);
            Coefficients {
                sample: t.sigma / s.sigma * exp_f32(-h),
                d0: t.alpha * decay,
                d1_midpoint: 0.5 * (t.alpha * decay),
                d1_heun: t.alpha * (decay / (-2.0 * h) + 1.0),
                d2: t.alpha * ((decay - 2.0 * h) / ((2.0 * h) * (2.0 * h)) - 0.5),
                noise: t.sigma * decay.sqrt(),
            }
        }
        AlgorithmType::SdeDpmSolver => {
            let growth = exp_f32(h) - 1.0;
            Coefficients {
                sample: t.alpha / s.alpha,
                d0: -2.0 * (t.sigma * growth),
                d1_midpoint: -(t.sigma * growth),
                d1_heun: -2.0 * (t.sigma * (growth / h - 1.0)),
                d2: 0.0,
                noise: t.sigma * (exp_f32(2.0 * h) - 1.0).sqrt(),
            }
        }
    }
}

/// The step from the second of the noise levels to the first, of the order that the number of further ones allows: those of
/// the steps before, newest first.
pub(super) fn update(algorithm: AlgorithmType, solver: SolverType, levels: &[NoiseLevel]) -> Option<Update> {
    let (t, s0) = (*levels.first()?, *levels.get(1)?);
    let of = coefficients(algorithm, t, s0);
    let step = |later: NoiseLevel, earlier: NoiseLevel| later.lambda - earlier.lambda;
    let model_outputs = match levels {
        [_, _] => vec![f64::from(of.d0)],
        [_, _, s1] => {
            // D0 = m0, D1 = (m0 - m1) / r0
            let inverse_r0 = f64::from(1.0 / (step(s0, *s1) / step(t, s0)));
            let d1 = if solver == SolverType::Heun { of.d1_heun } else { of.d1_midpoint };
            let d1 = f64::from(d1) * inverse_r0;
            vec![f64::from(of.d0) + d1, -d1]
        }
        [_, _, s1, s2, ..] => {
            // D1_0 = (m0 - m1) / r0, D1_1 = (m1 - m2) / r1,
            // D1 = D1_0 + (D1_0 - D1_1) r0 / (r0 + r1), D2 = (D1_0 - D1_1) / (r0 + r1)
            let h = step(t, s0);
            let (r0, r1) = (step(s0, *s1) / h, step(*s1, *s2) / h);
            let (inverse_r0, inverse_r1) = (f64::from(1.0 / r0), f64::from(1.0 / r1));
            let (d1, d2) = (f64::from(of.d1_heun), f64::from(of.d2));
            let second = d1 * f64::from(r0 / (r0 + r1)) + d2 * f64::from(1.0 / (r0 + r1));
            let (of_d1_0, of_d1_1) = ((d1 + second) * inverse_r0, -second * inverse_r1);
            vec![f64::from(of.d0) + of_d1_0, of_d1_1 - of_d1_0, -of_d1_1]
        }
        _ => return None,
    };
    Some(Update { sample: f64::from(of.sample), model_outputs, noise: f64::from(of.noise) })
}
