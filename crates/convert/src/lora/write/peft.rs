//! PEFT's names and configs, of which diffusers' layout is made as well.

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::{LoraFormat, Made, Output, Place, Planned, check_plain, kept_metadata, most_common, whole};
use crate::Result;
use crate::lora::adapter_config::{CONFIG_FILE, METADATA_KEY};
use crate::lora::names::PEFT_PREFIX;
use crate::lora::{AdaptedLayer, LoraComponent, LoraError, LoraFile, LoraWeights};
use crate::tokenizer::pretty;

/// The file that PEFT reads beside the config.
pub(super) const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// One file for diffusers: ranks and alphas in the metadata.
pub(super) fn diffusers(lora: &LoraFile) -> Result<Output> {
    check_plain(lora, LoraFormat::Diffusers)?;
    let (mut planned, mut fields) = (Vec::new(), Map::new());
    for (component, layers) in lora.by_component() {
        let folder = component.folder();
        for layer in &layers {
            planned.extend(tensors(layer, &format!("{folder}.{}", layer.name)));
        }
        let config = config(lora, &layers, false)?;
        fields.extend(config.into_iter().map(|(field, value)| (format!("{folder}.{field}"), value)));
    }
    let mut metadata = kept_metadata(lora);
    metadata.insert(
        METADATA_KEY.to_string(),
        String::from_utf8_lossy(&pretty(&Value::Object(fields))).into_owned(),
    );
    metadata.insert("format".to_string(), "pt".to_string());
    Ok(Output { files: vec![(String::new(), planned)], metadata, ..Output::default() })
}

/// A folder for PEFT, which is about one model; with several, a folder for each in it.
pub(super) fn folder(lora: &LoraFile) -> Result<Output> {
    check_plain(lora, LoraFormat::Peft)?;
    let by_component = lora.by_component();
    let is_alone = by_component.len() == 1;
    let mut output = Output { metadata: kept_metadata(lora), ..Output::default() };
    output.metadata.insert("format".to_string(), "pt".to_string());
    for (component, layers) in by_component {
        let folder = if is_alone { String::new() } else { format!("{}/", component.folder()) };
        let planned = layers.iter().flat_map(|layer| tensors(layer, &peft_name(layer))).collect();
        output.files.push((format!("{folder}{WEIGHTS_FILE}"), planned));
        let config = Value::Object(config(lora, &layers, true)?);
        output.texts.push((format!("{folder}{CONFIG_FILE}"), pretty(&config)));
        if !is_alone {
            output.notes.push(format!("{}: {} layers", component.folder(), layers.len()));
        }
    }
    Ok(output)
}

/// The weights alone: as there is no place for alpha, it is folded into them.
pub(super) fn file(lora: &LoraFile) -> Result<Output> {
    check_plain(lora, LoraFormat::Peft)?;
    let components: Vec<_> = lora.by_component().into_keys().map(LoraComponent::folder).collect();
    if components.len() > 1 {
        return Err(LoraError::SeveralModels { file: lora.source.clone(), components }.into());
    }
    let mut folded = 0;
    let mut planned = Vec::new();
    for layer in &lora.layers {
        let mut tensors = tensors(layer, &peft_name(layer));
        let factor = layer.scaling();
        if factor != 1.0 {
            folded += 1;
            fold(lora, &mut tensors, layer, factor)?;
        }
        planned.extend(tensors);
    }
    let mut output = Output { files: vec![(String::new(), planned)], ..Output::default() };
    output.metadata = kept_metadata(lora);
    output.metadata.insert("format".to_string(), "pt".to_string());
    if folded > 0 {
        output.notes.push(format!(
            "alpha / rank is multiplied into the weights of {folded} layers: PEFT's weights have no place for it (a folder has)"
        ));
    }
    Ok(output)
}

/// Multiplies the second factor of a product.
fn fold(lora: &LoraFile, tensors: &mut [Planned], layer: &AdaptedLayer, factor: f64) -> Result<()> {
    let LoraWeights::Lora { up, .. } = &layer.weights else { return Ok(()) };
    if !matches!(up.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        let (file, tensor) = (lora.source.clone(), up.name.clone());
        return Err(LoraError::NotScaled { file, tensor, dtype: up.dtype }.into());
    }
    for tensor in tensors.iter_mut() {
        if matches!(&tensor.values, Place::Source(name) if *name == up.name) {
            let made = Made::Scaled { tensor: up.name.clone(), dtype: up.dtype, factor };
            tensor.values = Place::Made(made);
        }
    }
    Ok(())
}

