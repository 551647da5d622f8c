use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::single_file::check_is_pipeline;
use crate::{Error, Repository, Result};

/// The file that says what a model folder is made of.
pub const MODEL_INDEX: &str = "model_index.json";

/// The pipelines whose folders can be loaded: `_class_name` in model_index.json.
pub const KNOWN_PIPELINES: &[&str] = &[
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLInstructPix2PixPipeline",
    "DDPMPipeline",
    "DDIMPipeline",
    "LDMPipeline",
    "LatentDiffusionUncondPipeline",
];

/// The components that are loaded and the classes they may have. What is not here (an image encoder) is not
/// loaded and may be anything; schedulers and safety checkers are judged by whoever builds them.
const KNOWN_COMPONENTS: &[(&str, &[&str])] = &[
    ("unet", &["UNet2DConditionModel", "UNet2DModel"]),
    ("vae", &["AutoencoderKL"]),
    ("vqvae", &["VQModel"]),
    ("text_encoder", &["CLIPTextModel", "CLIPTextModelWithProjection"]),
    ("text_encoder_2", &["CLIPTextModel", "CLIPTextModelWithProjection"]),
    ("tokenizer", &["CLIPTokenizer", "CLIPTokenizerFast"]),
    ("tokenizer_2", &["CLIPTokenizer", "CLIPTokenizerFast"]),
];

/// A pipeline's `model_index.json`: its class, its components, and its few settings.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelIndex {
    /// The pipeline's class, one of [`KNOWN_PIPELINES`].
    pub class_name: String,
    /// The version of diffusers that wrote the folder, where it says so.
    pub diffusers_version: Option<String>,
    /// The components that the folder has, by name (`unet`, `vae`, ...). Those that are null are not here.
    pub components: BTreeMap<String, ComponentClass>,
    /// The pipeline's settings: everything else, for instance `requires_safety_checker`.
    pub config: Map<String, Value>,
    file: String,
}

/// What kind of thing a component is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentClass {
    /// The Python library that it comes from, for instance `diffusers`.
    pub library: String,
    /// The class, for instance `UNet2DConditionModel`.
    pub class_name: String,
}

impl ModelIndex {
    /// Reads the `model_index.json` of `repository` and checks that everything in it is known. What the repository is
    /// [without](Repository::without) is not in it.
    ///
    /// # Errors
    /// When there is none (the message says what is there instead), it is not JSON, or names a pipeline or a class of a component that
    /// this library does not have.
    pub fn load(repository: &Repository) -> Result<Self> {
        if let Some(model) = repository.single_file_model() {
            check_is_pipeline(model)?;
        }
        if !repository.exists(MODEL_INDEX) {
            return Err(Error::MissingModelIndex {
                repository: repository.name().to_string(),
                found: what_is_there(repository),
            });
        }
        let file = repository.display(MODEL_INDEX);
        let mut index = Self::parse(file, repository.read_json(MODEL_INDEX)?)?;
        index.components.retain(|name, _| !repository.is_without(name));
        index.check_known()?;
        Ok(index)
    }

    /// The class of the component called `name`.
    ///
    /// # Errors
    /// When the pipeline has no such component.
    pub fn component(&self, name: &str) -> Result<&ComponentClass> {
        self.components
            .get(name)
            .ok_or_else(|| Error::MissingComponent { file: self.file.clone(), component: name.to_string() })
    }

    /// The file's name, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    fn parse(file: String, mut fields: Map<String, Value>) -> Result<Self> {
        let not_a = |what: &str| Error::Json { file: file.clone(), message: what.to_string() };
        let class_name = match fields.remove("_class_name") {
            Some(Value::String(name)) => name,
            Some(other) => return Err(not_a(&format!("_class_name should be a string, not {other}"))),
            None => return Err(not_a("there is no _class_name, so it does not say which pipeline this is")),
        };
        let diffusers_version =
            fields.remove("_diffusers_version").and_then(|version| version.as_str().map(str::to_string));
        let mut components = BTreeMap::new();
        let mut config = Map::new();
        for (name, value) in fields {
            match component_class(&value) {
                Some(Some(class)) => drop(components.insert(name, class)),
                Some(None) => {}
                None => drop(config.insert(name, value)),
            }
        }
        Ok(Self { class_name, diffusers_version, components, config, file })
    }

    fn check_known(&self) -> Result<()> {
        if !KNOWN_PIPELINES.contains(&self.class_name.as_str()) {
            return Err(Error::UnknownPipeline {
                file: self.file.clone(),
                class_name: self.class_name.clone(),
                known: KNOWN_PIPELINES,
            });
        }
        for (component, known) in KNOWN_COMPONENTS {
            let Some(ComponentClass { library, class_name }) = self.components.get(*component) else {
                continue;
            };
            if !known.contains(&class_name.as_str()) {
                return Err(Error::UnknownComponentClass {
                    file: self.file.clone(),
                    component: component.to_string(),
                    library: library.clone(),
                    class_name: class_name.clone(),
                    known,
                });
            }
        }
        Ok(())
    }
}

/// `["diffusers", "UNet2DConditionModel"]` is a component, `[null, null]` or null an absent one, anything else a setting.
fn component_class(value: &Value) -> Option<Option<ComponentClass>> {
    if value.is_null() {
        return Some(None);
    }
    match value.as_array()?.as_slice() {
        [Value::String(library), Value::String(class_name)] => {
            Some(Some(ComponentClass { library: library.clone(), class_name: class_name.clone() }))
        }
        [Value::Null, Value::Null] => Some(None),
        _ => None,
    }
}

/// What a folder without model_index.json seems to be.
fn what_is_there(repository: &Repository) -> String {
    let names = repository.list("");
    let ends_with = |endings: &[&str]| {
        names.iter().find(|name| endings.iter().any(|ending| name.ends_with(ending))).cloned()
    };
    if names.is_empty() {
        return "it is empty".to_string();
    }
    if names.iter().any(|name| name == "config.json") {
        return "it has a config.json, as one component of a pipeline has: give the folder above it"
            .to_string();
    }
    if let Some(file) = ends_with(&[".safetensors", ".ckpt"]) {
        return format!(
            "it has {file}, a single-file checkpoint: give {} as the model",
            repository.display(&file)
        );
    }
    const LISTED: usize = 5;
    let more = if names.len() > LISTED { ", ..." } else { "" };
    let listed: Vec<&str> = names.iter().take(LISTED).map(String::as_str).collect();
    format!("it has {}{more}", listed.join(", "))
}
