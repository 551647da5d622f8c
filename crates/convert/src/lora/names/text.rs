use super::pattern::translated;

/// The layers of transformers' CLIP text encoders, without `text_model`; as diffusers called those of the attention, and as OpenCLIP
/// calls them, where that is one layer there as well.
const LAYERS: &[(&str, &str)] = &[
    ("encoder.layers.#.self_attn.q_proj", "encoder.layers.#.self_attn.q_proj"),
    ("encoder.layers.#.self_attn.k_proj", "encoder.layers.#.self_attn.k_proj"),
    ("encoder.layers.#.self_attn.v_proj", "encoder.layers.#.self_attn.v_proj"),
    ("encoder.layers.#.self_attn.out_proj", "encoder.layers.#.self_attn.out_proj"),
    ("encoder.layers.#.mlp.fc1", "encoder.layers.#.mlp.fc1"),
    ("encoder.layers.#.mlp.fc2", "encoder.layers.#.mlp.fc2"),
    ("encoder.layers.#.layer_norm1", "encoder.layers.#.layer_norm1"),
    ("encoder.layers.#.layer_norm2", "encoder.layers.#.layer_norm2"),
    ("final_layer_norm", "final_layer_norm"),
    ("embeddings.token_embedding", "embeddings.token_embedding"),
    ("embeddings.position_embedding", "embeddings.position_embedding"),
    ("encoder.layers.#.self_attn.to_q", "encoder.layers.#.self_attn.q_proj"),
    ("encoder.layers.#.self_attn.to_k", "encoder.layers.#.self_attn.k_proj"),
    ("encoder.layers.#.self_attn.to_v", "encoder.layers.#.self_attn.v_proj"),
    ("encoder.layers.#.self_attn.to_out", "encoder.layers.#.self_attn.out_proj"),
    ("transformer.resblocks.#.attn.out_proj", "encoder.layers.#.self_attn.out_proj"),
    ("transformer.resblocks.#.mlp.c_fc", "encoder.layers.#.mlp.fc1"),
    ("transformer.resblocks.#.mlp.c_proj", "encoder.layers.#.mlp.fc2"),
    ("transformer.resblocks.#.ln_1", "encoder.layers.#.layer_norm1"),
    ("transformer.resblocks.#.ln_2", "encoder.layers.#.layer_norm2"),
    ("ln_final", "final_layer_norm"),
];

/// The layer that `text` names, with dots or underscores, by its name in transformers with `text_model.` before it.
///
/// transformers 5 has lost that prefix in memory; both forms are in files.
pub(super) fn find(text: &str) -> Option<String> {
    if text == "text_projection" {
        return Some(text.to_string());
    }
    let inner = ["text_model.", "text_model_"].iter().find_map(|prefix| text.strip_prefix(prefix));
    translated(LAYERS, inner.unwrap_or(text)).map(|name| format!("text_model.{name}"))
}
