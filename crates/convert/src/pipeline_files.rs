//! The files of a diffusers folder that hold no weights.

use serde_json::{Value, json};

use crate::config::DIFFUSERS_VERSION;
use crate::family::{Family, ModelKind, Task};
use crate::model::{Component, Kind, Model};
use crate::tokenizer::{pretty, tokenizer_files};

impl Model {
    /// The files of the model's folder in diffusers' layout that hold no weights: paths in it with their contents.
    ///
    /// A model alone has its `config.json` only; a pipeline has its index, the configs of its models and of its scheduler, and
    /// tokenizers.
    pub fn text_files(&self) -> Vec<(String, Vec<u8>)> {
        let Kind::Pipeline(family, task) = self.kind else {
            return self
                .components
                .iter()
                .map(|one| ("config.json".to_string(), pretty(&one.config)))
                .collect();
        };
        let mut files = vec![("model_index.json".to_string(), pretty(&model_index(self, family, task)))];
        for component in &self.components {
            files.push((format!("{}/config.json", component.place.folder), pretty(&component.config)));
            if let Some(folder) = tokenizer_folder(component) {
                // OpenCLIP fills up with the token 0, OpenAI's CLIP with the end of the text.
                let pad_token = if is_open_clip(component) { "!" } else { "<|endoftext|>" };
                let files_of_tokenizer = tokenizer_files(pad_token);
                files.extend(
                    files_of_tokenizer.into_iter().map(|(name, text)| (format!("{folder}/{name}"), text)),
                );
            }
        }
        if let Some(scheduler) = &self.scheduler {
            files.push(("scheduler/scheduler_config.json".to_string(), pretty(scheduler)));
        }
        files
    }
}

fn tokenizer_folder(component: &Component) -> Option<&'static str> {
    match component.place.folder {
        "text_encoder" => Some("tokenizer"),
        "text_encoder_2" => Some("tokenizer_2"),
        _ => None,
    }
}

fn is_open_clip(component: &Component) -> bool {
    let layout = crate::TextLayout::OpenClip;
    matches!(component.place.model, ModelKind::ClipText { layout: found, .. } if found == layout)
}

fn model_index(model: &Model, family: Family, task: Task) -> Value {
    let scheduler_class = model.scheduler.as_ref().and_then(|config| config.get("_class_name").cloned());
    let mut index = json!({
        "_class_name": family.pipeline(task),
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", scheduler_class],
    });
    let absent = json!([null, null]);
    let own = match (family, task) {
        (Family::StableDiffusionXl, Task::InstructPix2Pix) => json!({"force_zeros_for_empty_prompt": true}),
        (Family::StableDiffusionXl, task) => {
            let mut own = json!({
                "feature_extractor": absent, "force_zeros_for_empty_prompt": true, "image_encoder": absent,
            });
            if task == Task::Inpainting {
                own["requires_aesthetics_score"] = json!(false);
            }
            own
        }
        (Family::StableDiffusionXlRefiner, _) => json!({
            "feature_extractor": absent, "force_zeros_for_empty_prompt": false, "image_encoder": absent,
            "requires_aesthetics_score": true, "text_encoder": absent, "tokenizer": absent,
        }),
        _ => json!({
            "feature_extractor": absent, "image_encoder": absent, "requires_safety_checker": false,
            "safety_checker": absent,
        }),
    };
    if let (Some(index), Value::Object(own)) = (index.as_object_mut(), own) {
        index.extend(own);
    }
    for component in &model.components {
        let (library, class) = class_of(component.place.model);
        index[component.place.folder] = json!([library, class]);
        if let Some(tokenizer) = tokenizer_folder(component) {
            index[tokenizer] = json!(["transformers", "CLIPTokenizer"]);
        }
    }
    index
}

/// The library and the class that a component has in `model_index.json`.
pub(crate) fn class_of(model: ModelKind) -> (&'static str, &'static str) {
    match model {
        ModelKind::UNet => ("diffusers", "UNet2DConditionModel"),
        ModelKind::ControlNet => ("diffusers", "ControlNetModel"),
        ModelKind::Vae => ("diffusers", "AutoencoderKL"),
        ModelKind::ClipText { projection: false, .. } => ("transformers", "CLIPTextModel"),
        ModelKind::ClipText { projection: true, .. } => ("transformers", "CLIPTextModelWithProjection"),
    }
}

/// What the weight files of a component are called, without endings.
pub(crate) fn weights_stem(model: ModelKind) -> &'static str {
    match model {
        ModelKind::ClipText { .. } => "model",
        _ => "diffusion_pytorch_model",
    }
}
