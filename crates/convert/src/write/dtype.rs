//! Floating-point numbers of one element type as those of another, rounded to nearest, ties to even, as torch does.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use safetensors::Dtype;

/// Whether tensors of that element type are converted at all: integers and the like keep theirs.
pub(crate) fn is_float(dtype: Dtype) -> bool {
    !matches!(
        dtype,
        Dtype::BOOL
            | Dtype::U8
            | Dtype::I8
            | Dtype::I16
            | Dtype::U16
            | Dtype::I32
            | Dtype::U32
            | Dtype::I64
            | Dtype::U64
    )
}

/// The element type `to`, if values of `from` can be converted to it.
pub(super) fn check(from: Dtype, to: Dtype) -> Result<Dtype, ()> {
    use Dtype::{BF16, F8_E4M3, F8_E5M2, F16, F32, F64};
    let reads = matches!(from, F64 | F32 | F16 | BF16 | F8_E4M3 | F8_E5M2);
    let writes = matches!(to, Dtype::F32 | Dtype::F16 | Dtype::BF16);
    if reads && writes { Ok(to) } else { Err(()) }
}

/// What conversion needs beside its input, kept from one chunk to the next.
#[derive(Default)]
pub(super) struct Buffers {
    halves: Vec<u16>,
    floats: Vec<f32>,
    pub(super) out: Vec<u8>,
}

impl Buffers {
    /// Converts the little-endian numbers of `bytes` into `out`, and says whether a finite one became infinite.
    ///
    /// Only for pairs that [`check`] allows.
    pub(super) fn convert(&mut self, bytes: &[u8], from: Dtype, to: Dtype) -> bool {
        self.read(bytes, from);
        self.write(to);
        let had_infinite = has_non_finite(bytes, from);
        !had_infinite && has_non_finite(&self.out, to)
    }

    fn read(&mut self, bytes: &[u8], from: Dtype) {
        self.floats.clear();
        match from {
            Dtype::F64 => {
                // Through float32, as torch goes.
                self.floats.extend(words::<8>(bytes).map(|word| f64::from_le_bytes(word) as f32));
            }
            Dtype::F32 => self.floats.extend(words::<4>(bytes).map(f32::from_le_bytes)),
            Dtype::F8_E4M3 => self.floats.extend(bytes.iter().copied().map(f8_e4m3_to_f32)),
            Dtype::F8_E5M2 => self.floats.extend(bytes.iter().copied().map(f8_e5m2_to_f32)),
            _ => {
                self.halves.clear();
                self.halves.extend(words::<2>(bytes).map(u16::from_le_bytes));
                self.floats.resize(self.halves.len(), 0.0);
                if from == Dtype::F16 {
                    self.halves.reinterpret_cast::<f16>().convert_to_f32_slice(&mut self.floats);
                } else {
                    self.halves.reinterpret_cast::<bf16>().convert_to_f32_slice(&mut self.floats);
                }
            }
        }
    }

    fn write(&mut self, to: Dtype) {
        self.out.clear();
        if to == Dtype::F32 {
            self.out.extend(self.floats.iter().flat_map(|value| value.to_le_bytes()));
            return;
        }
        self.halves.clear();
        self.halves.resize(self.floats.len(), 0);
        if to == Dtype::F16 {
            self.halves.reinterpret_cast_mut::<f16>().convert_from_f32_slice(&self.floats);
        } else {
            self.halves.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(&self.floats);
        }
        self.out.extend(self.halves.iter().flat_map(|value| value.to_le_bytes()));
    }
}

/// Float8 with four bits of exponent and three of mantissa, without infinities (torch's `float8_e4m3fn`; Micikevicius et al., "FP8
/// Formats for Deep Learning").
pub(crate) fn f8_e4m3_to_f32(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 0xf), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    magnitude.copysign(if byte & 0x80 == 0 { 1.0 } else { -1.0 })
}

/// Float8 with five bits of exponent and two of mantissa: the upper half of a float16.
pub(crate) fn f8_e5m2_to_f32(byte: u8) -> f32 {
    f16::from_bits(u16::from(byte) << 8).to_f32()
}

/// Whether any of the little-endian numbers is infinite or not a number; never for integers and uncommon element types.
pub fn has_non_finite(bytes: &[u8], dtype: Dtype) -> bool {
    // In blocks, so that each is a loop without branches and the first that has one ends it.
    const BLOCK: usize = 1 << 16;
    let any = |block: &[u8]| match dtype {
        Dtype::F64 => words::<8>(block)
            .fold(false, |any, word| any | is_exponent_full(u64::from_le_bytes(word), 0x7ff << 52)),
        Dtype::F32 => words::<4>(block)
            .fold(false, |any, word| any | (u32::from_le_bytes(word) & 0x7f80_0000 == 0x7f80_0000)),
        Dtype::F16 => {
            words::<2>(block).fold(false, |any, word| any | (u16::from_le_bytes(word) & 0x7c00 == 0x7c00))
        }
        Dtype::BF16 => {
            words::<2>(block).fold(false, |any, word| any | (u16::from_le_bytes(word) & 0x7f80 == 0x7f80))
        }
        Dtype::F8_E4M3 => block.iter().fold(false, |any, byte| any | (byte & 0x7f == 0x7f)),
        Dtype::F8_E5M2 => block.iter().fold(false, |any, byte| any | (byte & 0x7c == 0x7c)),
        _ => false,
    };
    bytes.chunks(BLOCK).any(any)
}