/// As PEFT calls the layer: in transformers 5, `CLIPTextModel` has lost `text_model`, `CLIPTextModelWithProjection` has it.
fn peft_name(layer: &AdaptedLayer) -> String {
    let name = match layer.component {
        LoraComponent::TextEncoder => short_name(layer),
        _ => &layer.name,
    };
    format!("{PEFT_PREFIX}{name}")
}

fn tensors(layer: &AdaptedLayer, name: &str) -> Vec<Planned> {
    let LoraWeights::Lora { down, up, mid: None } = &layer.weights else { return Vec::new() };
    let mut planned =
        vec![whole(format!("{name}.lora_A.weight"), down), whole(format!("{name}.lora_B.weight"), up)];
    if let Some(scale) = &layer.dora_scale {
        let channels: usize = scale.shape.iter().product();
        // PEFT has them where a convolution's output has its channels.
        let shape = if down.shape.len() == 4 { vec![1, channels, 1, 1] } else { vec![channels] };
        planned.push(Planned { shape, ..whole(format!("{name}.lora_magnitude_vector"), scale) });
    }
    planned
}

/// PEFT's `LoraConfig` for the layers of one model.
fn config(lora: &LoraFile, layers: &[&AdaptedLayer], is_file: bool) -> Result<Map<String, Value>> {
    let use_dora = has_dora(lora, layers)?;
    let use_rslora = layers.iter().all(|layer| layer.rank_stabilized);
    let rank = |layer: &AdaptedLayer| layer.rank().unwrap_or(1);
    // What makes the same scaling where not all layers are stabilized.
    let alpha = |layer: &AdaptedLayer| match (layer.alpha, use_rslora || !layer.rank_stabilized) {
        (Some(alpha), true) => alpha,
        _ => layer.scaling() * rank(layer) as f64,
    };
    let common_rank = most_common(layers.iter().map(|layer| rank(layer))).unwrap_or(1);
    let common_alpha =
        most_common(layers.iter().map(|layer| alpha(layer).to_bits())).map_or(1.0, f64::from_bits);
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for layer in layers {
        // The whole name, where its beginning is known; transformers 4 and 5 differ in that of text encoders.
        let key = match layer.component {
            LoraComponent::UNet => format!("^{}", layer.name),
            _ => short_name(layer).to_string(),
        };
        if rank(layer) != common_rank {
            ranks.insert(key.clone(), json!(rank(layer)));
        }
        if alpha(layer) != common_alpha {
            alphas.insert(key, number(alpha(layer)));
        }
    }
    let mut targets: Vec<&str> = layers.iter().map(|layer| short_name(layer)).collect();
    targets.sort_unstable();
    let mut config = Map::new();
    let fields = [
        ("peft_type", json!("LORA")),
        ("r", json!(common_rank)),
        ("lora_alpha", number(common_alpha)),
        ("rank_pattern", Value::Object(ranks)),
        ("alpha_pattern", Value::Object(alphas)),
        ("target_modules", json!(targets)),
        ("use_rslora", json!(use_rslora)),
        ("use_dora", json!(use_dora)),
        ("bias", json!("none")),
    ];
    config.extend(fields.map(|(field, value)| (field.to_string(), value)));
    if is_file {
        config.insert("inference_mode".to_string(), json!(true));
        config.insert("base_model_name_or_path".to_string(), Value::Null);
    }
    Ok(config)
}

/// Whether the layers have DoRA's lengths; PEFT knows it of all layers or of none.
fn has_dora(lora: &LoraFile, layers: &[&AdaptedLayer]) -> Result<bool> {
    let count = layers.iter().filter(|layer| layer.dora_scale.is_some()).count();
    match layers.iter().find(|layer| layer.dora_scale.is_none()) {
        Some(plain) if count > 0 => Err(LoraError::NoPlace {
            file: lora.source.clone(),
            format: "PEFT",
            count: layers.len() - count,
            layer: format!("{}.{}", plain.component.folder(), plain.name),
            what: "LoRA beside others with DoRA",
        }
        .into()),
        _ => Ok(count > 0),
    }
}

/// The layer's name without what transformers 5 has lost of text encoders' names.
fn short_name(layer: &AdaptedLayer) -> &str {
    match layer.component {
        LoraComponent::UNet => &layer.name,
        _ => layer.name.strip_prefix("text_model.").unwrap_or(&layer.name),
    }
}

/// Whole numbers without a point, as they are mostly written.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}
