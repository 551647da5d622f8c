//! Which latents are of a picture that is smaller than what is trained on, by `CustomDiffusionDataset.preprocess` of diffusers'
//! `examples/custom_diffusion/train_custom_diffusion.py`.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::Example;
use crate::dataset::Area;
use crate::error::Result;

/// 1 for the latents that count and 0 for the others, `(batch, 1, height, width)`: of pictures with an [area](Example::area) those within it, of others all.
pub(super) fn area_masks(examples: &[Example], height: usize, width: usize) -> Result<Tensor> {
    let mut values = Vec::with_capacity(examples.len() * height * width);
    for example in examples {
        let (_, picture_height, picture_width) = example.pixel_values.dims3()?;
        let (rows, columns) = match example.area {
            Some(Area { left, top, width: area_width, height: area_height }) => (
                within(top as usize, area_height as usize, picture_height, height),
                within(left as usize, area_width as usize, picture_width, width),
            ),
            None => (0..height, 0..width),
        };
        let counts = |row: usize, column: usize| rows.contains(&row) && columns.contains(&column);
        let places = (0..height).flat_map(|row| (0..width).map(move |column| (row, column)));
        values.extend(places.map(|(row, column)| if counts(row, column) { 1.0_f32 } else { 0.0 }));
    }
    Ok(Tensor::from_vec(values, (examples.len(), 1, height, width), &Device::Cpu)?)
}

/// How much each picture's mean over all latents is multiplied by to be the mean over those that count, `(batch)`.
pub(super) fn area_weights(masks: &Tensor) -> Result<Tensor> {
    Ok(masks.flatten_from(1)?.mean(1)?.recip()?)
}

/// The latents along one side of a picture that are within `length` pixels from `start`: as in the script all but the first and the last of them, which see what is
/// around. Where that leaves none, as it may below a resolution of about 100, those that are wholly within, or the one in the middle.
fn within(start: usize, length: usize, pixels: usize, latents: usize) -> Range<usize> {
    let factor = (pixels / latents.max(1)).max(1);
    let end = ((start + length) / factor).min(latents);
    let (inner, whole) = (start / factor + 1..end.saturating_sub(1), start.div_ceil(factor)..end);
    let middle = ((start + length / 2) / factor).min(latents.saturating_sub(1));
    [inner, whole].into_iter().find(|range| !range.is_empty()).unwrap_or(middle..middle + 1)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use candle_diffusers_test_support::Fixture;

    use super::*;
    use crate::loss::{LossOptions, loss};

    fn example(size: usize, area: Option<Area>) -> Example {
        Example {
            pixel_values: Tensor::zeros((3, size, size), DType::F32, &Device::Cpu).unwrap(),
            caption: String::new(),
            original_size: (64, 64),
            crop_top_left: (0, 0),
            key: None,
            others: Vec::new(),
            area,
        }
    }

    #[test]
    fn latents_at_the_edge_of_a_picture_do_not_count() {
        // By hand from mask[top // factor + 1 : (top + scale) // factor - 1] of the script, with a factor of 8.
        assert_eq!(within(100, 200, 512, 64), 13..36);
        assert_eq!(within(0, 512, 512, 64), 1..63);
        assert_eq!(within(342, 170, 512, 64), 43..63);
        assert_eq!(within(3, 21, 64, 8), 1..2);
        // What is too small for that: 21 pixels from 8 have two whole latents, 7 from 4 none.
        assert_eq!(within(8, 21, 64, 8), 1..3);
        assert_eq!(within(4, 7, 64, 8), 0..1);
        let area = Area { left: 8, top: 16, width: 40, height: 32 };
        let masks = area_masks(&[example(64, Some(area)), example(64, None)], 8, 8).unwrap();
        assert_eq!(masks.dims(), [2, 1, 8, 8]);
        let masks = masks.squeeze(1).unwrap().to_vec3::<f32>().unwrap();
        for (row, column) in (0..8).flat_map(|row| (0..8).map(move |column| (row, column))) {
            let counts = (3..5).contains(&row) && (2..5).contains(&column);
            assert_eq!(masks[0][row][column], if counts { 1.0 } else { 0.0 }, "{row} {column}");
            assert_eq!(masks[1][row][column], 1.0);
        }
    }

    #[test]
    fn masks_are_those_of_the_script() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/custom_diffusion_pictures");
        let fixture = Fixture::open(format!("{folder}/custom_diffusion_pictures.safetensors"));
        for (size, latents) in [(24_u32, 12), (256, 32)] {
            let places = fixture.get(&format!("{size}/places")).to_vec2::<i64>().unwrap();
            let of_place = |place: Vec<i64>| {
                let [scale, top, left] = [0, 1, 2].map(|field| place[field] as u32);
                let area = Area { left, top, width: scale, height: scale };
                example(size as usize, (scale <= size).then_some(area))
            };
            let examples: Vec<Example> = places.into_iter().map(of_place).collect();
            let actual = area_masks(&examples, latents, latents).unwrap();
            let expected = fixture.get(&format!("{size}/masks")).to_dtype(DType::F32).unwrap();
            assert_eq!(actual.dims(), expected.dims());
            for (index, shown) in examples.iter().enumerate() {
                let values = |masks: &Tensor| masks.get(index).unwrap().squeeze(0).unwrap().to_vec2::<f32>();
                assert_eq!(values(&actual).unwrap(), values(&expected).unwrap(), "{:?}", shown.area);
            }
        }
    }

    #[test]
    fn the_loss_is_the_mean_over_what_counts() {
        // Two pictures of one channel and four latents, of which one and three count.
        let tensor = |values: &[f32]| Tensor::from_slice(values, (2, 1, 2, 2), &Device::Cpu).unwrap();
        let masks = tensor(&[0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]);
        let weights = area_weights(&masks).unwrap();
        assert_eq!(weights.to_vec1::<f32>().unwrap(), [4.0, 4.0 / 3.0]);
        let prediction = tensor(&[9.0, 3.0, 9.0, 9.0, 1.0, 2.0, 9.0, 4.0]);
        let target = tensor(&[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        let options = LossOptions { weights: Some(&weights), mask: Some(&masks), prior_loss_weight: None };
        // (2² / 1 + (1² + 2² + 4²) / 3) / 2, as ((loss * mask).sum([1, 2, 3]) / mask.sum([1, 2, 3])).mean() has it.
        let loss = loss(&prediction, &target, &options).unwrap().to_scalar::<f32>().unwrap();
        assert!((loss - 5.5).abs() < 1e-6, "{loss}");
    }
}