fn is_exponent_full(bits: u64, mask: u64) -> bool {
    bits & mask == mask
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(value: f32, to: Dtype) -> (Vec<u8>, bool) {
        let mut buffers = Buffers::default();
        let overflowed = buffers.convert(&value.to_le_bytes(), Dtype::F32, to);
        (buffers.out, overflowed)
    }

    #[test]
    fn rounds_to_nearest_even() {
        // Half-way between two float16 (1 and 1 + 2^-10), and a little more.
        assert_eq!(converted(1.000_488_3, Dtype::F16).0, 0x3c00_u16.to_le_bytes());
        assert_eq!(converted(1.000_488_4, Dtype::F16).0, 0x3c01_u16.to_le_bytes());
        assert_eq!(converted(1.001_464_8, Dtype::F16).0, 0x3c02_u16.to_le_bytes());
        // Half-way between two bfloat16 (1 and 1 + 2^-7).
        assert_eq!(converted(1.003_906_3, Dtype::BF16).0, 0x3f80_u16.to_le_bytes());
        assert_eq!(converted(1.011_718_8, Dtype::BF16).0, 0x3f82_u16.to_le_bytes());
    }

    #[test]
    fn says_what_is_too_large() {
        assert_eq!(converted(65504.0, Dtype::F16), (0x7bff_u16.to_le_bytes().to_vec(), false));
        assert_eq!(converted(70000.0, Dtype::F16), (0x7c00_u16.to_le_bytes().to_vec(), true));
        assert!(!converted(f32::INFINITY, Dtype::F16).1);
        assert!(!converted(70000.0, Dtype::BF16).1);
    }

    #[test]
    fn halves_become_floats_exactly_and_back() {
        for dtype in [Dtype::F16, Dtype::BF16] {
            let all: Vec<u8> = (0..0x7c00_u16).flat_map(u16::to_le_bytes).collect();
            let mut buffers = Buffers::default();
            buffers.convert(&all, dtype, Dtype::F32);
            let floats = buffers.out.clone();
            buffers.convert(&floats, Dtype::F32, dtype);
            assert_eq!(buffers.out, all, "{dtype}");
        }
    }

    #[test]
    fn eight_bits_as_torch_reads_them() {
        // torch.tensor(bytes, dtype=torch.uint8).view(torch.float8_e4m3fn).float(), and for float8_e5m2.
        let e4m3 =
            [(0x00, 0.0), (0x01, 0.001_953_125), (0x07, 0.013_671_875), (0x08, 0.015_625), (0x38, 1.0)];
        for (byte, value) in e4m3.into_iter().chain([(0x7e, 448.0), (0xc5, -3.25), (0x80, -0.0)]) {
            assert_eq!(f8_e4m3_to_f32(byte).to_bits(), f32::to_bits(value), "{byte:#x}");
        }
        for (byte, value) in [(0x01, 2f32.powi(-16)), (0x3c, 1.0), (0x7b, 57344.0), (0xc5, -5.0)] {
            assert_eq!(f8_e5m2_to_f32(byte), value, "{byte:#x}");
        }
        assert!(f8_e4m3_to_f32(0x7f).is_nan() && f8_e4m3_to_f32(0xff).is_nan());
        assert!(has_non_finite(&[0, 0xff], Dtype::F8_E4M3) && !has_non_finite(&[0x7e, 0x78], Dtype::F8_E4M3));
        assert!(has_non_finite(&[0x7c], Dtype::F8_E5M2) && !has_non_finite(&[0x7b], Dtype::F8_E5M2));
    }

    #[test]
    fn finds_what_is_not_finite() {
        let f32s = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        assert!(!has_non_finite(&f32s(&[0.0, -1.0, f32::MAX]), Dtype::F32));
        assert!(has_non_finite(&f32s(&[0.0, f32::NAN]), Dtype::F32));
        assert!(has_non_finite(&f64::NEG_INFINITY.to_le_bytes(), Dtype::F64));
        assert!(has_non_finite(&f16::NAN.to_le_bytes(), Dtype::F16));
        assert!(has_non_finite(&bf16::NAN.to_le_bytes(), Dtype::BF16));
    }
}
