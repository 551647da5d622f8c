//! The precision of float32 products, a setting of the whole process: alone in its program.

use candle_core::{DType, Device, Result, Tensor};
use candle_diffusers_kernels::{
    Float32MatmulPrecision, float32_matmul_precision, linear, set_float32_matmul_precision,
};

#[test]
fn products_are_as_exact_as_was_set() -> Result<()> {
    let x = Tensor::randn(0f32, 1.0, (33, 320), &Device::Cpu)?;
    let weight = Tensor::randn(0f32, 1.0, (65, 320), &Device::Cpu)?;
    let expected = x.to_dtype(DType::F64)?.matmul(&weight.to_dtype(DType::F64)?.t()?)?;
    let size = expected.sqr()?.mean_all()?.to_scalar::<f64>()?.sqrt();
    for (precision, most) in [
        (Float32MatmulPrecision::Medium, 1e-2),
        (Float32MatmulPrecision::High, 3e-5),
        (Float32MatmulPrecision::Highest, 1e-6),
    ] {
        set_float32_matmul_precision(precision);
        assert_eq!(float32_matmul_precision()?, precision);
        let difference = (linear(&x, &weight, None)?.to_dtype(DType::F64)? - &expected)?;
        let error = difference.sqr()?.mean_all()?.to_scalar::<f64>()?.sqrt() / size;
        assert!(error < most, "{}: {error:.1e}", precision.name());
    }
    Ok(())
}
