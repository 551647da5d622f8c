//! A diffusers folder as a [`Model`].

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::family::{Family, ModelKind, Place, Task};
use crate::folder_source::FolderSource;
use crate::inventory::{Inventory, View};
use crate::layout::{Structure, TextLayout};
use crate::left_out::{NO_PLACE, Unplaced, bookkeeping};
use crate::model::{Component, Kind, Layout, Model};
use crate::{Error, ReadOptions, Result, Source};

/// The longest JSON file that is read, in bytes.
const MAX_JSON_BYTES: u64 = 10_000_000;

pub(crate) const MODEL_INDEX: &str = "model_index.json";
pub(crate) const SCHEDULER_CONFIG: &str = "scheduler/scheduler_config.json";

/// Components of pipelines that the original layout has no place for.
const WITHOUT_PLACE: &[&str] = &["safety_checker", "feature_extractor", "image_encoder"];

impl Model {
    /// What the diffusers folder `folder` holds, a pipeline or one model, and its weights.
    ///
    /// With a `variant` (`fp16`) the weights of that variant are taken where there are such.
    ///
    /// # Errors
    /// When it is no such folder, a pipeline that is not known, or its weights do not fit its configs.
    pub fn from_folder(folder: &Path, variant: Option<&str>) -> Result<(Self, FolderSource)> {
        Self::from_folder_with(folder, variant, &ReadOptions::default())
    }

    /// As [`from_folder`](Self::from_folder), with `options` in place of what the folder's configs say.
    ///
    /// # Errors
    /// As there, and when the attention cannot be split into the heads that are asked for.
    pub fn from_folder_with(
        folder: &Path,
        variant: Option<&str>,
        options: &ReadOptions,
    ) -> Result<(Self, FolderSource)> {
        let reader = Reader { folder, name: folder.display().to_string(), options };
        let (mut model, source) = if folder.join(MODEL_INDEX).is_file() {
            reader.pipeline(variant)?
        } else if folder.join("config.json").is_file() {
            reader.alone(variant)?
        } else {
            let message = format!("it has neither {MODEL_INDEX} nor config.json: not a diffusers folder");
            return Err(reader.error(message));
        };
        model.apply(options)?;
        Ok((model, source))
    }
}

struct Reader<'a> {
    folder: &'a Path,
    name: String,
    options: &'a ReadOptions,
}

