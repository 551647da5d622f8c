//! The model that Stable Diffusion's pipelines show their pictures to (diffusers' `pipelines/stable_diffusion/safety_checker.py`).

use candle_core::{D, DType, Tensor};
use candle_nn::VarBuilder;
use serde_json::Value;

use crate::clip::{ClipVisionConfig, ClipVisionModel, WITHOUT_INFLUENCE};
use crate::config::ConfigReader;
use crate::embeddings::to_floats;
use crate::error::Result;
use crate::layers::{LayerList, Layers, Linear};

const CONCEPTS: usize = 17;
const SPECIAL_CARE_CONCEPTS: usize = 3;
/// Added to every further score once a picture is like a concept of special care.
const ADJUSTMENT: f32 = 0.01;
/// As torch's `normalize` has it.
const LEAST_NORM: f64 = 1e-12;

/// The `config.json` of a [`StableDiffusionSafetyChecker`]: that of a whole CLIP, of which only the side of pictures is used.
#[derive(Clone, Debug, PartialEq)]
pub struct SafetyCheckerConfig {
    /// `vision_config`.
    pub vision_config: ClipVisionConfig,
    /// Width of what pictures and concepts are compared by. Default 512.
    pub projection_dim: usize,
}

impl SafetyCheckerConfig {
    /// Reads the content of a `config.json`.
    ///
    /// # Errors
    /// When a field has a wrong type or value, or is unknown.
    pub fn from_json(config: &Value) -> Result<Self> {
        let mut reader = ConfigReader::new("StableDiffusionSafetyChecker", config)?;
        reader.only("model_type", "clip".into())?;
        let projection_dim = reader.size("projection_dim", 512)?;
        // Where there are both, transformers takes the one of the older name.
        let vision_config = reader.value("vision_config");
        let vision_config = match reader.value("vision_config_dict").or(vision_config) {
            Some(vision_config) => ClipVisionConfig::from_json(vision_config)?,
            None => ClipVisionConfig::default(),
        };
        // The side of texts, and how training began.
        ["text_config", "text_config_dict", "logit_scale_init_value"]
            .iter()
            .for_each(|field| reader.ignore(field));
        WITHOUT_INFLUENCE.iter().for_each(|field| reader.ignore(field));
        reader.finish()?;
        Ok(Self { vision_config, projection_dim })
    }
}

/// What the checker found in one picture. Scores are how much more like a concept the picture is than is allowed, rounded to
/// thousandths as the reference rounds them.
#[derive(Clone, Debug, PartialEq)]
pub struct SafetyFindings {
    /// One for each of the concepts of special care: one above 0 makes the others stricter.
    pub special_scores: Vec<f32>,
    /// One for each concept: one above 0 and the picture is not shown.
    pub concept_scores: Vec<f32>,
}

impl SafetyFindings {
    /// `special` and `concepts` are how like each concept the picture is, as cosines, with the most that is allowed.
    fn new(
        special: impl Iterator<Item = (f32, f32)>,
        concepts: impl Iterator<Item = (f32, f32)>,
    ) -> SafetyFindings {
        let mut adjustment = 0.0;
        let score = |(cosine, allowed): (f32, f32), adjustment: f32| {
            ((cosine - allowed + adjustment) * 1000.0).round_ties_even() / 1000.0
        };
        let mut special_scores = Vec::new();
        for concept in special {
            let score = score(concept, adjustment);
            if score > 0.0 {
                adjustment = ADJUSTMENT;
            }
            special_scores.push(score);
        }
        let concept_scores = concepts.map(|concept| score(concept, adjustment)).collect();
        Self { special_scores, concept_scores }
    }

    /// Whether the picture is like any concept that is not to be shown.
    pub fn has_nsfw_concept(&self) -> bool {
        self.concept_scores.iter().any(|score| *score > 0.0)
    }
}

/// `StableDiffusionSafetyChecker` of diffusers: CLIP's view of a picture is compared with concepts that are not to be shown, each with a
/// threshold of its own.
#[derive(Clone, Debug)]
pub struct StableDiffusionSafetyChecker {
    vision_model: ClipVisionModel,
    visual_projection: Linear,
    /// One row a concept, each of length 1.
    concept_embeds: Tensor,
    special_care_embeds: Tensor,
    concept_embeds_weights: Vec<f32>,
    special_care_embeds_weights: Vec<f32>,
}

