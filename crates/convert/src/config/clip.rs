use serde_json::{Value, json};

use super::{Fields, heads_of_width};
use crate::Result;
use crate::inventory::MAX_PARTS;
use crate::layout::{ClipText, TextLayout};

/// Width of the heads of every published CLIP text encoder.
const HEAD_WIDTH: usize = 64;

/// The `config.json` of a `CLIPTextModel`, or of a `CLIPTextModelWithProjection` where it projects.
///
/// The second value says whether the number of heads is that of the published models.
pub(crate) fn clip_to_config(clip: &ClipText) -> (Value, bool) {
    let (heads, is_usual) = heads_of_width(clip.hidden_size, HEAD_WIDTH);
    let (class, hidden_act) = (
        if clip.projection_dim.is_some() { "CLIPTextModelWithProjection" } else { "CLIPTextModel" },
        match clip.layout {
            TextLayout::Transformers => "quick_gelu",
            TextLayout::OpenClip => "gelu",
        },
    );
    // Where nothing is projected the field has no effect; the published configs of SD 2 say 512.
    let unused = if clip.layout == TextLayout::OpenClip { 512 } else { clip.hidden_size };
    let config = json!({
        "architectures": [class],
        "attention_dropout": 0.0,
        // Not the tokens' ids: transformers takes 2 to mean the token with the highest id, as all published configs do.
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": hidden_act,
        "hidden_size": clip.hidden_size,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": clip.intermediate_size,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": clip.max_position_embeddings,
        "model_type": "clip_text_model",
        "num_attention_heads": heads,
        "num_hidden_layers": clip.num_hidden_layers,
        "pad_token_id": 1,
        "projection_dim": clip.projection_dim.unwrap_or(unused),
        "vocab_size": clip.vocab_size,
    });
    (config, is_usual)
}

/// The structure that a `config.json` describes; `file` is its name in errors.
pub(crate) fn clip_from_config(
    file: &str,
    config: &Value,
    layout: TextLayout,
    projection: bool,
) -> Result<ClipText> {
    let fields = Fields::new(file, config)?;
    let num_hidden_layers = fields.size("num_hidden_layers", 12)?;
    if num_hidden_layers >= MAX_PARTS {
        return Err(fields.error("num_hidden_layers", "at most a few hundred"));
    }
    let projection_dim = fields.size("projection_dim", 512)?;
    Ok(ClipText {
        layout,
        vocab_size: fields.size("vocab_size", 49408)?,
        max_position_embeddings: fields.size("max_position_embeddings", 77)?,
        hidden_size: fields.size("hidden_size", 512)?,
        intermediate_size: fields.size("intermediate_size", 2048)?,
        num_hidden_layers,
        projection_dim: projection.then_some(projection_dim),
    })
}