impl Reader<'_> {
    fn pipeline(&self, variant: Option<&str>) -> Result<(Model, FolderSource)> {
        let index = self.json(MODEL_INDEX)?;
        let class = index.get("_class_name").and_then(Value::as_str).unwrap_or_default();
        let has = |component: &str| {
            index.get(component).is_some_and(|value| value.get(0).is_some_and(Value::is_string))
        };
        let family = match (class, has("text_encoder")) {
            (class, true) if class.starts_with("StableDiffusionXL") => Family::StableDiffusionXl,
            (class, false) if class.starts_with("StableDiffusionXL") => Family::StableDiffusionXlRefiner,
            (
                "StableDiffusionPipeline"
                | "StableDiffusionImg2ImgPipeline"
                | "StableDiffusionInpaintPipeline"
                | "StableDiffusionInstructPix2PixPipeline",
                _,
            ) => self.family_of_text_encoder()?,
            _ => {
                let known = "Stable Diffusion 1, 2 and XL for pictures from text, pictures and masks, and InstructPix2Pix";
                return Err(self.error(format!(
                    "{MODEL_INDEX}: the pipeline {class} is not converted, only those of {known}"
                )));
            }
        };
        if let Some(place) = family.places().iter().find(|place| !has(place.folder)) {
            return Err(self.error(format!(
                "{MODEL_INDEX} has no {}, which {} needs",
                place.folder,
                family.name()
            )));
        }
        let folders: Vec<&str> = family.places().iter().map(|place| place.folder).collect();
        let source = FolderSource::open(self.folder, &folders, variant)?;
        let inventory = source.inventory().renamed(canonical_name);
        let mut components = Vec::new();
        for place in family.places() {
            let prefix = format!("{}/", place.folder);
            components.push(self.component(*place, &prefix, &format!("{prefix}config.json"), &inventory)?);
        }
        let scheduler = match has("scheduler") {
            true => Some(Value::Object(self.json(SCHEDULER_CONFIG)?)),
            false => None,
        };
        let task = task(&components);
        let mut model = self.model(Kind::Pipeline(family, task), components, scheduler);
        let absent = WITHOUT_PLACE.iter().filter(|component| has(component)).map(|component| Unplaced {
            name: component.to_string(),
            reason: "a component that checkpoints in one file do not have",
        });
        model.left_out = left_out(&model, &source.inventory(), self.options)?;
        model.left_out.extend(absent);
        model.note_vocabulary();
        Ok((model, source))
    }

    fn alone(&self, variant: Option<&str>) -> Result<(Model, FolderSource)> {
        let config = self.json("config.json")?;
        let architecture = config.get("architectures").and_then(|names| names.get(0)?.as_str());
        let class = config.get("_class_name").and_then(Value::as_str).or(architecture).unwrap_or_default();
        let text = |projection| {
            let is_open_clip = config.get("hidden_act").and_then(Value::as_str) == Some("gelu");
            let layout = if is_open_clip { TextLayout::OpenClip } else { TextLayout::Transformers };
            Place { folder: "text_encoder", prefix: "", model: ModelKind::ClipText { layout, projection } }
        };
        let place = match class {
            "UNet2DConditionModel" => {
                Place { folder: "unet", prefix: "model.diffusion_model.", model: ModelKind::UNet }
            }
            "AutoencoderKL" => Place { folder: "vae", prefix: "", model: ModelKind::Vae },
            "ControlNetModel" => {
                Place { folder: "controlnet", prefix: "control_model.", model: ModelKind::ControlNet }
            }
            "CLIPTextModel" => text(false),
            "CLIPTextModelWithProjection" => text(true),
            _ => {
                let known = "UNet2DConditionModel, AutoencoderKL, ControlNetModel, CLIPTextModel and \
                             CLIPTextModelWithProjection";
                let message = format!("config.json: a {class:?} is not converted alone, only {known}");
                return Err(self.error(message));
            }
        };
        let source = FolderSource::open(self.folder, &[""], variant)?;
        // The rules for names are told apart by the folder's.
        let canonical = |name: &str| {
            let renamed = canonical_name(&format!("{}/{name}", place.folder))?;
            renamed.strip_prefix(&format!("{}/", place.folder)).map(str::to_string)
        };
        let inventory = source.inventory().renamed(canonical);
        let component = self.component(place, "", "config.json", &inventory)?;
        let mut model = self.model(Kind::Alone(place.model), vec![component], None);
        model.left_out = left_out(&model, &source.inventory(), self.options)?;
        Ok((model, source))
    }

    fn component(
        &self,
        place: Place,
        prefix: &str,
        config_path: &str,
        inventory: &Inventory,
    ) -> Result<Component> {
        let config = Value::Object(self.json(config_path)?);
        let file = self.folder.join(config_path).display().to_string();
        let mut structure = Structure::from_config(&file, place.model, &config)?;
        if let Structure::ClipText(clip) = &mut structure {
            // Configs say a width also where nothing is projected; the class decides, and for it what the weights have.
            let view = View { inventory, prefix };
            clip.projection_dim =
                clip.projection_dim.map(|width| view.axis("text_projection.weight", 0).unwrap_or(width));
        }
        let source = self.folder.join(place.folder.trim_end_matches('/')).display().to_string();
        let source = if prefix.is_empty() { self.name.clone() } else { source };
        Component::place(&source, inventory, Layout::Diffusers, prefix, (place, structure, config))
    }

    /// Whether the text encoder is OpenCLIP's, as in SD 2, or OpenAI's.
    fn family_of_text_encoder(&self) -> Result<Family> {
        let config = self.json("text_encoder/config.json")?;
        let is_open_clip = config.get("hidden_act").and_then(Value::as_str) == Some("gelu")
            || config.get("hidden_size").and_then(Value::as_u64) == Some(1024);
        Ok(if is_open_clip { Family::StableDiffusion2 } else { Family::StableDiffusion1 })
    }

    fn model(&self, kind: Kind, components: Vec<Component>, scheduler: Option<Value>) -> Model {
        let (source, layout) = (self.name.clone(), Layout::Diffusers);
        Model { source, layout, kind, components, scheduler, left_out: Vec::new(), notes: Vec::new() }
    }

    fn json(&self, path: &str) -> Result<Map<String, Value>> {
        read_json(&self.folder.join(path))
    }

    fn error(&self, message: String) -> Error {
        Error::Folder { folder: self.name.clone(), message }
    }
}

