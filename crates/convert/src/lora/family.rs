//! Which family of models a LoRA is for.

use std::collections::BTreeMap;

use super::{AdaptedLayer, LokrFactor, LoraComponent, LoraWeights};
use crate::Family;

/// Parts of names that only LoRAs for other models have, and what those are.
const OTHERS: &[(&str, &str)] = &[
    ("joint_blocks", "Stable Diffusion 3"),
    ("double_blocks", "Flux"),
    ("single_blocks", "Flux"),
    ("single_transformer_blocks", "Flux"),
    ("double_layers", "AuraFlow"),
    ("lora_prior_", "Stable Cascade"),
    ("lora_te3_", "a model with three text encoders, such as Stable Diffusion 3"),
    ("motion_modules", "AnimateDiff"),
    ("temporal_transformer_blocks", "a video model"),
    ("lora_controlnet", "a ControlNet (Control-LoRA)"),
    ("transformer.transformer_blocks", "a diffusion transformer, such as Stable Diffusion 3 or Flux"),
    ("transformer.single_", "Flux"),
];

/// The other model that a tensor's name tells of.
pub(super) fn other_model(name: &str) -> Option<&'static str> {
    OTHERS.iter().find(|(part, _)| name.contains(part)).map(|(_, what)| *what)
}

/// The family, as far as the layers and then the metadata tell.
pub(super) fn family_of(layers: &[AdaptedLayer], metadata: &BTreeMap<String, String>) -> Option<Family> {
    let widths = |component: LoraComponent, endings: &'static [&'static str]| {
        layers
            .iter()
            .filter(move |layer| layer.component == component)
            .filter(move |layer| endings.iter().any(|ending| layer.name.ends_with(ending)))
            .filter_map(AdaptedLayer::in_features)
    };
    let text = widths(LoraComponent::UNet, &["attn2.to_k", "attn2.to_v"]).find_map(|width| match width {
        768 => Some(Family::StableDiffusion1),
        1024 => Some(Family::StableDiffusion2),
        1280 => Some(Family::StableDiffusionXlRefiner),
        2048 => Some(Family::StableDiffusionXl),
        _ => None,
    });
    let encoder = || {
        widths(LoraComponent::TextEncoder, &["_proj", "fc1"])
            .find_map(|width| (width == 1024).then_some(Family::StableDiffusion2))
    };
    text.or_else(|| by_parts(layers)).or_else(encoder).or_else(|| by_metadata(metadata)).or_else(|| {
        // SDXL's first text encoder is SD 1's; a LoRA for it alone is most often for SD 1.
        widths(LoraComponent::TextEncoder, &["_proj", "fc1"])
            .find_map(|width| (width == 768).then_some(Family::StableDiffusion1))
    })
}

/// What only Stable Diffusion XL has.
fn by_parts(layers: &[AdaptedLayer]) -> Option<Family> {
    let is_xl = |layer: &AdaptedLayer| match layer.component {
        LoraComponent::TextEncoder2 => true,
        LoraComponent::TextEncoder => false,
        LoraComponent::UNet => {
            let is_deep =
                layer.name.split_once("transformer_blocks.").is_some_and(|(_, rest)| !rest.starts_with("0."));
            is_deep || layer.name.starts_with("add_embedding")
        }
    };
    layers.iter().any(is_xl).then_some(Family::StableDiffusionXl)
}

/// What trainers write: kohya's `ss_base_model_version`, Stability's `modelspec.architecture`.
fn by_metadata(metadata: &BTreeMap<String, String>) -> Option<Family> {
    let fields = ["ss_base_model_version", "modelspec.architecture"];
    fields.iter().find_map(|field| metadata.get(*field)).and_then(|version| {
        let version = version.to_lowercase();
        let families = [
            (["sdxl", "stable-diffusion-xl"], Family::StableDiffusionXl),
            (["sd_v1", "stable-diffusion-v1"], Family::StableDiffusion1),
            (["sd_v2", "stable-diffusion-v2"], Family::StableDiffusion2),
        ];
        families
            .iter()
            .find(|(names, _)| names.iter().any(|name| version.contains(name)))
            .map(|(_, family)| *family)
    })
}

impl AdaptedLayer {
    /// How many input channels or features the layer has, as far as the shapes tell.
    pub fn in_features(&self) -> Option<usize> {
        let axis = |tensor: &super::TensorRef| tensor.shape.get(1).copied();
        match &self.weights {
            LoraWeights::Lora { down, .. } => axis(down),
            LoraWeights::Loha { w1_b, .. } => axis(w1_b),
            LoraWeights::Lokr { w1, w2 } => {
                let of = |factor: &LokrFactor| match factor {
                    LokrFactor::Whole(tensor) | LokrFactor::Product { b: tensor, .. } => axis(tensor),
                };
                of(w1)?.checked_mul(of(w2)?)
            }
            LoraWeights::Full { weight, .. } => weight.as_ref().and_then(axis),
        }
    }
}
