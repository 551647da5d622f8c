use candle_core::{DType, Tensor};
use candle_diffusers_kernels::Conv2dParams;
use candle_nn::VarBuilder;

use super::ClipVisionConfig;
use super::layer::ClipEncoderLayer;
use crate::error::{Error, Result};
use crate::layers::{Conv2d, Embedding, LayerList, LayerNorm, Layers};

const MODEL: &str = "CLIPVisionModel";

/// What [`ClipVisionModel::forward`] gives.
#[derive(Clone, Debug)]
pub struct ClipVisionOutput {
    /// The last layer's output, not normalised: `(batch, 1 + patches, hidden_size)`, first the class token.
    pub last_hidden_state: Tensor,
    /// The class token of `last_hidden_state`, normalised: `(batch, hidden_size)`.
    pub pooler_output: Tensor,
}

/// CLIP's encoder of pictures, `CLIPVisionModel` in transformers.
#[derive(Clone, Debug)]
pub struct ClipVisionModel {
    class_embedding: Tensor,
    patch_embedding: Conv2d,
    position_embedding: Embedding,
    pre_layrnorm: LayerNorm,
    layers: Vec<ClipEncoderLayer>,
    post_layernorm: LayerNorm,
    config: ClipVisionConfig,
    dtype: DType,
}

impl ClipVisionModel {
    /// Parameter paths begin with `vision_model.` below the prefix of `vb`.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped, or a size of the config does not fit the others.
    pub fn new(config: &ClipVisionConfig, vb: VarBuilder) -> Result<Self> {
        let (width, heads, eps) = (config.hidden_size, config.num_attention_heads, config.layer_norm_eps);
        if heads == 0 || !width.is_multiple_of(heads) {
            let problem = format!("is {heads}, expected a number that divides hidden_size, {width}");
            return Err(input_error("num_attention_heads", problem));
        }
        let patch = config.patch_size;
        if patch == 0 || patch > config.image_size {
            let problem = format!("is {patch}, expected 1 to image_size, {}", config.image_size);
            return Err(input_error("patch_size", problem));
        }
        let vb = vb.pp("vision_model");
        let embeddings = vb.pp("embeddings");
        let patches_a_side = config.image_size / patch;
        let positions = patches_a_side * patches_a_side + 1;
        let stride = Conv2dParams { stride: patch, padding: 0 };
        let patch_embedding = embeddings.pp("patch_embedding");
        let layer = |index| ClipEncoderLayer::new(config.layer(), vb.pp("encoder.layers").pp(index));
        Ok(Self {
            class_embedding: embeddings.get(width, "class_embedding")?,
            patch_embedding: Conv2d::without_bias(
                config.num_channels,
                width,
                patch,
                stride,
                patch_embedding,
            )?,
            position_embedding: Embedding::new(positions, width, embeddings.pp("position_embedding"))?,
            // Spelled so in every file.
            pre_layrnorm: LayerNorm::new(width, eps, vb.pp("pre_layrnorm"))?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            post_layernorm: LayerNorm::new(width, eps, vb.pp("post_layernorm"))?,
            config: config.clone(),
            dtype: vb.dtype(),
        })
    }

    /// What it was built from.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// `pixel_values` is `(batch, num_channels, image_size, image_size)`, normalised as the model's image processor does it; it is brought
    /// to the model's dtype and device.
    ///
    /// # Errors
    /// When the shape is another.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<ClipVisionOutput> {
        let (channels, size) = (self.config.num_channels, self.config.image_size);
        let batch = match *pixel_values.dims() {
            [batch, found, height, width]
                if batch > 0 && found == channels && height == size && width == size =>
            {
                batch
            }
            ref dims => {
                let problem = format!("is {dims:?}, expected (batch, {channels}, {size}, {size})");
                return Err(input_error("pixel_values", problem));
            }
        };
        let pixels = pixel_values.to_device(self.class_embedding.device())?.to_dtype(self.dtype)?;
        let patches = self.patch_embedding.forward(&pixels)?;
        let patches = patches.flatten_from(2)?.transpose(1, 2)?;
        let class = self.class_embedding.reshape((1, 1, ()))?.repeat((batch, 1, 1))?;
        let embeddings = Tensor::cat(&[class, patches.contiguous()?], 1)?;
        let embeddings = embeddings.broadcast_add(self.position_embedding.weight())?;
        let hidden = self.pre_layrnorm.forward(&embeddings)?;
        let last_hidden_state =
            self.layers.iter().try_fold(hidden, |hidden, layer| layer.forward(&hidden, None))?;
        let class = last_hidden_state.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
        Ok(ClipVisionOutput { pooler_output: self.post_layernorm.forward(&class)?, last_hidden_state })
    }
}

impl Layers for ClipVisionModel {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("vision_model.embeddings.patch_embedding", &self.patch_embedding);
        list.add_each("vision_model.encoder.layers", &self.layers);
    }
}

fn input_error(input: &'static str, problem: String) -> Error {
    Error::Input { model: MODEL, input, problem }
}
