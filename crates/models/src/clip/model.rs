use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::layer::ClipEncoderLayer;
use super::token_embedding::TokenEmbedding;
use super::{ClipTextConfig, EosTokenId};
use crate::error::{Error, Result};
use crate::layers::{Embedding, LayerList, LayerNorm, Layers, Linear};

/// What [`ClipTextModel::forward`] gives.
#[derive(Clone, Debug)]
pub struct ClipTextOutput {
    /// The last layer's output, normalised: `(batch, tokens, hidden_size)`.
    pub last_hidden_state: Tensor,
    /// The row of `last_hidden_state` at the end-of-text token (see [`EosTokenId`]): `(batch, hidden_size)`.
    pub pooler_output: Tensor,
    /// The embeddings and then each layer's output, none of them normalised: `num_hidden_layers + 1` times
    /// `(batch, tokens, hidden_size)`.
    pub hidden_states: Vec<Tensor>,
}

/// What [`ClipTextModelWithProjection::forward`] gives.
#[derive(Clone, Debug)]
pub struct ClipTextModelOutput {
    /// The projected pooled output: `(batch, projection_dim)`.
    pub text_embeds: Tensor,
    /// As in [`ClipTextOutput`]: `(batch, tokens, hidden_size)`.
    pub last_hidden_state: Tensor,
    /// As in [`ClipTextOutput`]: `num_hidden_layers + 1` times `(batch, tokens, hidden_size)`.
    pub hidden_states: Vec<Tensor>,
}

/// CLIP's text encoder, `CLIPTextModel` in transformers.
#[derive(Clone, Debug)]
pub struct ClipTextModel {
    token_embedding: TokenEmbedding,
    position_embedding: Embedding,
    layers: Vec<ClipEncoderLayer>,
    final_layer_norm: LayerNorm,
    eos_token_id: EosTokenId,
    device: Device,
    gradient_checkpointing: bool,
}

