use super::blocks::Place;
use super::pattern::{filled, matches, translated};

/// Whose names for the blocks of a UNet a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// `down_blocks`, `mid_block`, `up_blocks`; also whatever is called alike in both.
    Diffusers,
    /// `input_blocks`, `middle_block`, `output_blocks`.
    Original,
}

const BLOCKS: &[&str] = &["down_blocks.#", "mid_block", "up_blocks.#"];

const RESNET: &[(&str, &str)] = &[
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];

/// Called alike in both layouts. Files from before diffusers 0.18 call `to_out.0` `to_out`.
const TRANSFORMER: &[(&str, &str)] = &[
    ("norm", "norm"),
    ("proj_in", "proj_in"),
    ("proj_out", "proj_out"),
    ("transformer_blocks.#.norm#", "transformer_blocks.#.norm#"),
    ("transformer_blocks.#.attn#.to_q", "transformer_blocks.#.attn#.to_q"),
    ("transformer_blocks.#.attn#.to_k", "transformer_blocks.#.attn#.to_k"),
    ("transformer_blocks.#.attn#.to_v", "transformer_blocks.#.attn#.to_v"),
    ("transformer_blocks.#.attn#.to_out.0", "transformer_blocks.#.attn#.to_out.0"),
    ("transformer_blocks.#.attn#.to_out", "transformer_blocks.#.attn#.to_out.0"),
    ("transformer_blocks.#.ff.net.0.proj", "transformer_blocks.#.ff.net.0.proj"),
    ("transformer_blocks.#.ff.net.2", "transformer_blocks.#.ff.net.2"),
];

const SAMPLERS: &[&str] = &["downsamplers.#.conv", "upsamplers.#.conv"];

/// Outside the blocks: diffusers' name and the original one.
const OUTSIDE: &[(&str, &str)] = &[
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
];

/// The layer that `text` names, with dots or underscores.
pub(super) fn find(text: &str) -> Option<(String, Spelling)> {
    for (diffusers, original) in OUTSIDE {
        for (pattern, spelling) in [(diffusers, Spelling::Diffusers), (original, Spelling::Original)] {
            if matches(pattern, text).is_some_and(|(_, rest)| rest.is_empty()) {
                return Some((diffusers.to_string(), spelling));
            }
        }
    }
    if let Some((place, rest)) = Place::take(text) {
        return Some((original(place, rest)?, Spelling::Original));
    }
    let (block, rest) = BLOCKS.iter().find_map(|pattern| {
        let (numbers, rest) = matches(pattern, text)?;
        Some((filled(pattern, &numbers), rest))
    })?;
    Some((format!("{block}.{}", diffusers(rest)?), Spelling::Diffusers))
}

fn original(place: Place, rest: &str) -> Option<String> {
    if let Some((name, _)) = RESNET.iter().find(|(_, original)| is(original, rest)) {
        return Some(format!("{}.{name}", place.resnet()?));
    }
    if let Some(name) = translated(TRANSFORMER, rest) {
        return Some(format!("{}.{name}", place.attention()?));
    }
    place.sampler(rest)
}

fn diffusers(rest: &str) -> Option<String> {
    if let Some((numbers, rest)) = matches("resnets.#", rest) {
        let (name, _) = RESNET.iter().find(|(name, _)| is(name, rest))?;
        return Some(format!("resnets.{}.{name}", numbers[0]));
    }
    if let Some((numbers, rest)) = matches("attentions.#", rest) {
        return Some(format!("attentions.{}.{}", numbers[0], translated(TRANSFORMER, rest)?));
    }
    SAMPLERS.iter().find_map(|pattern| translated(&[(pattern, pattern)], rest))
}

fn is(pattern: &str, text: &str) -> bool {
    matches(pattern, text).is_some_and(|(_, rest)| rest.is_empty() && !text.is_empty())
}
