//! Arithmetic of torch and numpy whose last bits decide timesteps, done as they do it.

/// `torch.linspace(start, end, count, dtype=torch.float32)`: from both ends to the middle, with fused multiply-adds.
pub(crate) fn torch_linspace_f32(start: f64, end: f64, count: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    if count < 2 {
        return vec![start; count];
    }
    let step = (end - start) / (count - 1) as f32;
    let value = |index: usize| {
        if index < count / 2 {
            step.mul_add(index as f32, start)
        } else {
            (-step).mul_add((count - index - 1) as f32, end)
        }
    };
    (0..count).map(value).collect()
}

/// `np.linspace(start, end, count)`: the last value is exactly `end`.
pub(crate) fn numpy_linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    if count < 2 {
        return vec![start; count];
    }
    let step = (end - start) / (count - 1) as f64;
    let value = |index: usize| if index + 1 == count { end } else { index as f64 * step + start };
    (0..count).map(value).collect()
}

/// `np.log` of a positive float32 (a ratio of two polynomials, `loops_exponent_log.dispatch.c.src` of numpy): its error of
/// some units in the last place decides how a timestep made of a sigma is truncated.
pub(crate) fn numpy_ln_f32(x: f32) -> f32 {
    const NUMERATOR: [f32; 6] = [2.589_979_2e-2, 3.808_837_7e-1, 1.480_000_7, 2.112_677_6, 1.0, 0.0];
    const DENOMINATOR: [f32; 6] =
        [5.875_095_5e-3, 1.546_476_4e-1, 9.864_942_4e-1, 2.453_006, 2.612_677_6, 1.0];
    if !x.is_normal() || x < 0.0 {
        return x.ln();
    }
    let mut exponent = (x.to_bits() >> 23) as f32 - 126.0;
    let mut mantissa = f32::from_bits(x.to_bits() & 0x007f_ffff | 0x3f00_0000);
    if mantissa <= std::f32::consts::FRAC_1_SQRT_2 {
        mantissa += mantissa;
        exponent -= 1.0;
    }
    let y = mantissa - 1.0;
    let polynomial =
        |coefficients: [f32; 6]| coefficients[1..].iter().fold(coefficients[0], |sum, c| sum.mul_add(y, *c));
    exponent.mul_add(std::f32::consts::LN_2, polynomial(NUMERATOR) / polynomial(DENOMINATOR))
}

/// `np.interp(x, np.arange(len(values)), values)`.
pub(crate) fn numpy_interp(x: f64, values: &[f32]) -> f64 {
    let at = |index: usize| f64::from(values[index]);
    let last = values.len() - 1;
    if x <= 0.0 || last == 0 {
        return at(0);
    }
    if x >= last as f64 {
        return at(last);
    }
    let below = x.floor() as usize;
    (at(below + 1) - at(below)) * (x - below as f64) + at(below)
}

/// The float32 nearest to e^x, as torch has it but for rare last bits.
pub(crate) fn exp_f32(x: f32) -> f32 {
    f64::from(x).exp() as f32
}

/// The float32 nearest to ln(x), as torch has it but for rare last bits.
pub(crate) fn ln_f32(x: f32) -> f32 {
    f64::from(x).ln() as f32
}