impl StableDiffusionSafetyChecker {
    /// State-dict keys: `vision_model.vision_model.*`, `visual_projection.weight`, `concept_embeds`, `concept_embeds_weights`,
    /// `special_care_embeds` and `special_care_embeds_weights`.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(config: &SafetyCheckerConfig, vb: VarBuilder) -> Result<Self> {
        let SafetyCheckerConfig { vision_config, projection_dim } = config;
        let embeds = |count: usize, name: &str| normalize(&vb.get((count, *projection_dim), name)?);
        let weights = |count: usize, name: &str| to_floats(&vb.get(count, name)?);
        Ok(Self {
            vision_model: ClipVisionModel::new(vision_config, vb.pp("vision_model"))?,
            visual_projection: Linear::without_bias(
                vision_config.hidden_size,
                *projection_dim,
                vb.pp("visual_projection"),
            )?,
            concept_embeds: embeds(CONCEPTS, "concept_embeds")?,
            special_care_embeds: embeds(SPECIAL_CARE_CONCEPTS, "special_care_embeds")?,
            concept_embeds_weights: weights(CONCEPTS, "concept_embeds_weights")?,
            special_care_embeds_weights: weights(SPECIAL_CARE_CONCEPTS, "special_care_embeds_weights")?,
        })
    }

    /// The encoder of pictures.
    pub fn vision_model(&self) -> &ClipVisionModel {
        &self.vision_model
    }

    /// What is in each picture of `clip_input`, `(batch, num_channels, image_size, image_size)`, normalised as the model's image processor does it.
    ///
    /// # Errors
    /// When the shape is another.
    pub fn forward(&self, clip_input: &Tensor) -> Result<Vec<SafetyFindings>> {
        let pooled = self.vision_model.forward(clip_input)?.pooler_output;
        let image_embeds = normalize(&self.visual_projection.forward(&pooled)?)?;
        let cosines =
            |embeds: &Tensor| -> Result<Vec<Vec<f32>>> { Ok(image_embeds.matmul(&embeds.t()?)?.to_vec2()?) };
        let special = cosines(&self.special_care_embeds)?;
        let concepts = cosines(&self.concept_embeds)?;
        let allowed = |cosines: Vec<f32>, weights: &[f32]| cosines.into_iter().zip(weights.to_vec());
        let findings = special.into_iter().zip(concepts).map(|(special, concepts)| {
            SafetyFindings::new(
                allowed(special, &self.special_care_embeds_weights),
                allowed(concepts, &self.concept_embeds_weights),
            )
        });
        Ok(findings.collect())
    }
}

impl Layers for StableDiffusionSafetyChecker {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("vision_model", &self.vision_model);
        list.add("visual_projection", &self.visual_projection);
    }
}

/// Rows of length 1, in float32.
fn normalize(rows: &Tensor) -> Result<Tensor> {
    let rows = rows.to_dtype(DType::F32)?;
    let norms = rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(LEAST_NORM)?;
    Ok(rows.broadcast_div(&norms)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_concept_of_special_care_makes_what_comes_after_it_stricter() {
        let allowed = |cosines: &[f32]| cosines.iter().map(|cosine| (*cosine, 0.2)).collect::<Vec<_>>();
        let findings = |special: &[f32], concepts: &[f32]| {
            SafetyFindings::new(allowed(special).into_iter(), allowed(concepts).into_iter())
        };
        let calm = findings(&[0.2, 0.1, 0.2004], &[0.195, 0.2]);
        assert_eq!(calm.special_scores, [0.0, -0.1, 0.0]);
        assert!(!calm.has_nsfw_concept());
        let strict = findings(&[0.195, 0.21, 0.195], &[0.195, 0.1]);
        assert_eq!(strict.special_scores, [-0.005, 0.01, 0.005]);
        assert_eq!(strict.concept_scores, [0.005, -0.09]);
        assert!(strict.has_nsfw_concept());
    }
}
