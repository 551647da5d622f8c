//! Upsampling and its gradient at odd sizes, at every level that the machine has, against plain float64.

use candle_core::{DType, Result};

use super::{summed, upsample_nearest2d_to};
use crate::cpu::testing::{as_view, assert_sums, doubles, levels, numbers};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Sides that have no common divisor, so that float32 rounds no pixel onto its neighbour, or by two.
const SIZES: [([usize; 2], [usize; 2]); 9] = [
    ([1, 1], [2, 2]),
    ([1, 3], [2, 6]),
    ([17, 31], [34, 62]),
    ([33, 1], [66, 2]),
    ([3, 5], [7, 10]),
    ([1, 1], [33, 17]),
    ([31, 33], [33, 31]),
    ([17, 31], [9, 13]),
    ([3, 17], [1, 1]),
];

#[test]
fn pixels_and_their_gradients_at_odd_sizes() -> Result<()> {
    for ([old_height, old_width], [height, width]) in SIZES {
        for (batch, channels) in [(1, 1), (2, 3), (3, 17)] {
            let planes = batch * channels;
            // In order of the result, the number that each pixel shows.
            let shown: Vec<usize> = (0..planes * height * width)
                .map(|place| {
                    let (plane, row, column) =
                        (place / (height * width), place / width % height, place % width);
                    (plane * old_height + row * old_height / height) * old_width + column * old_width / width
                })
                .collect();
            for dtype in DTYPES {
                let x = as_view(&numbers(&[batch, channels, old_height, old_width], 1).to_dtype(dtype)?);
                let gradient = as_view(&numbers(&[batch, channels, height, width], 2).to_dtype(dtype)?);
                let name = format!("{:?} of {dtype:?} to {height}x{width}", x.dims());
                let numbers = doubles(&x);
                let expected: Vec<f64> = shown.iter().map(|place| numbers[*place]).collect();
                let result = upsample_nearest2d_to(&x, height, width)?;
                assert_eq!((result.dims(), result.dtype()), (gradient.dims(), dtype));
                assert!(doubles(&result) == expected, "{name}");
                let mut sums = vec![(0f64, 0f64); numbers.len()];
                for (place, number) in shown.iter().zip(doubles(&gradient)) {
                    sums[*place].0 += number;
                    sums[*place].1 += number.abs();
                }
                for level in levels() {
                    let found = summed(level, &gradient, [old_height, old_width])?;
                    assert_eq!((found.dims(), found.dtype()), (x.dims(), dtype));
                    assert_sums(&format!("{level:?}, {name}"), &found, &sums, 1e-6);
                }
            }
        }
    }
    Ok(())
}
