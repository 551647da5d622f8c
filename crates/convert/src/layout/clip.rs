use super::Scope;

/// The structure of a `CLIPTextModel` or `CLIPTextModelWithProjection`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClipText {
    /// How the original layout calls its tensors.
    pub layout: TextLayout,
    /// How many token ids there are.
    pub vocab_size: usize,
    /// The most tokens that a prompt can have.
    pub max_position_embeddings: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside each layer's perceptron.
    pub intermediate_size: usize,
    /// How many layers there are.
    pub num_hidden_layers: usize,
    /// Width of the projected pooled output, where there is one.
    pub projection_dim: Option<usize>,
}

/// The name tables of text encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextLayout {
    /// The names of transformers, as in SD 1 and for SDXL's first text encoder.
    Transformers,
    /// The names of OpenCLIP, as in SD 2 and for SDXL's second text encoder.
    OpenClip,
}

impl ClipText {
    pub(super) fn rows(&self, scope: &mut Scope<'_>) {
        match self.layout {
            TextLayout::Transformers => self.transformers_rows(scope),
            TextLayout::OpenClip => self.open_clip_rows(scope),
        }
    }

    fn transformers_rows(&self, scope: &mut Scope<'_>) {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let model = &mut scope.at("text_model", "text_model");
        let token = "embeddings.token_embedding.weight";
        model.same(token, token, &[self.vocab_size, width]);
        let position = "embeddings.position_embedding.weight";
        model.same(position, position, &[self.max_position_embeddings, width]);
        for layer in 0..self.num_hidden_layers {
            let name = format!("encoder.layers.{layer}");
            let layer = &mut model.at(&name, &name);
            for projection in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"] {
                layer.linear(projection, projection, width, width);
            }
            layer.linear("self_attn.out_proj", "self_attn.out_proj", width, width);
            layer.norm("layer_norm1", "layer_norm1", width);
            layer.linear("mlp.fc1", "mlp.fc1", width, inner);
            layer.linear("mlp.fc2", "mlp.fc2", inner, width);
            layer.norm("layer_norm2", "layer_norm2", width);
        }
        model.norm("final_layer_norm", "final_layer_norm", width);
        if let Some(projection) = self.projection_dim {
            scope.linear_without_bias("text_projection", "text_projection", width, projection);
        }
    }

    fn open_clip_rows(&self, scope: &mut Scope<'_>) {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let model = &mut scope.at("text_model", "");
        model.same("embeddings.token_embedding.weight", "token_embedding.weight", &[self.vocab_size, width]);
        model.same(
            "embeddings.position_embedding.weight",
            "positional_embedding",
            &[self.max_position_embeddings, width],
        );
        for layer in 0..self.num_hidden_layers {
            let layer =
                &mut model.at(&format!("encoder.layers.{layer}"), &format!("transformer.resblocks.{layer}"));
            let weights = ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"];
            layer.fused(&weights, "attn.in_proj_weight", &[width, width]);
            let biases = ["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"];
            layer.fused(&biases, "attn.in_proj_bias", &[width]);
            layer.linear("self_attn.out_proj", "attn.out_proj", width, width);
            layer.norm("layer_norm1", "ln_1", width);
            layer.linear("mlp.fc1", "mlp.c_fc", width, inner);
            layer.linear("mlp.fc2", "mlp.c_proj", inner, width);
            layer.norm("layer_norm2", "ln_2", width);
        }
        model.norm("final_layer_norm", "ln_final", width);
        if let Some(projection) = self.projection_dim {
            // A plain matrix there, multiplied from the other side.
            scope.transposed("text_projection.weight", "text_projection", [projection, width]);
        }
    }
}
