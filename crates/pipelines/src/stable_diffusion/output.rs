use candle_core::Tensor;
use image::RgbImage;

use crate::error::Result;
use crate::image_processor::to_pictures;

/// What a Stable Diffusion pipeline has painted.
#[derive(Clone, Debug)]
pub struct StableDiffusionPipelineOutput<Images = Vec<RgbImage>> {
    /// The pictures; those that the safety checker flagged are black.
    pub images: Images,
    /// For each picture whether the safety checker flagged it; `None` where there is no safety checker.
    pub nsfw_content_detected: Option<Vec<bool>>,
}

impl StableDiffusionPipelineOutput<Tensor> {
    /// The tensor `(batch, 3, height, width)`, values from 0 to 1, as pictures.
    pub(super) fn into_pictures(self) -> Result<StableDiffusionPipelineOutput> {
        let images = to_pictures(&self.images)?;
        Ok(StableDiffusionPipelineOutput { images, nsfw_content_detected: self.nsfw_content_detected })
    }
}