impl ClipTextModel {
    /// Parameter paths begin with `text_model.` below the prefix of `vb`.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped, or the heads do not divide the width.
    pub fn new(config: &ClipTextConfig, vb: VarBuilder) -> Result<Self> {
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        if heads == 0 || !width.is_multiple_of(heads) {
            let problem = format!("is {heads}, expected a number that divides hidden_size, {width}");
            return Err(input_error("num_attention_heads", problem));
        }
        let vb = vb.pp("text_model");
        let embeddings = vb.pp("embeddings");
        let token_embedding =
            TokenEmbedding::new(config.vocab_size, width, embeddings.pp("token_embedding"))?;
        let position_embedding =
            Embedding::new(config.max_position_embeddings, width, embeddings.pp("position_embedding"))?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| ClipEncoderLayer::new(config.layer(), vb.pp("encoder.layers").pp(index)))
            .collect::<Result<_>>()?;
        let final_layer_norm = LayerNorm::new(width, config.layer_norm_eps, vb.pp("final_layer_norm"))?;
        let (eos_token_id, device) = (config.eos_token_id, vb.device().clone());
        Ok(Self {
            token_embedding,
            position_embedding,
            layers,
            final_layer_norm,
            eos_token_id,
            device,
            gradient_checkpointing: false,
        })
    }

    /// Runs all layers. `input_ids` is `(batch, tokens)` of an integer dtype, with at most `max_position_embeddings` tokens.
    ///
    /// The hidden states cost no time, only their memory; [`ClipTextModel::hidden_state`] keeps none.
    ///
    /// # Errors
    /// When there are no or too many tokens, or an id is not in the vocabulary.
    pub fn forward(&self, input_ids: &Tensor) -> Result<ClipTextOutput> {
        let ids = self.read_ids(input_ids)?;
        let mut hidden = self.embed(&ids)?;
        let causal_mask = self.causal_mask(ids.tokens)?;
        let mut hidden_states = vec![hidden.clone()];
        for layer in &self.layers {
            hidden = self.run(layer, &hidden, &causal_mask)?;
            hidden_states.push(hidden.clone());
        }
        let last_hidden_state = self.final_layer_norm(&hidden)?;
        let pooler_output = self.pool(&last_hidden_state, &ids)?;
        Ok(ClipTextOutput { last_hidden_state, pooler_output, hidden_states })
    }

    /// The output of the first `layers` layers, not normalised, `(batch, tokens, hidden_size)`: `hidden_states[layers]` of
    /// [`ClipTextModel::forward`], without running the layers after it. 0 layers give the embeddings.
    ///
    /// A pipeline with `clip_skip` runs `num_hidden_layers - clip_skip` layers and then [`ClipTextModel::final_layer_norm`].
    ///
    /// # Errors
    /// Those of [`ClipTextModel::forward`], and when the model has fewer layers.
    pub fn hidden_state(&self, input_ids: &Tensor, layers: usize) -> Result<Tensor> {
        let Some(layers) = self.layers.get(..layers) else {
            return Err(input_error("layers", format!("is {layers}, but there are {}", self.layers.len())));
        };
        let ids = self.read_ids(input_ids)?;
        let causal_mask = self.causal_mask(ids.tokens)?;
        layers.iter().try_fold(self.embed(&ids)?, |hidden, layer| self.run(layer, &hidden, &causal_mask))
    }

    /// The normalisation after the last layer; `(batch, tokens, hidden_size)`, same shape out.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn final_layer_norm(&self, hidden_state: &Tensor) -> Result<Tensor> {
        self.final_layer_norm.forward(hidden_state)
    }

    /// For training: whether the layers keep their inputs only and are computed again for the gradients, see
    /// [`gradient_checkpointing`](crate::gradient_checkpointing).
    pub fn set_gradient_checkpointing(&mut self, gradient_checkpointing: bool) {
        self.gradient_checkpointing = gradient_checkpointing;
    }

    /// How many layers there are.
    pub fn num_hidden_layers(&self) -> usize {
        self.layers.len()
    }

    /// How wide the vector of a token is.
    pub fn hidden_size(&self) -> usize {
        self.token_embedding.width()
    }

    /// In which dtype it computes.
    pub fn dtype(&self) -> DType {
        self.token_embedding.dtype()
    }

    /// How many token ids there are, those of added embeddings included.
    pub fn vocab_size(&self) -> usize {
        self.token_embedding.count()
    }

    /// Gives the ids `first_id`, `first_id + 1` and so on the rows of `vectors`, `(added, hidden_size)`, as textual inversion does.
    ///
    /// The first addition may begin at any id that the vocabulary has, or at the one after it: tables are sometimes longer than the
    /// tokenizer's vocabulary, and their surplus is then hidden. Later additions go on where the last one ended. The
    /// vectors are converted to the model's dtype and device; the model's own table stays as it is, also that of clones. A variable's
    /// tensor that is on the model's device stays that variable: gradients reach it, and its new values count at once.
    ///
    /// # Errors
    /// When `vectors` has no rows or another width, or there would be ids without a row before `first_id`.
    pub fn add_token_embeddings(&mut self, first_id: u32, vectors: &Tensor) -> Result<()> {
        self.token_embedding.add(first_id, vectors)
    }

    /// What stands for these tokens before the first layer, without their positions: `(ids.len(), hidden_size)`.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn token_embeddings(&self, ids: &[u32]) -> Result<Tensor> {
        let known = self.token_embedding.count();
        if let Some(id) = ids.iter().find(|id| **id as usize >= known) {
            let problem = format!("contain {id}, but the vocabulary has {known} tokens");
            return Err(input_error("ids", problem));
        }
        self.token_embedding.forward(ids, &self.device)
    }

    /// Takes rows away that were added; those after them move up, as their tokens do in a tokenizer. With the last of them gone the
    /// model is exactly what was loaded.
    ///
    /// # Errors
    /// When an id is not one that was added.
    pub fn remove_token_embeddings(&mut self, ids: &[u32]) -> Result<()> {
        self.token_embedding.remove(ids)
    }

    /// The most tokens that a prompt can have.
    pub fn max_position_embeddings(&self) -> usize {
        self.position_embedding.count()
    }

    /// Copies the ids to where they can be looked at, and checks each.
    fn read_ids(&self, input_ids: &Tensor) -> Result<TokenIds> {
        let (batch, tokens) = match *input_ids.dims() {
            [batch, tokens] if batch > 0 && tokens > 0 && input_ids.dtype().is_int() => (batch, tokens),
            _ => {
                let (dims, dtype) = (input_ids.dims(), input_ids.dtype().as_str());
                let problem = format!("is {dims:?} of {dtype}, expected (batch, tokens) of integers");
                return Err(input_error("input_ids", problem));
            }
        };
        let most = self.max_position_embeddings();
        if tokens > most {
            let problem = format!("has {tokens} tokens, but there are only {most} positions; cut the prompt");
            return Err(input_error("input_ids", problem));
        }
        let known = self.token_embedding.count();
        let found = input_ids.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
        let read = |id: &i64| u32::try_from(*id).ok().filter(|id| (*id as usize) < known).ok_or(*id);
        let ids = found.iter().map(read).collect::<std::result::Result<_, i64>>().map_err(|id| {
            let problem = format!(
                "contains {id}, but the vocabulary has {known} tokens; the tokenizer is of another model"
            );
            input_error("input_ids", problem)
        })?;
        Ok(TokenIds { ids, batch, tokens })
    }

    /// `(batch, tokens, hidden_size)`.
    fn embed(&self, ids: &TokenIds) -> Result<Tensor> {
        let positions = Tensor::arange(0, ids.tokens as u32, &self.device)?;
        let embeddings = self.token_embedding.forward(&ids.ids, &self.device)?;
        let embeddings = embeddings.reshape((ids.batch, ids.tokens, self.hidden_size()))?;
        Ok(embeddings.broadcast_add(&self.position_embedding.forward(&positions)?)?)
    }

    /// `(batch, tokens, hidden_size)`, same shape out.
    fn run(&self, layer: &ClipEncoderLayer, hidden: &Tensor, causal_mask: &Tensor) -> Result<Tensor> {
        match self.gradient_checkpointing {
            true => layer.forward_checkpointed(hidden, Some(causal_mask)),
            false => layer.forward(hidden, Some(causal_mask)),
        }
    }

    /// `(1, 1, tokens, tokens)`: 0 where a token may look, negative infinity at all that come after it.
    fn causal_mask(&self, tokens: usize) -> Result<Tensor> {
        let row =
            |query: usize| (0..tokens).map(move |key| if key > query { f32::NEG_INFINITY } else { 0.0 });
        let mask: Vec<f32> = (0..tokens).flat_map(row).collect();
        Ok(Tensor::from_vec(mask, (1, 1, tokens, tokens), &self.device)?)
    }

    /// `(batch, hidden_size)`, by the rule of [`EosTokenId`].
    fn pool(&self, last_hidden_state: &Tensor, ids: &TokenIds) -> Result<Tensor> {
        let rows: Vec<u32> = (0u32..)
            .zip(ids.ids.chunks(ids.tokens))
            .map(|(item, prompt)| {
                let position = match self.eos_token_id {
                    EosTokenId::Legacy => {
                        prompt.iter().max().and_then(|highest| prompt.iter().position(|id| id == highest))
                    }
                    EosTokenId::Id(eos) => prompt.iter().position(|id| *id == eos),
                };
                item * ids.tokens as u32 + position.unwrap_or(0) as u32
            })
            .collect();
        let rows = Tensor::new(rows, &self.device)?;
        Ok(last_hidden_state.flatten(0, 1)?.index_select(&rows, 0)?)
    }
}

