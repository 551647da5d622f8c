use std::collections::BTreeMap;

use candle_diffusers_convert::{
    Component, Error, Family, Inventory, Kind, Model, ModelKind, ReadOptions, Source, Task,
};
use serde_json::{Map, Value, json};

use super::metadata::metadata;
use super::{family, tensor_file};

/// Where the averaged weights of a UNet are.
const EMA_PREFIX: &str = "model_ema.diffusion_model";

/// A checkpoint in the original layout, whole or not; `None` where its tensors are of no model that is known.
pub(super) fn inspect(source: &dyn Source, inventory: &Inventory) -> Option<Value> {
    let options = ReadOptions { allow_unknown: true, ..Default::default() };
    let mut report = match Model::from_single_file(source, &options) {
        Ok(model) => describe(&model),
        Err(Error::NotACheckpoint { .. }) => return None,
        Err(error) => not_readable(inventory, error)?,
    };
    report.extend(tensor_file::contents(inventory));
    report.insert("ema".into(), inventory.has_under(EMA_PREFIX).into());
    report.insert("metadata".into(), metadata(source));
    Some(Value::Object(report))
}

fn describe(model: &Model) -> Map<String, Value> {
    let components: Map<String, Value> = model
        .components
        .iter()
        .map(|component| (component.place.folder.to_string(), describe_component(component)))
        .collect();
    let class_of = |component: &Component| class_name(&component.config);
    let unet = model
        .components
        .iter()
        .find(|one| matches!(one.place.model, ModelKind::UNet | ModelKind::ControlNet));
    let (kind, family, task) = match model.kind {
        Kind::Pipeline(family, task) => ("checkpoint", Some(family_name(family)), Some(task_name(task))),
        Kind::Alone(alone) => (kind_name(alone), unet.map(|unet| family::family(&unet.config)), None),
    };
    let class_name = match model.pipeline_class() {
        Some(class) => class.into(),
        None => model.components.first().map(class_of).unwrap_or_default(),
    };
    let of_scheduler = |field: &str| model.scheduler.as_ref().and_then(|config| config.get(field)).cloned();
    let mut left_out: BTreeMap<&str, usize> = BTreeMap::new();
    for one in &model.left_out {
        *left_out.entry(one.reason).or_default() += 1;
    }
    let fields = json!({
        "kind": kind,
        "title": model.title(),
        "class_name": class_name,
        "layout": "original",
        "family": family,
        "task": task,
        "prediction_type": of_scheduler("prediction_type"),
        "scheduler": of_scheduler("_class_name"),
        "components": if matches!(model.kind, Kind::Pipeline(..)) { components } else { Map::new() },
        "notes": model.notes,
        "left_out": left_out,
    });
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

fn describe_component(component: &Component) -> Value {
    let mut fields = tensor_file::count(
        component.tensors.iter().map(|tensor| (tensor.row.original.shape.as_slice(), tensor.dtype)),
    );
    fields.insert("class_name".into(), class_name(&component.config));
    Value::Object(fields)
}

fn class_name(config: &Value) -> Value {
    let class = config.get("_class_name").or_else(|| config.get("architectures")?.get(0));
    class.cloned().unwrap_or_default()
}

/// A file with tensors of known models that do not make a whole: what it seems to be, and what is wrong. `None` for what others
/// describe better.
fn not_readable(inventory: &Inventory, error: Error) -> Option<Map<String, Value>> {
    let mut fields = Map::new();
    let kind = tensor_file::kind(inventory);
    match error {
        Error::NotConverted { .. } if !["checkpoint", "tensors"].contains(&kind) => return None,
        Error::NotConverted { what, .. } => _ = fields.insert("title".into(), what.into()),
        error => _ = fields.insert("problem".into(), error.to_string().into()),
    }
    fields.insert("kind".into(), if kind == "tensors" { "checkpoint" } else { kind }.into());
    Some(fields)
}

/// As other parts of the program spell it.
pub(super) fn family_name(family: Family) -> &'static str {
    match family {
        Family::StableDiffusion1 => "sd1",
        Family::StableDiffusion2 => "sd2",
        Family::StableDiffusionXl => "sdxl",
        Family::StableDiffusionXlRefiner => "sdxl-refiner",
    }
}

fn task_name(task: Task) -> &'static str {
    match task {
        Task::TextToImage => "text-to-image",
        Task::Inpainting => "inpainting",
        Task::InstructPix2Pix => "instruct-pix2pix",
    }
}

fn kind_name(alone: ModelKind) -> &'static str {
    match alone {
        ModelKind::UNet => "unet",
        ModelKind::ControlNet => "controlnet",
        ModelKind::Vae => "vae",
        ModelKind::ClipText { .. } => "text_encoder",
    }
}
