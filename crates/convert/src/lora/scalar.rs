use half::{bf16, f16};
use safetensors::Dtype;

use super::{LoraError, TensorRef};
use crate::{Error, Result, Source};

/// The number that a tensor of one element holds: an alpha.
///
/// # Errors
/// When it has more elements, is no number, or cannot be read.
pub(super) fn read_scalar(source: &dyn Source, tensor: &TensorRef) -> Result<f64> {
    if tensor.shape.iter().any(|length| *length != 1) {
        return Err(LoraError::shape(source.name(), tensor, "a single number").into());
    }
    let bytes = source.bytes(&tensor.name)?;
    let value =
        decode(&bytes, tensor.dtype).ok_or_else(|| match tensor.dtype.bitsize() / 8 == bytes.len() {
            true => Error::from(LoraError::Dtype {
                file: source.name().to_string(),
                tensor: tensor.name.clone(),
                dtype: tensor.dtype,
            }),
            false => Error::not_readable(source.name(), &tensor.name),
        })?;
    if value.is_finite() {
        return Ok(value);
    }
    Err(LoraError::Alpha { file: source.name().to_string(), place: tensor.name.clone(), value }.into())
}

fn decode(bytes: &[u8], dtype: Dtype) -> Option<f64> {
    Some(match dtype {
        Dtype::F64 => f64::from_le_bytes(bytes.try_into().ok()?),
        Dtype::F32 => f32::from_le_bytes(bytes.try_into().ok()?).into(),
        Dtype::F16 => f16::from_le_bytes(bytes.try_into().ok()?).into(),
        Dtype::BF16 => bf16::from_le_bytes(bytes.try_into().ok()?).into(),
        // Some scripts write torch.tensor(rank).
        Dtype::I64 => i64::from_le_bytes(bytes.try_into().ok()?) as f64,
        Dtype::I32 => i32::from_le_bytes(bytes.try_into().ok()?).into(),
        Dtype::I16 => i16::from_le_bytes(bytes.try_into().ok()?).into(),
        Dtype::U8 => u8::from_le_bytes(bytes.try_into().ok()?).into(),
        _ => return None,
    })
}
