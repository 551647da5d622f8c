use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use candle_diffusers_convert::{
    AdaptedLayer, Inventory, LoraComponent, LoraFile, LoraWeights, Source, TensorRef,
};
use serde_json::{Map, Value, json};

use super::checkpoint::family_name;
use super::metadata::metadata;
use super::tensor_file;

/// How many of the tags that a LoRA was trained with are shown: the most frequent.
const TAGS_SHOWN: usize = 10;

/// How many names of tensors that are not understood are shown.
const UNMATCHED_SHOWN: usize = 10;

/// What trainers write of a LoRA: the key, and what it is called here.
const TRAINING: [(&str, &str); 9] = [
    ("ss_output_name", "name"),
    ("modelspec.title", "title"),
    ("modelspec.author", "author"),
    ("modelspec.trigger_phrase", "trigger"),
    ("ss_base_model_version", "base_model_version"),
    ("ss_sd_model_name", "base_model"),
    ("ss_resolution", "resolution"),
    ("ss_clip_skip", "clip_skip"),
    ("ss_training_comment", "comment"),
];

/// A folder that PEFT wrote.
pub(super) fn inspect_folder(folder: &Path) -> Result<Value> {
    let source = LoraFile::open_source(folder)?;
    let inventory = source.inventory();
    Ok(inspect(source.as_ref(), &inventory)
        .unwrap_or_else(|| tensor_file::inspect(source.as_ref(), &inventory)))
}

/// A LoRA file; `None` where the tensors are not those of one.
pub(super) fn inspect(source: &dyn Source, inventory: &Inventory) -> Option<Value> {
    if !LoraFile::looks_like_one(inventory) {
        return None;
    }
    let mut report = Map::new();
    report.insert("kind".into(), "lora".into());
    match LoraFile::read(source) {
        Ok(lora) => report.extend(describe(&lora)),
        Err(error) => _ = report.insert("problem".into(), error.to_string().into()),
    }
    report.extend(tensor_file::contents(inventory));
    report.insert("metadata".into(), metadata(source));
    Some(Value::Object(report))
}

fn describe(lora: &LoraFile) -> Map<String, Value> {
    let of = |component: LoraComponent| lora.layers.iter().filter(move |layer| layer.component == component);
    let components: Map<String, Value> = LoraComponent::ALL
        .into_iter()
        .filter(|component| of(*component).next().is_some())
        .map(|component| (component.folder().to_string(), Value::Object(summary(of(component)))))
        .collect();
    let mut fields = summary(lora.layers.iter());
    fields.insert("title".into(), lora.title().into());
    fields.insert("layout".into(), lora.layout.name().into());
    fields.insert("family".into(), lora.family.map(family_name).into());
    fields.insert("components".into(), components.into());
    fields.insert("notes".into(), json!(lora.notes));
    fields.insert("embeddings".into(), json!(lora.embeddings));
    fields.insert("unmatched_tensors".into(), lora.unmatched.len().into());
    let unmatched: Vec<&String> = lora.unmatched.iter().take(UNMATCHED_SHOWN).collect();
    fields.insert("unmatched".into(), json!(unmatched));
    fields.insert("training".into(), training(&lora.metadata).into());
    fields
}

/// What layers have in common: how many, of which types, with which ranks and alphas.
fn summary<'l>(layers: impl Iterator<Item = &'l AdaptedLayer> + Clone) -> Map<String, Value> {
    let mut types: BTreeMap<&str, usize> = BTreeMap::new();
    for layer in layers.clone() {
        *types.entry(type_of(layer)).or_default() += 1;
    }
    let names: BTreeSet<_> = layers.clone().map(|layer| (layer.component, &layer.name)).collect();
    let mut fields = Map::new();
    fields.insert("layers".into(), names.len().into());
    fields.insert("types".into(), json!(types));
    fields
        .insert("rank".into(), range(layers.clone().filter_map(AdaptedLayer::rank).map(|rank| rank as f64)));
    fields.insert("alpha".into(), range(layers.filter_map(|layer| layer.alpha)));
    fields
}

/// As users know the kinds of changes.
fn type_of(layer: &AdaptedLayer) -> &'static str {
    let has_kernel =
        |tensor: &TensorRef| tensor.shape.get(2..).is_some_and(|kernel| kernel.iter().any(|side| *side > 1));
    match &layer.weights {
        LoraWeights::Lora { .. } if layer.dora_scale.is_some() => "DoRA",
        LoraWeights::Lora { mid: Some(_), .. } => "LoCon",
        LoraWeights::Lora { down, .. } if has_kernel(down) => "LoCon",
        LoraWeights::Lora { .. } => "LoRA",
        LoraWeights::Loha { .. } => "LoHa",
        LoraWeights::Lokr { .. } => "LoKr",
        LoraWeights::Full { .. } => "full",
    }
}

/// The number where all are the same, the least and the greatest where not; null where there is none.
fn range(numbers: impl Iterator<Item = f64> + Clone) -> Value {
    let number = |value: f64| match value.fract() == 0.0 && value.abs() < 1e15 {
        true => json!(value as i64),
        false => json!(value),
    };
    let (least, most) = (numbers.clone().reduce(f64::min), numbers.reduce(f64::max));
    match (least, most) {
        (Some(least), Some(most)) if least == most => number(least),
        (Some(least), Some(most)) => json!({"min": number(least), "max": number(most)}),
        _ => Value::Null,
    }
}

fn training(metadata: &BTreeMap<String, String>) -> Map<String, Value> {
    let mut fields = Map::new();
    for (key, name) in TRAINING {
        // Python's None, as it is written.
        if let Some(text) = metadata.get(key).filter(|text| !text.is_empty() && *text != "None") {
            fields.insert(name.to_string(), text.clone().into());
        }
    }
    let tags = metadata.get("ss_tag_frequency").map(|text| frequent_tags(text)).unwrap_or_default();
    if !tags.is_empty() {
        fields.insert("tags".to_string(), json!(tags));
    }
    fields
}

/// The tags that come most often in all the data sets.
fn frequent_tags(text: &str) -> Vec<String> {
    let Ok(Value::Object(sets)) = serde_json::from_str(text) else { return Vec::new() };
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for (tag, count) in sets.values().filter_map(Value::as_object).flatten() {
        let of_tag = counts.entry(tag.trim()).or_default();
        *of_tag = of_tag.saturating_add(count.as_u64().unwrap_or(0));
    }
    let mut tags: Vec<(&str, u64)> = counts.into_iter().filter(|(tag, _)| !tag.is_empty()).collect();
    tags.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    tags.into_iter().take(TAGS_SHOWN).map(|(tag, _)| tag.to_string()).collect()
}
