//! Pictures that are not to be shown are found and made black, as diffusers' Stable Diffusion pipelines do it.

use candle_core::Tensor;
use candle_diffusers_loaders::{LoadOptions, ModelIndex, Repository, load_safety_checker};
use candle_diffusers_models::StableDiffusionSafetyChecker;

use crate::error::{Error, Result};
use crate::image_processor::{ClipImageProcessor, to_pictures};

const CHECKER: &str = "safety_checker";
const FEATURE_EXTRACTOR: &str = "feature_extractor";

/// A safety checker with what it sees pictures through.
#[derive(Clone, Debug)]
pub struct SafetyChecker {
    /// Brings pictures to the checker's size.
    pub feature_extractor: ClipImageProcessor,
    /// Judges them.
    pub model: StableDiffusionSafetyChecker,
}

impl SafetyChecker {
    /// The checker in the folders `safety_checker` and `feature_extractor` of a pipeline; `None` where its index names none.
    ///
    /// # Errors
    /// When there is a checker without a feature extractor, one of another class, or a file is missing or damaged.
    pub fn load(repository: &Repository, index: &ModelIndex, options: &LoadOptions) -> Result<Option<Self>> {
        let Some(class) = index.components.get(CHECKER) else { return Ok(None) };
        let refuse = |problem: String| {
            let problem = format!("{problem}; load the pipeline without its {CHECKER}, or put that right");
            Err(Error::Folder { file: index.file().to_string(), problem })
        };
        if class.class_name != "StableDiffusionSafetyChecker" {
            return refuse(format!(
                "{CHECKER} is a {}, expected a StableDiffusionSafetyChecker",
                class.class_name
            ));
        }
        if !index.components.contains_key(FEATURE_EXTRACTOR) {
            return refuse(format!("there is a {CHECKER}, but no {FEATURE_EXTRACTOR} for it"));
        }
        let feature_extractor = ClipImageProcessor::load(repository, FEATURE_EXTRACTOR)?;
        let model = load_safety_checker(repository, CHECKER, options)?;
        let size = model.vision_model().config().image_size;
        if feature_extractor.crop.is_some_and(|crop| crop != (size, size)) {
            return refuse(format!("its {FEATURE_EXTRACTOR} does not make pictures of {size}x{size}"));
        }
        Ok(Some(Self { feature_extractor, model }))
    }

    /// The pictures `(batch, 3, height, width)`, values from 0 to 1, with those made black that are not to be shown, and for each whether it
    /// was.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn check(&self, images: &Tensor) -> Result<(Tensor, Vec<bool>)> {
        let findings = self.model.forward(&self.feature_extractor.preprocess(&to_pictures(images)?)?)?;
        let flags: Vec<bool> = findings.iter().map(|found| found.has_nsfw_concept()).collect();
        if !flags.contains(&true) {
            return Ok((images.clone(), flags));
        }
        let shown = |(i, flag): (usize, &bool)| -> Result<Tensor> {
            let image = images.narrow(0, i, 1)?;
            Ok(if *flag { image.zeros_like()? } else { image })
        };
        let images = flags.iter().enumerate().map(shown).collect::<Result<Vec<_>>>()?;
        Ok((Tensor::cat(&images, 0)?, flags))
    }
}
