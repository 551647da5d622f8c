use crate::inventory::View;
use crate::layout::{ClipText, TextLayout};

/// The structure of the text encoder whose tensors are in `view` by transformers' names.
pub(crate) fn transformers_clip(view: View<'_>) -> ClipText {
    let token = view.shape("text_model.embeddings.token_embedding.weight");
    let position = view.shape("text_model.embeddings.position_embedding.weight");
    let hidden_size = second(token)
        .or_else(|| second(position))
        .or_else(|| view.axis("text_model.final_layer_norm.weight", 0))
        .unwrap_or(768);
    ClipText {
        layout: TextLayout::Transformers,
        vocab_size: token.first().copied().unwrap_or(49408),
        max_position_embeddings: position.first().copied().unwrap_or(77),
        hidden_size,
        intermediate_size: view
            .axis("text_model.encoder.layers.0.mlp.fc1.weight", 0)
            .unwrap_or(hidden_size.saturating_mul(4)),
        num_hidden_layers: view.count_under("text_model.encoder.layers."),
        projection_dim: view.axis("text_projection.weight", 0),
    }
}

/// The structure of the text encoder whose tensors are in `view` by OpenCLIP's names.
pub(crate) fn open_clip(view: View<'_>) -> ClipText {
    let (token, position) = (view.shape("token_embedding.weight"), view.shape("positional_embedding"));
    let hidden_size = second(token)
        .or_else(|| second(position))
        .or_else(|| view.axis("ln_final.weight", 0))
        .unwrap_or(1024);
    ClipText {
        layout: TextLayout::OpenClip,
        vocab_size: token.first().copied().unwrap_or(49408),
        max_position_embeddings: position.first().copied().unwrap_or(77),
        hidden_size,
        intermediate_size: view
            .axis("transformer.resblocks.0.mlp.c_fc.weight", 0)
            .unwrap_or(hidden_size.saturating_mul(4)),
        num_hidden_layers: view.count_under("transformer.resblocks."),
        projection_dim: view.axis("text_projection", 1),
    }
}

fn second(shape: &[usize]) -> Option<usize> {
    shape.get(1).copied()
}