/// The names that models of today have, for those that older versions of the libraries wrote, and the bare ones of transformers 5.
fn canonical_name(name: &str) -> Option<String> {
    let (folder, own) = name.split_once('/')?;
    if folder.starts_with("text_encoder") {
        let is_bare =
            ["embeddings.", "encoder.", "final_layer_norm."].iter().any(|part| own.starts_with(part));
        return is_bare.then(|| format!("{folder}/text_model.{own}"));
    }
    const ATTENTION: [(&str, &str); 4] =
        [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];
    let (from, to) = ATTENTION.iter().find(|(from, _)| folder == "vae" && own.contains(from))?;
    Some(format!("{folder}/{}", own.replacen(from, to, 1)))
}

/// The JSON object in the file at `path`.
pub(crate) fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let file = path.display().to_string();
    let io = |source| Error::Io { file: file.clone(), source };
    let size = fs::metadata(path).map_err(io)?.len();
    if size > MAX_JSON_BYTES {
        let message = format!("it has {size} bytes, and at most {MAX_JSON_BYTES} are read");
        return Err(Error::Config { file, message });
    }
    let text = fs::read(path).map_err(io)?;
    let parsed: serde_json::Result<Map<String, Value>> = serde_json::from_slice(&text);
    parsed.map_err(|error| Error::Config { file, message: format!("it should be a JSON object: {error}") })
}

fn task(components: &[Component]) -> Task {
    let unet = components.iter().find_map(|component| match &component.structure {
        Structure::UNet(unet) => Some(unet),
        _ => None,
    });
    match unet.map(|unet| (unet.in_channels, unet.out_channels)) {
        Some((channels, latents)) if channels == latents.saturating_mul(2).saturating_add(1) => {
            Task::Inpainting
        }
        Some((channels, latents)) if channels == latents.saturating_mul(2) => Task::InstructPix2Pix,
        _ => Task::TextToImage,
    }
}

/// The tensors without a place; an error where they are weights.
fn left_out(model: &Model, inventory: &Inventory, options: &ReadOptions) -> Result<Vec<Unplaced>> {
    let placed = model.placed_names();
    let (mut left_out, mut unknown) = (Vec::new(), Vec::new());
    for name in inventory.names().filter(|name| !placed.contains(name)) {
        match bookkeeping(name) {
            Some(reason) => left_out.push(Unplaced { name: name.to_string(), reason }),
            None => {
                unknown.push(name.to_string());
                left_out.push(Unplaced { name: name.to_string(), reason: NO_PLACE });
            }
        }
    }
    if unknown.is_empty() || options.allow_unknown {
        return Ok(left_out);
    }
    let count = unknown.len();
    unknown.truncate(3);
    Err(Error::UnknownTensors { file: model.source.clone(), title: model.title(), count, names: unknown })
}

/// Whether `folder` looks like what [`Model::from_folder`] reads.
pub(crate) fn is_diffusers_folder(folder: &Path) -> bool {
    folder.join(MODEL_INDEX).is_file() || folder.join("config.json").is_file()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline_files::class_of;

    #[test]
    fn every_class_that_is_written_alone_is_read() {
        let text = |projection| ModelKind::ClipText { layout: TextLayout::OpenClip, projection };
        let classes = [ModelKind::UNet, ModelKind::Vae, ModelKind::ControlNet, text(false), text(true)]
            .map(|kind| class_of(kind).1);
        assert_eq!(
            classes,
            [
                "UNet2DConditionModel",
                "AutoencoderKL",
                "ControlNetModel",
                "CLIPTextModel",
                "CLIPTextModelWithProjection"
            ]
        );
    }
}