impl Layers for ClipTextModel {
    fn list_layers(&self, list: &mut LayerList) {
        list.add_each("text_model.encoder.layers", &self.layers);
    }
}

/// Checked token ids, one prompt after the other.
struct TokenIds {
    ids: Vec<u32>,
    batch: usize,
    tokens: usize,
}

pub(super) fn input_error(input: &'static str, problem: String) -> Error {
    Error::Input { model: "CLIPTextModel", input, problem }
}

/// CLIP's text encoder with the projection that CLIP compares pictures with, `CLIPTextModelWithProjection` in transformers:
/// SDXL's second text encoder.
#[derive(Clone, Debug)]
pub struct ClipTextModelWithProjection {
    text_model: ClipTextModel,
    text_projection: Linear,
    projection_dim: usize,
}

impl ClipTextModelWithProjection {
    /// Parameter paths begin with `text_model.` below the prefix of `vb`; beside them is `text_projection.weight`.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(config: &ClipTextConfig, vb: VarBuilder) -> Result<Self> {
        let projection = vb.pp("text_projection");
        let text_projection = Linear::without_bias(config.hidden_size, config.projection_dim, projection)?;
        let projection_dim = config.projection_dim;
        Ok(Self { text_model: ClipTextModel::new(config, vb)?, text_projection, projection_dim })
    }

    /// Runs all layers. `input_ids` is `(batch, tokens)` of an integer dtype, with at most `max_position_embeddings` tokens.
    ///
    /// # Errors
    /// Those of [`ClipTextModel::forward`].
    pub fn forward(&self, input_ids: &Tensor) -> Result<ClipTextModelOutput> {
        let ClipTextOutput { last_hidden_state, pooler_output, hidden_states } =
            self.text_model.forward(input_ids)?;
        let text_embeds = self.text_projection.forward(&pooler_output)?;
        Ok(ClipTextModelOutput { text_embeds, last_hidden_state, hidden_states })
    }

    /// The width of `text_embeds`.
    pub fn projection_dim(&self) -> usize {
        self.projection_dim
    }

    /// The encoder without the projection.
    pub fn text_model(&self) -> &ClipTextModel {
        &self.text_model
    }

    /// The same, to add token embeddings to.
    pub fn text_model_mut(&mut self) -> &mut ClipTextModel {
        &mut self.text_model
    }
}

impl Layers for ClipTextModelWithProjection {
    fn list_layers(&self, list: &mut LayerList) {
        self.text_model.list_layers(list);
        list.add("text_projection", &self.text_projection);
    }
}
