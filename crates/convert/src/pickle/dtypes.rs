use safetensors::Dtype;

/// torch's name of each element type that is read, the name of its storage class in old files, and safetensors' name.
///
/// Storage classes are those of `torch/storage.py`; types without one are stored as `UntypedStorage`.
const DTYPES: &[(&str, Option<&str>, Dtype)] = &[
    ("float32", Some("FloatStorage"), Dtype::F32),
    ("float64", Some("DoubleStorage"), Dtype::F64),
    ("float16", Some("HalfStorage"), Dtype::F16),
    ("bfloat16", Some("BFloat16Storage"), Dtype::BF16),
    ("int8", Some("CharStorage"), Dtype::I8),
    ("int16", Some("ShortStorage"), Dtype::I16),
    ("int32", Some("IntStorage"), Dtype::I32),
    ("int64", Some("LongStorage"), Dtype::I64),
    ("uint8", Some("ByteStorage"), Dtype::U8),
    ("bool", Some("BoolStorage"), Dtype::BOOL),
    ("uint16", None, Dtype::U16),
    ("uint32", None, Dtype::U32),
    ("uint64", None, Dtype::U64),
    ("float8_e4m3fn", None, Dtype::F8_E4M3),
    ("float8_e5m2", None, Dtype::F8_E5M2),
    ("complex64", Some("ComplexFloatStorage"), Dtype::C64),
];

/// The element type that torch calls `torch.<name>`.
pub(super) fn from_torch_name(name: &str) -> Option<(&'static str, Dtype)> {
    DTYPES.iter().find(|(torch, ..)| *torch == name).map(|(torch, _, dtype)| (*torch, *dtype))
}

/// The element type of torch's storage class `name`; the class without a type of its own holds bytes.
pub(super) fn from_storage_class(name: &str) -> Option<Dtype> {
    if name == "UntypedStorage" {
        return Some(Dtype::U8);
    }
    DTYPES.iter().find(|(_, class, _)| *class == Some(name)).map(|(.., dtype)| *dtype)
}

/// All names, for messages.
pub(super) fn known() -> String {
    DTYPES.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ")
}

/// Bytes of one element; all types that are read have whole bytes.
pub(super) fn element_bytes(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}
