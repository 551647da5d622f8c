//! Queries, keys, values and masks where candle holds them: no copy in another order or dtype is made of the whole.

use candle_core::{CpuStorage, Layout, Result};
use half::{bf16, f16};

/// `(batch, tokens, heads * dim)` of any strides but the last, which is 1.
pub(super) struct Tokens<'a> {
    values: Values<'a>,
    batch_stride: usize,
    token_stride: usize,
    /// Features of a head.
    dim: usize,
}

#[derive(Clone, Copy)]
enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl<'a> Tokens<'a> {
    pub(super) fn new(storage: &'a CpuStorage, layout: &Layout, heads: usize) -> Result<Self> {
        let start = layout.start_offset();
        let values = match storage {
            CpuStorage::F32(values) => Values::F32(&values[start..]),
            CpuStorage::F16(values) => Values::F16(&values[start..]),
            CpuStorage::BF16(values) => Values::Bf16(&values[start..]),
            _ => candle_core::bail!("attention: expected float32 or half precision"),
        };
        let (&[batch_stride, token_stride, 1], &[.., width]) = (layout.stride(), layout.dims()) else {
            candle_core::bail!("attention: {:?} does not have its features side by side", layout.shape());
        };
        Ok(Self { values, batch_stride, token_stride, dim: width / heads })
    }

    fn place(&self, batch: usize, token: usize, head: usize) -> std::ops::Range<usize> {
        let start = batch * self.batch_stride + token * self.token_stride + head * self.dim;
        start..start + self.dim
    }

    /// The features of a token for a head, in float32.
    pub(super) fn read(&self, batch: usize, token: usize, head: usize, row: &mut [f32]) {
        let place = self.place(batch, token, head);
        match self.values {
            Values::F32(values) => row.copy_from_slice(&values[place]),
            Values::F16(values) => {
                row.iter_mut().zip(&values[place]).for_each(|(number, value)| *number = value.to_f32());
            }
            Values::Bf16(values) => {
                row.iter_mut().zip(&values[place]).for_each(|(number, value)| *number = value.to_f32());
            }
        }
    }

    /// The features of a token for a head, which are bfloat16, two in a unit; the last may be alone.
    pub(super) fn read_pairs(&self, batch: usize, token: usize, head: usize, row: &mut [f32]) {
        let Values::Bf16(values) = self.values else { return };
        let (pairs, last) = values[self.place(batch, token, head)].as_chunks::<2>();
        row.iter_mut().zip(pairs).for_each(|(unit, [first, second])| *unit = unit_of(*first, *second));
        if let (Some(unit), [last]) = (row.last_mut(), last) {
            *unit = unit_of(*last, bf16::ZERO);
        }
    }

    /// The features of a token and of the next, where there is one, for a head, which are bfloat16: a unit for each feature.
    pub(super) fn read_neighbours(
        &self,
        batch: usize,
        token: usize,
        has_next: bool,
        head: usize,
        row: &mut [f32],
    ) {
        let Values::Bf16(values) = self.values else { return };
        let first = &values[self.place(batch, token, head)];
        if has_next {
            let second = &values[self.place(batch, token + 1, head)];
            for ((unit, first), second) in row.iter_mut().zip(first).zip(second) {
                *unit = unit_of(*first, *second);
            }
        } else {
            row.iter_mut().zip(first).for_each(|(unit, first)| *unit = unit_of(*first, bf16::ZERO));
        }
    }
}

/// Two bfloat16 in the bits of a float32, the first in the lower half.
fn unit_of(first: bf16, second: bf16) -> f32 {
    f32::from_bits(u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16)
}

/// The nearest bfloat16, the even one of two. As `bf16::from_f32`, but without a branch, so that the compiler makes vectors of it.
#[inline(always)]
pub(super) fn to_bf16(number: f32) -> bf16 {
    let bits = number.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    bf16::from_bits(if number.is_nan() { quiet } else { rounded } as u16)
}

/// `(batch, heads, queries, keys)` of any strides.
pub(super) struct Mask<'a> {
    values: &'a [f32],
    strides: [usize; 4],
}

impl<'a> Mask<'a> {
    pub(super) fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let &[batch, head, query, key] = layout.stride() else {
            candle_core::bail!("attention: the mask {:?} does not have 4 dimensions", layout.shape());
        };
        let values = &storage.as_slice::<f32>()?[layout.start_offset()..];
        Ok(Self { values, strides: [batch, head, query, key] })
    }

    /// Writes the mask of these queries and keys to `tile`, `(keys, width)`; zeros beyond the queries, where a sum over all of a row may come by.
    pub(super) fn read(
        &self,
        [batch, head]: [usize; 2],
        queries: std::ops::Range<usize>,
        keys: std::ops::Range<usize>,
        width: usize,
        tile: &mut [f32],
    ) {
        let [batch_stride, head_stride, query_stride, key_stride] = self.strides;
        let start = batch * batch_stride + head * head_stride + queries.start * query_stride;
        for (row, key) in tile.chunks_exact_mut(width).zip(keys) {
            let start = start + key * key_stride;
            for (query, number) in row[..queries.len()].iter_mut().enumerate() {
                *number = self.values[start + query * query_stride];
            }
            row[queries.len()..].fill(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_half() {
        for bits in (0..=u32::MAX).step_by(4099).chain([0x7f7f_ffff, 0x7f80_0000, 0xff80_0000, 0x7f80_0001]) {
            let number = f32::from_bits(bits);
            assert_eq!(to_bf16(number).to_bits(), bf16::from_f32(number).to_bits(), "{bits:x}");
        }
    }
}
