//! What a file in the original layout says of itself beside its tensors.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::family::{Family, PredictionType, Task};
use crate::model::{Kind, Model};

/// The metadata key under which a file that was written from a folder has the folder's configs.
const CONFIGS: &str = "diffusers.configs";

/// Stability's keys for what a model is (<https://github.com/Stability-AI/ModelSpec>).
const ARCHITECTURE: &str = "modelspec.architecture";
const PREDICTION_TYPE: &str = "modelspec.prediction_type";

/// What the metadata of a file says.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    configs: Map<String, Value>,
    prediction_type: Option<PredictionType>,
}

impl Recorded {
    pub(crate) fn read(metadata: &BTreeMap<String, String>) -> Self {
        let configs = metadata.get(CONFIGS).and_then(|text| serde_json::from_str(text).ok());
        let architecture = metadata.get(ARCHITECTURE).map(String::as_str).unwrap_or_default();
        let prediction_type = match (metadata.get(PREDICTION_TYPE).map(String::as_str), architecture) {
            (Some("v" | "v_prediction"), _) => Some(PredictionType::VPrediction),
            (Some("epsilon"), _) => Some(PredictionType::Epsilon),
            (_, text) if text.contains("-768-v") => Some(PredictionType::VPrediction),
            (_, text) if text.contains("-v2-512") => Some(PredictionType::Epsilon),
            // The published stable-diffusion-2-base, which the reference knows by it as well.
            _ if metadata.get("global_step").is_some_and(|step| step == "875000") => {
                Some(PredictionType::Epsilon)
            }
            _ => None,
        };
        let mut recorded = Self { configs: configs.unwrap_or_default(), prediction_type };
        let of_scheduler = recorded
            .scheduler()
            .and_then(|config| PredictionType::from_name(config.get("prediction_type")?.as_str()?));
        recorded.prediction_type = recorded.prediction_type.or(of_scheduler);
        recorded
    }

    pub(crate) fn component(&self, folder: &str) -> Option<Value> {
        self.configs.get(folder).filter(|config| config.is_object()).cloned()
    }

    /// The scheduler's config, if it names a class: all else is taken as it is.
    pub(crate) fn scheduler(&self) -> Option<Value> {
        self.component("scheduler").filter(|config| {
            config
                .get("_class_name")
                .and_then(Value::as_str)
                .is_some_and(|class| class.ends_with("Scheduler"))
        })
    }

    pub(crate) fn prediction_type(&self) -> Option<PredictionType> {
        self.prediction_type
    }
}

/// The metadata of a file in the original layout that has the tensors of `model`.
pub(crate) fn metadata_of(model: &Model) -> BTreeMap<String, String> {
    let mut configs = Map::new();
    for component in &model.components {
        configs.insert(component.place.folder.to_string(), component.config.clone());
    }
    if let Some(scheduler) = &model.scheduler {
        configs.insert("scheduler".to_string(), scheduler.clone());
    }
    let mut metadata = BTreeMap::from([
        ("format".to_string(), "pt".to_string()),
        (CONFIGS.to_string(), Value::Object(configs).to_string()),
    ]);
    let prediction_type = model.scheduler.as_ref().and_then(|config| config.get("prediction_type")?.as_str());
    if let (Kind::Pipeline(family, task), Some(prediction_type)) = (model.kind, prediction_type) {
        let is_v = prediction_type == PredictionType::VPrediction.name();
        metadata.insert("modelspec.sai_model_spec".to_string(), "1.0.0".to_string());
        metadata.insert(ARCHITECTURE.to_string(), architecture(family, task, is_v));
        metadata.insert(PREDICTION_TYPE.to_string(), if is_v { "v" } else { prediction_type }.to_string());
    }
    metadata
}

/// The tensors without values by which stable-diffusion.cpp and web UIs know that a model of SDXL predicts the velocity, and that its
/// noise schedule ends in pure noise. ComfyUI writes them so (`nodes_model_merging.py`); none of them looks at the metadata.
pub(crate) fn markers_of(model: &Model) -> Vec<&'static str> {
    let setting = |field: &str| model.scheduler.as_ref().and_then(|config| config.get(field));
    let is_v = setting("prediction_type").and_then(Value::as_str) == Some(PredictionType::VPrediction.name());
    let ends_in_noise = setting("rescale_betas_zero_snr") == Some(&Value::Bool(true));
    match model.kind {
        Kind::Pipeline(family, _) if family.is_xl() && is_v && ends_in_noise => vec!["v_pred", "ztsnr"],
        Kind::Pipeline(family, _) if family.is_xl() && is_v => vec!["v_pred"],
        _ => Vec::new(),
    }
}

fn architecture(family: Family, task: Task, is_v: bool) -> String {
    let base = match family {
        Family::StableDiffusion1 => "stable-diffusion-v1",
        Family::StableDiffusion2 if is_v => "stable-diffusion-v2-768-v",
        Family::StableDiffusion2 => "stable-diffusion-v2-512",
        Family::StableDiffusionXl => "stable-diffusion-xl-v1-base",
        Family::StableDiffusionXlRefiner => "stable-diffusion-xl-v1-refiner",
    };
    match task {
        Task::TextToImage => base.to_string(),
        Task::Inpainting => format!("{base}-inpainting"),
        Task::InstructPix2Pix => format!("{base}-instruct-pix2pix"),
    }
}
