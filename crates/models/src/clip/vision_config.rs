use serde_json::Value;

use super::config::WITHOUT_INFLUENCE;
use super::layer::ClipLayerConfig;
use crate::config::ConfigReader;
use crate::error::Result;
use crate::layers::Activation;

/// The config of CLIP's encoder of pictures, with the fields and defaults of transformers' `CLIPVisionConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipVisionConfig {
    /// Width of the hidden states. Default 768.
    pub hidden_size: usize,
    /// Width inside each layer's two-layer perceptron. Default 3072.
    pub intermediate_size: usize,
    /// Default 12.
    pub num_hidden_layers: usize,
    /// Default 12.
    pub num_attention_heads: usize,
    /// Of a picture. Default 3.
    pub num_channels: usize,
    /// Height and width of the pictures. Default 224.
    pub image_size: usize,
    /// Height and width of the patches that a picture is cut into; what remains at the right and below is left out. Default 32.
    pub patch_size: usize,
    /// The nonlinearity of the perceptrons. Default `quick_gelu`.
    pub hidden_act: Activation,
    /// Default 1e-5.
    pub layer_norm_eps: f64,
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl ClipVisionConfig {
    /// Reads the `config.json` of a `CLIPVisionModel`, or the `vision_config` in that of a whole CLIP.
    ///
    /// # Errors
    /// When a field has a wrong type or value, is not supported, or is unknown.
    pub fn from_json(config: &Value) -> Result<Self> {
        let mut reader = ConfigReader::new("CLIPVisionModel", config)?;
        let default = Self::default();
        reader.only("model_type", "clip_vision_model".into())?;
        reader.only("pruned_heads", Value::Object(Default::default()))?;
        let config = Self {
            hidden_size: reader.size("hidden_size", default.hidden_size)?,
            intermediate_size: reader.size("intermediate_size", default.intermediate_size)?,
            num_hidden_layers: reader.size("num_hidden_layers", default.num_hidden_layers)?,
            num_attention_heads: reader.size("num_attention_heads", default.num_attention_heads)?,
            num_channels: reader.size("num_channels", default.num_channels)?,
            image_size: reader.size("image_size", default.image_size)?,
            patch_size: reader.size("patch_size", default.patch_size)?,
            hidden_act: reader.choice(
                "hidden_act",
                "quick_gelu",
                Activation::NAMES,
                Activation::from_name,
            )?,
            layer_norm_eps: reader.number("layer_norm_eps", default.layer_norm_eps)?,
        };
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let expected = format!("a number that divides hidden_size, {}", config.hidden_size);
            return Err(reader.error("num_attention_heads", expected));
        }
        if config.patch_size > config.image_size {
            return Err(reader.error("patch_size", format!("at most image_size, {}", config.image_size)));
        }
        // The projection is beside the encoder, and its size in the config around this one.
        reader.ignore("projection_dim");
        WITHOUT_INFLUENCE.iter().for_each(|field| reader.ignore(field));
        reader.finish()?;
        Ok(config)
    }

    pub(super) fn layer(&self) -> ClipLayerConfig {
        ClipLayerConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_attention_heads: self.num_attention_heads,
            hidden_act: self.hidden_act,
            layer_norm_eps: self.layer_norm_eps,
        }
    }
}
