//! The name in diffusers of a layer that a LoRA file calls otherwise.
//!
//! Kohya's names have underscores between the parts of a name as well as within them. They are read by the list of the parts that
//! models have (`pattern`), so that each name has one reading.

mod blocks;
mod pattern;
mod text;
mod unet;

use std::collections::HashMap;

use super::LoraComponent;
use crate::Structure;

pub(super) use unet::Spelling;

/// A layer of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) component: LoraComponent,
    pub(super) name: String,
    pub(super) spelling: Spelling,
}

/// Finds layers by their names in a file.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Where a model's structure is known: its layers by their names in both layouts, with dots and with underscores.
    known: HashMap<(LoraComponent, String), (String, Spelling)>,
}

/// What stands before the layers' names, with dots or with underscores behind; `None` for tools that wrap any model.
const PREFIXES: &[(&str, Option<LoraComponent>)] = &[
    ("lora_unet", Some(LoraComponent::UNet)),
    ("lora_te1", Some(LoraComponent::TextEncoder)),
    ("lora_te2", Some(LoraComponent::TextEncoder2)),
    ("lora_te", Some(LoraComponent::TextEncoder)),
    ("lycoris", None),
];

/// What stands before the layers' names where those have dots.
const DOTTED_PREFIXES: &[(&str, LoraComponent)] = &[
    ("unet.", LoraComponent::UNet),
    ("text_encoder.", LoraComponent::TextEncoder),
    ("text_encoder_2.", LoraComponent::TextEncoder2),
    ("diffusion_model.", LoraComponent::UNet),
    ("text_encoders.clip_l.transformer.", LoraComponent::TextEncoder),
    ("text_encoders.clip_g.transformer.", LoraComponent::TextEncoder2),
];

/// What PEFT puts before all names.
pub(super) const PEFT_PREFIX: &str = "base_model.model.";

/// Where the name of a layer is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Kohya,
    Dotted,
    Peft,
}

impl Names {
    /// For models of these structures, besides what all models have: UNets, and text encoders in their order.
    pub(super) fn of(structures: &[Structure]) -> Self {
        let mut known = HashMap::new();
        let mut encoders = [LoraComponent::TextEncoder, LoraComponent::TextEncoder2].into_iter();
        for structure in structures {
            let component = match structure {
                Structure::UNet(_) => Some(LoraComponent::UNet),
                Structure::ClipText(_) => encoders.next(),
                Structure::Vae(_) | Structure::ControlNet(_) => None,
            };
            let Some(component) = component.filter(|_| !structure.is_absurd()) else { continue };
            for row in structure.table() {
                let [named] = &row.diffusers[..] else { continue };
                let Some(name) = named.name.strip_suffix(".weight") else { continue };
                let original = row.original.name.strip_suffix(".weight");
                let spellings = [(Some(name), Spelling::Diffusers), (original, Spelling::Original)];
                for (text, spelling) in spellings {
                    let Some(text) = text else { continue };
                    let spelling = if text == name { Spelling::Diffusers } else { spelling };
                    known
                        .entry((component, text.replace('.', "_")))
                        .or_insert_with(|| (name.to_string(), spelling));
                }
            }
        }
        Self { known }
    }

    /// The layer that a file calls `text`, and which kind of name that is.
    pub(super) fn find(&self, text: &str) -> Option<(Layer, Origin)> {
        if let Some(rest) = text.strip_prefix(PEFT_PREFIX) {
            let layer = self.dotted(rest).or_else(|| self.of_any(rest))?;
            return Some((layer, Origin::Peft));
        }
        for (prefix, component) in PREFIXES {
            let Some(rest) = text.strip_prefix(prefix) else { continue };
            let Some(rest) = rest.strip_prefix(['_', '.']) else { continue };
            let layer = match component {
                Some(component) => self.of_component(*component, rest),
                None => self.of_any(rest),
            };
            return layer.map(|layer| (layer, Origin::Kohya));
        }
        let layer = self.dotted(text).or_else(|| self.of_any(text))?;
        Some((layer, Origin::Dotted))
    }

