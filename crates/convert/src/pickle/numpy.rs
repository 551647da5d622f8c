//! numpy's numbers, which training scripts leave among the plain ones.

use super::value::{Object, Value};

/// How the number is written that `object` stands for: numpy's `scalar(dtype, bytes)`. `None` where it is something else.
pub(super) fn number(object: &Object) -> Option<String> {
    if !object.class().ends_with("multiarray.scalar") {
        return None;
    }
    let [Value::Object(dtype), Value::Bytes(bytes)] = object.arguments() else { return None };
    // The second part of a dtype's state is the order of the bytes.
    let order = dtype.state().and_then(Value::as_sequence).and_then(|state| state.get(1)?.as_text());
    if dtype.class() != "numpy.dtype" || !matches!(order, Some("<" | "|" | "=")) {
        return None;
    }
    let bytes: &[u8] = bytes;
    Some(match dtype.arguments().first()?.as_text()? {
        "b1" => (*bytes.first()? != 0).to_string(),
        "i1" => i8::from_le_bytes(bytes.try_into().ok()?).to_string(),
        "i2" => i16::from_le_bytes(bytes.try_into().ok()?).to_string(),
        "i4" => i32::from_le_bytes(bytes.try_into().ok()?).to_string(),
        "i8" => i64::from_le_bytes(bytes.try_into().ok()?).to_string(),
        "u1" => u8::from_le_bytes(bytes.try_into().ok()?).to_string(),
        "u2" => u16::from_le_bytes(bytes.try_into().ok()?).to_string(),
        "u4" => u32::from_le_bytes(bytes.try_into().ok()?).to_string(),
        "u8" => u64::from_le_bytes(bytes.try_into().ok()?).to_string(),
        "f4" => f32::from_le_bytes(bytes.try_into().ok()?).to_string(),
        "f8" => f64::from_le_bytes(bytes.try_into().ok()?).to_string(),
        _ => return None,
    })
}
