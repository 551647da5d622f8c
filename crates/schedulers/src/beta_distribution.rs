//! Quantiles of the beta distribution with both parameters 0.6, which beta sigmas follow.

/// Both parameters of the distribution (<https://huggingface.co/papers/2407.12173>).
const SHAPE: f64 = 0.6;
/// The beta function at (0.6, 0.6).
const NORMALIZATION: f64 = 2.415_344_208_002_472_3;
/// Newton's method doubles the digits with each step; this is several more than float64 needs.
const ITERATIONS: usize = 20;

/// The x below which a share `probability` of the distribution lies (`scipy.stats.beta.ppf(probability, 0.6, 0.6)`).
pub(crate) fn quantile(probability: f64) -> f64 {
    if probability > 0.5 {
        return 1.0 - quantile(1.0 - probability);
    }
    if probability <= 0.0 {
        return 0.0;
    }
    // Where only the first term of the series counts; the density falls up to 1/2, so that Newton's method converges.
    let mut x = (probability * SHAPE * NORMALIZATION).powf(1.0 / SHAPE).min(0.5);
    for _ in 0..ITERATIONS {
        let density = (x * (1.0 - x)).powf(SHAPE - 1.0) / NORMALIZATION;
        let next = (x - (cumulative(x) - probability) / density).clamp(x / 4.0, 0.5);
        if next == x {
            break;
        }
        x = next;
    }
    x
}

/// The share of the distribution below `x`, at most 1/2: the power series of the incomplete beta function.
fn cumulative(x: f64) -> f64 {
    let (mut sum, mut factor) = (0.0, 1.0);
    for k in 0..200 {
        let term = factor / (SHAPE + f64::from(k));
        sum += term;
        if term < sum * 1e-18 {
            break;
        }
        factor *= x * (1.0 - SHAPE + f64::from(k)) / f64::from(k + 1);
    }
    sum * x.powf(SHAPE) / NORMALIZATION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_inverts_the_distribution() {
        assert_eq!((quantile(0.0), quantile(1.0)), (0.0, 1.0));
        for index in 1..1000 {
            let probability = f64::from(index) / 1000.0;
            let x = quantile(probability);
            let back = if x <= 0.5 { cumulative(x) } else { 1.0 - cumulative(1.0 - x) };
            assert!((back - probability).abs() < 1e-14, "{probability} {back}");
        }
    }
}
