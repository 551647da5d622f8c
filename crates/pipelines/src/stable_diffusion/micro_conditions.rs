//! What Stable Diffusion XL is told of a picture's size, cut and quality (section 2.2 of its paper,
//! <https://huggingface.co/papers/2307.01952>).

use candle_core::{DType, Device, Tensor};

use crate::denoise::TimeIds;
use crate::error::Result;

/// Sizes, cut and quality that Stable Diffusion XL paints as if its picture had. Sizes are (height, width) in pixels; where one is not given,
/// it is that of the picture.
///
/// Which of the negative ones count, depends, as in diffusers: text to image takes them where `negative_original_size` and
/// `negative_target_size` are both given, else all are as the positive ones. Image to image takes each that is given, but the
/// positive cut; with a refiner both cuts, and scores in place of target sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct MicroConditions {
    /// The size that the picture had before it was brought to its own: a small one paints blurred, as if it had been enlarged.
    pub original_size: Option<(usize, usize)>,
    /// The pixels that were cut off at the top and at the left: 0 paints what is well centred.
    pub crops_coords_top_left: (usize, usize),
    /// The size that it was brought to.
    pub target_size: Option<(usize, usize)>,
    /// The same for the negative prompt.
    pub negative_original_size: Option<(usize, usize)>,
    /// The same for the negative prompt.
    pub negative_crops_coords_top_left: (usize, usize),
    /// The same for the negative prompt.
    pub negative_target_size: Option<(usize, usize)>,
    /// How beautiful the picture is, from 1 to 10; refiners alone are told.
    pub aesthetic_score: f64,
    /// The same for the negative prompt.
    pub negative_aesthetic_score: f64,
}

impl Default for MicroConditions {
    fn default() -> Self {
        Self {
            original_size: None,
            crops_coords_top_left: (0, 0),
            target_size: None,
            negative_original_size: None,
            negative_crops_coords_top_left: (0, 0),
            negative_target_size: None,
            aesthetic_score: 6.0,
            negative_aesthetic_score: 2.5,
        }
    }
}

impl MicroConditions {
    /// The numbers for a picture of this size (height, width) that is painted from text: of the prompt and of the negative prompt.
    pub(super) fn text_to_image(&self, size: (usize, usize)) -> [Vec<f64>; 2] {
        let original = self.original_size.unwrap_or(size);
        let target = self.target_size.unwrap_or(size);
        let prompt = numbers(&[original, self.crops_coords_top_left, target]);
        let negative = match (self.negative_original_size, self.negative_target_size) {
            (Some(original), Some(target)) => {
                numbers(&[original, self.negative_crops_coords_top_left, target])
            }
            _ => prompt.clone(),
        };
        [prompt, negative]
    }

    /// The same for a picture that is painted from another one.
    pub(super) fn image_to_image(
        &self,
        size: (usize, usize),
        requires_aesthetics_score: bool,
    ) -> [Vec<f64>; 2] {
        let original = self.original_size.unwrap_or(size);
        let target = self.target_size.unwrap_or(size);
        let negative_original = self.negative_original_size.unwrap_or(original);
        let negative_target = self.negative_target_size.unwrap_or(target);
        let crops = self.crops_coords_top_left;
        if !requires_aesthetics_score {
            return [
                numbers(&[original, crops, target]),
                numbers(&[negative_original, crops, negative_target]),
            ];
        }
        let with_score = |sizes: &[(usize, usize)], score| [numbers(sizes), vec![score]].concat();
        [
            with_score(&[original, crops], self.aesthetic_score),
            with_score(
                &[negative_original, self.negative_crops_coords_top_left],
                self.negative_aesthetic_score,
            ),
        ]
    }
}

fn numbers(sizes: &[(usize, usize)]) -> Vec<f64> {
    sizes.iter().flat_map(|(height, width)| [*height as f64, *width as f64]).collect()
}

/// The numbers of the prompt and of the negative prompt for each of `batch` pictures, rounded to `dtype` as in diffusers.
pub(super) fn time_ids(
    [prompt, negative]: [Vec<f64>; 2],
    batch: usize,
    dtype: DType,
    device: &Device,
) -> Result<TimeIds> {
    let rows = |numbers: Vec<f64>| -> Result<Tensor> {
        let count = numbers.len();
        let row = Tensor::from_vec(numbers, (1, count), device)?.to_dtype(dtype)?;
        Ok(row.repeat((batch, 1))?)
    };
    Ok(TimeIds { prompt: rows(prompt)?, negative: rows(negative)? })
}
