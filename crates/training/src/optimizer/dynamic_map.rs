//! Dynamic quantisation to 8 bits in blocks, as bitsandbytes keeps optimizer states (<https://arxiv.org/abs/2110.02861>).
//!
//! A block of values is divided by its largest absolute value; each quotient becomes the index of the nearest of 256 numbers, which lie dense
//! near zero: an exponent, an indicator bit and a fraction of the bits that are left.

/// Values that share a scale.
pub(super) const BLOCK: usize = 256;

/// The exponents run from 0 to minus this, less one.
const EXPONENTS: u32 = 7;

/// Leading bits of a float32 (sign, exponent and 7 of the fraction) by which a code is looked up.
const KEY_BITS: u32 = 16;

/// The numbers that the 256 codes stand for, ascending.
pub(super) struct DynamicMap {
    numbers: [f32; 256],
    /// Halfway between each number and the next; nothing is above the last.
    bounds: [f32; 256],
    /// For the leading bits of a value, the code of the least value that begins with them. At most one bound lies between the values that
    /// begin alike.
    codes: Box<[u8; 1 << KEY_BITS]>,
}

impl DynamicMap {
    /// For values of both signs: the first moment.
    pub(super) fn signed() -> Self {
        Self::new(true)
    }

    /// For values from zero on: the second moment.
    pub(super) fn unsigned() -> Self {
        Self::new(false)
    }

    /// bitsandbytes' `create_dynamic_map(signed)`.
    fn new(signed: bool) -> Self {
        let mut numbers = vec![0.0, 1.0];
        for exponent in 0..EXPONENTS {
            let fractions = 1 << if signed { exponent } else { exponent + 1 };
            let scale = 10f64.powi(exponent as i32 - (EXPONENTS as i32 - 1));
            for mean in means(fractions) {
                let number = (scale * f64::from(mean)) as f32;
                numbers.push(number);
                if signed {
                    numbers.push(-number);
                }
            }
        }
        numbers.sort_by(f32::total_cmp);
        let numbers: [f32; 256] = std::array::from_fn(|index| numbers.get(index).copied().unwrap_or(1.0));
        let bound = |index: usize| numbers.get(index + 1).map(|next| (numbers[index] + next) / 2.0);
        let bounds: [f32; 256] = std::array::from_fn(|index| bound(index).unwrap_or(f32::INFINITY));
        let code_of_least = |key: usize| {
            let key = key as u32;
            let (first, last) = (key << KEY_BITS, key << KEY_BITS | ((1 << KEY_BITS) - 1));
            let least = f32::from_bits(first).min(f32::from_bits(last));
            bounds.partition_point(|&bound| bound < least).min(255) as u8
        };
        Self { numbers, bounds, codes: Box::new(std::array::from_fn(code_of_least)) }
    }

    /// The value of each code of a block times the block's scale.
    pub(super) fn dequantise(&self, codes: &[u8], scale: f32, values: &mut [f32]) {
        values
            .iter_mut()
            .zip(codes)
            .for_each(|(value, &code)| *value = self.numbers[usize::from(code)] * scale);
    }

    /// The codes of a block, and its scale.
    pub(super) fn quantise(&self, values: &[f32], codes: &mut [u8]) -> f32 {
        let largest = largest_absolute(values);
        // A block of zeros has the scale 0, and must not divide by it.
        let inverse = 1.0 / largest.max(1e-38);
        for (code, value) in codes.iter_mut().zip(values) {
            *code = self.nearest(value * inverse);
        }
        largest
    }

    /// How many bounds lie below `value`.
    fn nearest(&self, value: f32) -> u8 {
        // As 16 bits it needs no check.
        let key = (value.to_bits() >> KEY_BITS) as u16;
        let code = self.codes[usize::from(key)];
        code + u8::from(self.bounds[usize::from(code)] < value)
    }
}

fn largest_absolute(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    // Several that the processor can keep in one vector.
    let mut largest = [0.0; 8];
    let (rows, rest) = values.as_chunks::<8>();
    for row in rows.iter().map(|row| row.as_slice()).chain([rest]) {
        largest.iter_mut().zip(row).for_each(|(largest, value)| *largest = larger(*largest, value.abs()));
    }
    largest.into_iter().fold(0.0, larger)
}

/// The middles of `count` equal parts of the interval from 0.1 to 1, whose ends are rounded as `torch.linspace` rounds them.
fn means(count: usize) -> Vec<f32> {
    let step = (1.0 - 0.1f32) / count as f32;
    let bound = |index: usize| {
        if index < count.div_ceil(2) {
            0.1 + step * index as f32
        } else {
            1.0 - step * (count - index) as f32
        }
    };
    (0..count).map(|index| (bound(index) + bound(index + 1)) / 2.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_its_own_code() {
        for map in [DynamicMap::signed(), DynamicMap::unsigned()] {
            for (index, &number) in map.numbers.iter().enumerate() {
                assert_eq!(usize::from(map.nearest(number)), index);
            }
            assert!(map.numbers.is_sorted());
        }
    }

    #[test]
    fn codes_are_those_of_counted_bounds() {
        for map in [DynamicMap::signed(), DynamicMap::unsigned()] {
            let counted = |value: f32| map.bounds.iter().filter(|bound| **bound < value).count();
            let around =
                map.bounds[..255].iter().flat_map(|&bound| [bound.next_down(), bound, bound.next_up()]);
            let even = (-1000..=1000).map(|step| step as f32 / 1000.0);
            for value in around.chain(even).chain([
                0.0,
                -0.0,
                1e-9,
                -1e-9,
                1e-40,
                1.5,
                -1.5,
                f32::INFINITY,
                f32::NEG_INFINITY,
            ]) {
                assert_eq!(usize::from(map.nearest(value)), counted(value), "{value}");
            }
            // A gradient that is no number makes no panic.
            map.nearest(f32::NAN);
            map.nearest(-f32::NAN);
        }
    }

    #[test]
    fn blocks_of_zeros_stay_zeros() {
        for map in [DynamicMap::signed(), DynamicMap::unsigned()] {
            let (mut codes, mut values) = ([7; BLOCK], [1.0; BLOCK]);
            assert_eq!(map.quantise(&[0.0; BLOCK], &mut codes), 0.0);
            map.dequantise(&codes, 0.0, &mut values);
            assert_eq!(values, [0.0; BLOCK]);
        }
    }
}
