//! exp for float32 without libm, in a form that the compiler makes vectors of.

// Cephes' polynomial (Moshier, 1992) for (exp(r) - 1 - r) / r^2 where |r| <= ln 2 / 2, highest power first.
const COEFFICIENTS: [f32; 6] =
    [1.987_569_2e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
/// ln 2 in two parts; the first has so few bits that its products with the exponents of a float32 are exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// 1.5 * 2^23: floats of this size are a whole number apart, so that adding it rounds to one, which its last bits are.
const ROUND: f32 = 12_582_912.0;

/// e to the power of `x`. Relative error below 1e-7 where the result is a normal number; 0 for what lies below the smallest
/// float32 and for negative infinity, infinity above the greatest, NaN for NaN.
///
/// For loops over fixed-size chunks in a function with `#[target_feature]`, which the compiler then vectorises. `FMA` says that the function
/// has fused multiply-add; without it, `mul_add` would be a call of libm for each number.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    // Beyond these the result is infinity or 0 anyway. Written so that NaN passes.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = multiply_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let exponent = shifted - ROUND;
    let r = multiply_add::<FMA>(exponent, -LN_2_HIGH, x);
    let r = multiply_add::<FMA>(exponent, -LN_2_LOW, r);
    let [first, rest @ ..] = COEFFICIENTS;
    let polynomial = rest.into_iter().fold(first, |sum, next| multiply_add::<FMA>(sum, r, next));
    let power = multiply_add::<FMA>(polynomial, r * r, r) + 1.0;
    // Times 2^exponent in two halves: it alone may be too great or too small for a float32.
    let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = exponent >> 1;
    power * two_to_the(half) * two_to_the(exponent.wrapping_sub(half))
}

#[inline(always)]
fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn two_to_the(exponent: i32) -> f32 {
    f32::from_bits((exponent.wrapping_add(127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The greatest relative error to float64 over one in `step` of all floats.
    fn greatest_error(step: usize, exp: impl Fn(f32) -> f32) -> f64 {
        let mut greatest = 0f64;
        for bits in (0..=u32::MAX).step_by(step) {
            let x = f32::from_bits(bits);
            let (expected, found) = (f64::from(x).exp(), exp(x));
            if x.is_nan() {
                assert!(found.is_nan());
            } else if expected as f32 == f32::INFINITY {
                assert_eq!(found, f32::INFINITY, "exp({x})");
            } else if expected < f64::from(f32::MIN_POSITIVE) {
                let difference = (f64::from(found) - expected).abs();
                assert!(difference <= f64::from(f32::from_bits(1)), "exp({x}) is {found}, not {expected}");
            } else {
                greatest = greatest.max((f64::from(found) / expected - 1.0).abs());
            }
        }
        greatest
    }

    #[test]
    fn the_error_is_below_the_stated_one() {
        for (name, error) in
            [("plain", greatest_error(499, exp::<false>)), ("fma", greatest_error(499, exp::<true>))]
        {
            println!("{name}: relative error up to {error:.3e}");
            assert!(error < 1e-7, "{name}: {error}");
        }
    }

    #[test]
    fn ends_and_the_middle() {
        for exp in [exp::<false>, exp::<true>] {
            assert_eq!(exp(0.0), 1.0);
            assert_eq!(exp(-0.0), 1.0);
            assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
            assert_eq!(exp(f32::MIN), 0.0);
            assert_eq!(exp(f32::INFINITY), f32::INFINITY);
            assert_eq!(exp(f32::MAX), f32::INFINITY);
            assert!(exp(f32::NAN).is_nan());
        }
    }

    #[test]
    #[ignore = "takes minutes: cargo test --release exponential -- --ignored --nocapture"]
    fn the_error_over_all_floats() {
        println!("plain: {:.3e}", greatest_error(1, exp::<false>));
        println!("fma: {:.3e}", greatest_error(1, exp::<true>));
    }
}