    /// A name with a component's prefix, whose dots leave no doubt: layers that are not in any list are taken by their names.
    fn dotted(&self, text: &str) -> Option<Layer> {
        let (prefix, component) = DOTTED_PREFIXES.iter().find(|(prefix, _)| text.starts_with(prefix))?;
        let rest = &text[prefix.len()..];
        let rest = rest.strip_prefix(PEFT_PREFIX).unwrap_or(rest);
        let rest = rest.replace(".processor.", ".");
        if let Some(layer) = self.of_component(*component, &rest) {
            return Some(layer);
        }
        let is_word = |word: &str| {
            !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        };
        let is_diffusers = *prefix == format!("{}.", component.folder()) && !blocks::is_original(&rest);
        let is_name = is_diffusers && rest.split('.').all(is_word);
        is_name.then_some(Layer { component: *component, name: rest, spelling: Spelling::Diffusers })
    }

    /// A name of a layer of whichever model has one of that name.
    fn of_any(&self, text: &str) -> Option<Layer> {
        let text = text.replace(".processor.", ".");
        [LoraComponent::UNet, LoraComponent::TextEncoder]
            .into_iter()
            .find_map(|component| self.of_component(component, &text))
    }

    fn of_component(&self, component: LoraComponent, text: &str) -> Option<Layer> {
        let known = self.known.get(&(component, text.replace('.', "_")));
        let (name, spelling) = known.cloned().or_else(|| match component {
            LoraComponent::UNet => unet::find(text),
            _ => text::find(text).map(|name| (name, Spelling::Diffusers)),
        })?;
        Some(Layer { component, name, spelling })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::known_models::unets;
    use crate::{ClipText, TextLayout, UNet};

    /// Every layer of `structure` is found by both its names, with underscores and with dots.
    #[track_caller]
    fn check(structure: &Structure, component: LoraComponent, names: &Names) {
        let mut count = 0;
        for row in structure.table() {
            let [named] = &row.diffusers[..] else { continue };
            let (Some(name), Some(original)) =
                (named.name.strip_suffix(".weight"), row.original.name.strip_suffix(".weight"))
            else {
                continue;
            };
            for text in [name, original, &name.replace('.', "_"), &original.replace('.', "_")] {
                let found = names.of_component(component, text).unwrap();
                assert_eq!(found.name, name, "{text}");
            }
            count += 1;
        }
        assert!(count > 20);
    }

    #[test]
    fn the_names_of_known_models_are_those_of_their_tables() {
        for unet in unets() {
            check(&Structure::UNet(unet), LoraComponent::UNet, &Names::default());
        }
        for (layout, projection_dim) in [(TextLayout::Transformers, Some(8)), (TextLayout::OpenClip, None)] {
            let clip = ClipText {
                layout,
                vocab_size: 100,
                max_position_embeddings: 77,
                hidden_size: 8,
                intermediate_size: 8,
                num_hidden_layers: 12,
                projection_dim,
            };
            let structure = Structure::ClipText(clip);
            // The original layout's tables for embeddings are about tensors, not layers.
            let names = Names::of(std::slice::from_ref(&structure));
            check(&structure, LoraComponent::TextEncoder, &names);
        }
    }

    #[test]
    fn a_model_of_another_build_is_read_by_its_structure() {
        let [sd1, ..] = unets();
        let down = vec![vec![Some(1)], vec![None]];
        let up = vec![vec![None; 2], vec![Some(1); 2]];
        let unet = UNet { block_out_channels: vec![32, 64], down, up, ..sd1 };
        let structure = Structure::UNet(unet);
        check(&structure, LoraComponent::UNet, &Names::of(std::slice::from_ref(&structure)));
    }

    #[test]
    fn names_that_are_none() {
        let names = Names::default();
        for text in [
            "",
            "lora_unet",
            "lora_unet_",
            "lora_unet_down_blocks_0",
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q_",
            "lora_unet_down_blocks_-1_attentions_0_proj_in",
            "lora_unet_input_blocks_3_0_in_layers_2",
            "lora_unet_input_blocks_0_1_proj_in",
            "lora_unet_middle_block_3_proj_in",
            "lora_te_text_model_encoder_layers_99999999999999999999_mlp_fc1",
            "unet.input_blocks.4.2.proj_in",
            "unet.down_blocks..0",
            "diffusion_model.double_blocks.0.img_attn.qkv",
            "base_model.model.",
            "\u{e9}",
        ] {
            assert_eq!(names.find(text), None, "{text}");
        }
    }
}
