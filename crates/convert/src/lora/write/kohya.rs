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
    let published = match lora.family {
        Some(Family::StableDiffusionXl) => xl,
        Some(Family::StableDiffusionXlRefiner) => refiner,
        _ => return HashMap::new(),
    };
    let unet = lora.unet.clone().unwrap_or(published);
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
            "block names are those of diffusers, not of the original layout: the {} has no layer {}",
            if lora.unet.is_some() { "model" } else { "published model" },
            layer.name
        ));
        return HashMap::new();
    }
    names
}

/// The tensors of a layer that is called `name`.
fn tensors(layer: &AdaptedLayer, name: &str) -> Vec<Planned> {
    let mut planned: Vec<Planned> =
        parts(layer).into_iter().map(|(ending, tensor)| whole(format!("{name}.{ending}"), tensor)).collect();
    if let Some(scale) = &layer.dora_scale {
        let axes = match &layer.weights {
            LoraWeights::Lora { down, .. } => down.shape.len(),
            LoraWeights::Loha { t1_t2: Some(_), .. } => 4,
            _ => 2,
        };
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

/// The tensors of a change, and what their names end with.
fn parts(layer: &AdaptedLayer) -> Vec<(String, &TensorRef)> {
    let all: Vec<(&str, Option<&TensorRef>)> = match &layer.weights {
        LoraWeights::Lora { down, up, mid } => {
            vec![
                ("lora_down.weight", Some(down)),
                ("lora_up.weight", Some(up)),
                ("lora_mid.weight", mid.as_ref()),
            ]
        }
        LoraWeights::Loha { w1_a, w1_b, w2_a, w2_b, t1_t2 } => vec![
            ("hada_w1_a", Some(w1_a)),
            ("hada_w1_b", Some(w1_b)),
            ("hada_w2_a", Some(w2_a)),
            ("hada_w2_b", Some(w2_b)),
            ("hada_t1", t1_t2.as_ref().map(|(t1, _)| t1)),
            ("hada_t2", t1_t2.as_ref().map(|(_, t2)| t2)),
        ],
        LoraWeights::Lokr { w1, w2 } => {
            return [(w1, 1), (w2, 2)]
                .into_iter()
                .flat_map(|(factor, number)| factor_parts(factor, number))
                .collect();
        }
        LoraWeights::Full { weight, bias } => {
            // LyCORIS has other names for the change of a normalization.
            let is_norm = layer.name.rsplit('.').next().is_some_and(|last| last.contains("norm"));
            let [weight_ending, bias_ending] =
                if is_norm { ["w_norm", "b_norm"] } else { ["diff", "diff_b"] };
            vec![(weight_ending, weight.as_ref()), (bias_ending, bias.as_ref())]
        }
    };
    all.into_iter().filter_map(|(ending, tensor)| Some((ending.to_string(), tensor?))).collect()
}

fn factor_parts(factor: &LokrFactor, number: usize) -> Vec<(String, &TensorRef)> {
    match factor {
        LokrFactor::Whole(tensor) => vec![(format!("lokr_w{number}"), tensor)],
        LokrFactor::Product { a, b, t } => {
            let product = [(format!("lokr_w{number}_a"), a), (format!("lokr_w{number}_b"), b)];
            let core = t.as_ref().map(|t| (format!("lokr_t{number}"), t));
            product.into_iter().chain(core).collect()
        }
    }
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
