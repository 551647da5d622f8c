//! Operations that add, copy and reorder numbers, against candle's own and at odd sizes; views as inputs.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_diffusers_kernels::*;

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Whole numbers, so that sums are exact in every dtype.
fn numbers(shape: &[usize], dtype: DType) -> Tensor {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|index| (index * 37 % 101) as f32 - 50.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// The same numbers with other strides, and others around them.
fn as_view(tensor: &Tensor) -> Tensor {
    let last = tensor.rank() - 1;
    let wider = tensor.pad_with_zeros(last, 1, 2).unwrap();
    let flipped = wider.transpose(0, last).unwrap().contiguous().unwrap().transpose(0, last).unwrap();
    flipped.narrow(last, 1, tensor.dims()[last]).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_same(found: &Tensor, expected: &Tensor) {
    assert_eq!((found.dims(), found.dtype()), (expected.dims(), expected.dtype()));
    assert!(values(found) == values(expected), "{:?}", found.dims());
}

const SHAPES: &[&[usize]] =
    &[&[1, 1, 1, 1], &[2, 3, 1, 17], &[3, 17, 31, 33], &[1, 33, 3, 1], &[2, 40, 70, 16]];

#[test]
fn sums() -> Result<()> {
    for dtype in DTYPES {
        for shape in SHAPES {
            let (a, b) = (numbers(shape, dtype), as_view(&numbers(shape, dtype).affine(-1.0, 3.0)?));
            assert_same(&add(&a, &b)?, &(&a + &b)?);
            assert_same(&add(&b, &b)?, &(&b + &b)?);
            let vectors = as_view(&numbers(&shape[..2], dtype));
            let wide = vectors.unsqueeze(2)?.unsqueeze(3)?;
            assert_same(&add_per_channel(&a, &vectors)?, &a.broadcast_add(&wide)?);
            assert_same(&add_per_channel(&b, &vectors)?, &b.broadcast_add(&wide)?);
            let scale = numbers(&shape[..2], dtype).affine(0.125, 0.0)?;
            let small = a.affine(0.125, 0.0)?;
            let factor = (scale.unsqueeze(2)?.unsqueeze(3)?.to_dtype(DType::F32)? + 1.0)?;
            let expected = small.to_dtype(DType::F32)?.broadcast_mul(&factor)?;
            let expected = expected.broadcast_add(&wide.to_dtype(DType::F32)?)?.to_dtype(dtype)?;
            assert_same(&scale_shift_per_channel(&small, &scale, &vectors)?, &expected);
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() {
    let x = numbers(&[2, 3, 4, 5], DType::F32);
    for shape in [&[2, 3, 4, 4][..], &[2, 3, 4], &[1, 3, 4, 5]] {
        assert!(add(&x, &numbers(shape, DType::F32)).is_err());
    }
    assert!(add(&x, &numbers(&[2, 3, 4, 5], DType::F16)).is_err());
    let problem = add_per_channel(&x, &numbers(&[1, 3], DType::F32)).unwrap_err().to_string();
    assert!(problem.contains("[1, 3]") && problem.contains("[2, 3, 4, 5]"), "{problem}");
    assert!(
        scale_shift_per_channel(&x, &numbers(&[2, 3], DType::F32), &numbers(&[3, 3], DType::F32)).is_err()
    );
    assert!(cat(&[], 0).is_err());
    assert!(cat(&[&x, &x], 4).is_err());
    assert!(cat(&[&x, &numbers(&[2, 3, 4, 6], DType::F32)], 1).is_err());
    assert!(cat(&[&x, &x.to_dtype(DType::F16).unwrap()], 1).is_err());
    assert!(pixels_to_tokens(&numbers(&[2, 3], DType::F32)).is_err());
    assert!(tokens_to_pixels(&numbers(&[2, 12, 3], DType::F32), 5, 2).is_err());
    assert!(tokens_to_pixels(&numbers(&[2, 12, 3], DType::F32), usize::MAX, 2).is_err());
    assert!(upsample_nearest2d(&numbers(&[2, 3], DType::F32)).is_err());
    assert!(upsample_nearest2d_to(&x, usize::MAX, 2).is_err());
    assert!(upsample_nearest2d_to(&x, 1 << 30, 1 << 30).is_err());
    assert!(upsample_nearest2d_to(&numbers(&[1, 1, 0, 3], DType::F32), 2, 2).is_err());
}

#[test]
fn joined_channels() -> Result<()> {
    for dtype in DTYPES {
        for (batch, height, width) in [(1, 1, 1), (3, 17, 31), (2, 64, 33)] {
            let tensor = |channels: usize| numbers(&[batch, channels, height, width], dtype);
            let (a, b, c) = (tensor(1), as_view(&tensor(33)), tensor(17).narrow(1, 3, 9)?);
            for dim in 0..4 {
                assert_same(&cat(&[&b, &b], dim)?, &Tensor::cat(&[&b, &b], dim)?);
            }
            assert_same(&cat(&[&a, &b, &c], 1)?, &Tensor::cat(&[&a, &b, &c], 1)?);
            assert_same(&cat(&[&c], 1)?, &c);
        }
    }
    let nothing = numbers(&[2, 0, 40, 40], DType::F32);
    let something = numbers(&[2, 3, 40, 40], DType::F32);
    assert_same(&cat(&[&nothing, &something], 1)?, &something);
    Ok(())
}

#[test]
fn pixels_and_tokens() -> Result<()> {
    for dtype in DTYPES {
        for shape in SHAPES {
            for x in [numbers(shape, dtype), as_view(&numbers(shape, dtype))] {
                let tokens = pixels_to_tokens(&x)?;
                assert_same(&tokens, &x.contiguous()?.flatten_from(2)?.transpose(1, 2)?.contiguous()?);
                assert_same(&tokens_to_pixels(&tokens, shape[2], shape[3])?, &x);
                assert_same(&tokens_to_pixels(&as_view(&tokens), shape[2], shape[3])?, &x);
            }
        }
    }
    assert_eq!(pixels_to_tokens(&numbers(&[2, 0, 4, 4], DType::F32))?.dims(), [2, 16, 0]);
    assert_eq!(pixels_to_tokens(&numbers(&[2, 3, 0, 4], DType::F32))?.dims(), [2, 0, 3]);
    Ok(())
}

#[test]
fn upsampling_by_any_factor() -> Result<()> {
    for dtype in DTYPES {
        for shape in SHAPES {
            let x = as_view(&numbers(shape, dtype));
            let (height, width) = (shape[2], shape[3]);
            assert_same(&upsample_nearest2d(&x)?, &x.upsample_nearest2d(2 * height, 2 * width)?);
            for size in [(2 * height - 1, 2 * width + 1), (1, 1), (77, 3), (height, width)] {
                assert_same(
                    &upsample_nearest2d_to(&x, size.0, size.1)?,
                    &x.upsample_nearest2d(size.0, size.1)?,
                );
            }
        }
    }
    assert_eq!(upsample_nearest2d(&numbers(&[2, 0, 4, 4], DType::F32))?.dims(), [2, 0, 8, 8]);
    assert_eq!(upsample_nearest2d_to(&numbers(&[2, 3, 4, 4], DType::F32), 0, 5)?.dims(), [2, 3, 0, 5]);
    Ok(())
}

#[test]
fn gradients_flow_through_all() -> Result<()> {
    let x = Var::from_tensor(&numbers(&[2, 4, 6, 6], DType::F32))?;
    let vectors = Var::from_tensor(&numbers(&[2, 4], DType::F32))?;
    let (weight, bias) = (numbers(&[4], DType::F32), numbers(&[4], DType::F32));
    let sum = add(&x, &x)?;
    let sum = add_per_channel(&sum, &vectors)?;
    let sum = scale_shift_per_channel(&sum, &vectors, &vectors)?;
    let normed = add_group_norm_silu(&sum, &vectors, 2, &weight, &bias, 1e-5)?;
    let joined = cat(&[&normed, &sum], 1)?;
    let pixels = tokens_to_pixels(&geglu(&pixels_to_tokens(&joined)?)?, 6, 6)?;
    let gradients = upsample_nearest2d(&pixels)?.sum_all()?.backward()?;
    for var in [&x, &vectors] {
        let gradient = gradients.get(var).unwrap();
        assert_eq!(gradient.dims(), var.dims());
        assert!(gradient.abs()?.max(D::Minus1)?.flatten_all()?.max(0)?.to_scalar::<f32>()? > 0.0);
    }
    Ok(())
}

/// 41 * (64 / 82) is 32, and in float32 a little less: torch 2.15 shows pixel 31.
#[test]
fn upsampled_pixels_are_those_that_torch_shows() -> Result<()> {
    let x = Tensor::arange(0f32, 64f32, &Device::Cpu)?.reshape((1, 1, 1, 64))?;
    let shown: Vec<f32> = upsample_nearest2d_to(&x, 1, 82)?.flatten_all()?.to_vec1()?;
    assert_eq!([shown[40], shown[41], shown[42]], [31.0, 31.0, 32.0]);
    Ok(())
}

/// Each part of a joined tensor's gradient is a view of it: a third one for the same tensor is added in place.
#[test]
fn one_tensor_joined_three_times() -> Result<()> {
    let x = Var::from_tensor(&numbers(&[2, 4, 3, 3], DType::F32))?;
    let gradient = |join: &dyn Fn(&[&Tensor]) -> Result<Tensor>| -> Result<Tensor> {
        let doubled = add(&x, &x)?;
        let joined = join(&[&doubled, &doubled, &doubled])?;
        let direction = numbers(joined.dims(), DType::F32);
        let found = (joined * direction)?.sum_all()?.backward()?;
        Ok(found.get(&x).unwrap().clone())
    };
    for dim in 0..4 {
        let found = gradient(&|parts| cat(parts, dim))?;
        assert_same(&found, &gradient(&|parts| Tensor::cat(parts, dim))?);
    }
    Ok(())
}
