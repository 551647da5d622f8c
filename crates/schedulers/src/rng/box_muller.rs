//! The Box-Muller transform of torch's `normal_fill`: sixteen uniform numbers to sixteen normal ones.
//!
//! Float32 follows torch's AVX2 kernel operation by operation (cephes polynomials with the fused multiply-adds that its
//! compiler makes), so that the numbers do not depend on the platform's math library.

/// Numbers in one block of the transform.
pub(super) const BLOCK: usize = 16;

/// Turns a block of uniform numbers in [0, 1) into normal ones, in float32.
pub(super) fn transform_f32(block: &mut [f32; BLOCK]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * ln(1.0 - *a)).sqrt();
        let (sin, cos) = sin_cos(std::f32::consts::TAU * *b);
        *a = radius * cos;
        *b = radius * sin;
    }
}

/// Turns a block of uniform numbers in [0, 1) into normal ones, in float64.
pub(super) fn transform_f64(block: &mut [f64; BLOCK]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * (1.0 - *a).ln()).sqrt();
        let theta = std::f64::consts::TAU * *b;
        *a = radius * theta.cos();
        *b = radius * theta.sin();
    }
}

/// Natural logarithm of a float32 in (0, 1] (cephes `logf`).
fn ln(x: f32) -> f32 {
    let x = x.max(f32::MIN_POSITIVE);
    let mut exponent = ((x.to_bits() >> 23) as i32 - 127) as f32 + 1.0;
    let mantissa = f32::from_bits(x.to_bits() & 0x007f_ffff | 0x3f00_0000);
    let mut x = mantissa - 1.0;
    if mantissa < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        x += mantissa;
    }
    const COEFFICIENTS: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let z = x * x;
    let polynomial = COEFFICIENTS[1..].iter().fold(COEFFICIENTS[0], |y, c| y.mul_add(x, *c));
    let y = (polynomial * x).mul_add(z, exponent * -2.121_944_4e-4);
    let y = z.mul_add(-0.5, y);
    exponent.mul_add(0.693_359_4, x + y)
}

/// Sine and cosine of a float32 in [0, 2π] (cephes `sinf` and `cosf`).
fn sin_cos(x: f32) -> (f32, f32) {
    let octant = ((x * (4.0 / std::f32::consts::PI)) as i32 + 1) & !1;
    let y = octant as f32;
    let x = y.mul_add(-0.785_156_25, x);
    let x = y.mul_add(-2.418_756_5e-4, x);
    let x = y.mul_add(-3.774_895e-8, x);
    let z = x * x;

    let cos = 2.443_315_7e-5f32.mul_add(z, -1.388_731_6e-3).mul_add(z, 4.166_664_6e-2);
    let cos = (cos * z).mul_add(z, z * -0.5) + 1.0;
    let sin = (-1.951_529_6e-4f32).mul_add(z, 8.332_161e-3).mul_add(z, -1.666_665_5e-1);
    let sin = (sin * z).mul_add(x, x);

    let (sin, cos) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
    let sin = if octant & 4 == 0 { sin } else { -sin };
    let cos = if (octant - 2) & 4 == 0 { -cos } else { cos };
    (sin, cos)
}
