use std::collections::{BTreeMap, HashMap};

use safetensors::Dtype;
use serde_json::json;

use super::{Made, Output, Place, Planned, kept_metadata, most_common, whole};
use crate::lora::known_models::unets;
use crate::lora::{AdaptedLayer, LokrFactor, LoraComponent, LoraFile, LoraWeights, TensorRef};
use crate::{Family, Result, Structure};

/// The file in kohya's layout.
pub(super) fn output(lora: &LoraFile) -> Result<Output> {
    let mut notes = Vec::new();
    let names = original_names(lora, &mut notes);
    let is_xl = lora.family.is_some_and(Family::is_xl)
        || lora.layers.iter().any(|layer| layer.component == LoraComponent::TextEncoder2);
    let mut planned = Vec::new();
    for layer in &lora.layers {
        let prefix = match layer.component {
            LoraComponent::UNet => "lora_unet",
            LoraComponent::TextEncoder if is_xl => "lora_te1",
            LoraComponent::TextEncoder => "lora_te",
            LoraComponent::TextEncoder2 => "lora_te2",
        };
        let name = match layer.component {
            LoraComponent::UNet => names.get(&layer.name).unwrap_or(&layer.name),
            _ => &layer.name,
        };
        planned.extend(tensors(layer, &format!("{prefix}_{}", name.replace('.', "_"))));
    }
    Ok(Output { files: vec![(String::new(), planned)], texts: Vec::new(), metadata: metadata(lora), notes })
}

/// The names of the UNet's layers in the original layout, for families whose trainers use those; empty for others.
fn original_names(lora: &LoraFile, notes: &mut Vec<String>) -> HashMap<String, String> {
    let [_, _, xl, refiner] = unets();
    let unet = match lora.family {
        Some(Family::StableDiffusionXl) => xl,
        Some(Family::StableDiffusionXlRefiner) => refiner,
        _ => return HashMap::new(),
    };
    let mut names = HashMap::new();
    for row in Structure::UNet(unet).table() {
        if let ([named], Some(original)) = (&row.diffusers[..], row.original.name.strip_suffix(".weight"))
            && let Some(name) = named.name.strip_suffix(".weight")
        {
            names.insert(name.to_string(), original.to_string());
        }
    }
    let mut unet_layers = lora.layers.iter().filter(|layer| layer.component == LoraComponent::UNet);
    if let Some(layer) = unet_layers.find(|layer| !names.contains_key(&layer.name)) {
        notes.push(format!(
            "block names are those of diffusers, not of the original layout: the published model has no layer {}",
            layer.name
        ));
        return HashMap::new();
    }
    names
}

fn tensors(layer: &AdaptedLayer, name: &str) -> Vec<Planned> {
    let mut planned = Vec::new();
    let mut add = |ending: &str, tensor: &TensorRef| planned.push(whole(format!("{name}.{ending}"), tensor));
    let axes = match &layer.weights {
        LoraWeights::Lora { down, up, mid } => {
            add("lora_down.weight", down);
            add("lora_up.weight", up);
            if let Some(mid) = mid {
                add("lora_mid.weight", mid);
            }
            down.shape.len()
        }
        LoraWeights::Loha { w1_a, w1_b, w2_a, w2_b, t1_t2 } => {
            add("hada_w1_a", w1_a);
            add("hada_w1_b", w1_b);
            add("hada_w2_a", w2_a);
            add("hada_w2_b", w2_b);
            if let Some((t1, t2)) = t1_t2 {
                add("hada_t1", t1);
                add("hada_t2", t2);
            }
            if t1_t2.is_some() { 4 } else { 2 }
        }
        LoraWeights::Lokr { w1, w2 } => {
            for (factor, number) in [(w1, 1), (w2, 2)] {
                match factor {
                    LokrFactor::Whole(tensor) => add(&format!("lokr_w{number}"), tensor),
                    LokrFactor::Product { a, b, t } => {
                        add(&format!("lokr_w{number}_a"), a);
                        add(&format!("lokr_w{number}_b"), b);
                        if let Some(t) = t {
                            add(&format!("lokr_t{number}"), t);
                        }
                    }
                }
            }
            2
        }
        LoraWeights::Full { weight, bias } => {
            // LyCORIS has other names for the change of a normalization.
            let is_norm = layer.name.rsplit('.').next().is_some_and(|last| last.contains("norm"));
            let (weight_ending, bias_ending) =
                if is_norm { ("w_norm", "b_norm") } else { ("diff", "diff_b") };
            if let Some(weight) = weight {
                add(weight_ending, weight);
            }
            if let Some(bias) = bias {
                add(bias_ending, bias);
            }
            2
        }
    };
    if let Some(scale) = &layer.dora_scale {
        let mut shape = scale.shape.clone();
        shape.resize(axes.max(shape.len()), 1);
        planned.push(Planned { shape, ..whole(format!("{name}.dora_scale"), scale) });
    }
    if let Some(alpha) = alpha(layer) {
        planned.push(Planned {
            name: format!("{name}.alpha"),
            shape: Vec::new(),
            dtype: Dtype::F32,
            values: Place::Made(Made::Number(alpha as f32)),
        });
    }
    planned
}

/// The number that, divided by the rank, is the layer's scaling.
fn alpha(layer: &AdaptedLayer) -> Option<f64> {
    match layer.rank() {
        Some(rank) if layer.rank_stabilized => Some(layer.scaling() * rank as f64),
        Some(rank) => Some(layer.alpha.unwrap_or(rank as f64)),
        None => layer.alpha,
    }
}

fn metadata(lora: &LoraFile) -> BTreeMap<String, String> {
    let mut metadata = kept_metadata(lora);
    let is_plain = |layer: &AdaptedLayer| matches!(layer.weights, LoraWeights::Lora { mid: None, .. });
    let is_lora = lora.layers.iter().all(is_plain);
    let module = if is_lora { "networks.lora" } else { "lycoris.kohya" };
    let mut add = |key: &str, value: String| _ = metadata.entry(key.to_string()).or_insert(value);
    add("ss_network_module", module.to_string());
    if let Some(rank) = most_common(lora.layers.iter().filter_map(AdaptedLayer::rank)) {
        add("ss_network_dim", rank.to_string());
    }
    let alphas = lora.layers.iter().filter_map(alpha).filter(|alpha| alpha.is_finite());
    if let Some(bits) = most_common(alphas.map(f64::to_bits)) {
        add("ss_network_alpha", json!(f64::from_bits(bits)).to_string());
    }
    let version = lora.family.map(|family| match family {
        Family::StableDiffusion1 => "sd_v1",
        Family::StableDiffusion2 => "sd_v2",
        Family::StableDiffusionXl | Family::StableDiffusionXlRefiner => "sdxl_base_v1-0",
    });
    if let Some(version) = version {
        add("ss_base_model_version", version.to_string());
    }
    metadata
}
