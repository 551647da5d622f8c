//! The config of a [`ControlNetModel`](super::ControlNetModel).

use serde_json::{Value, json};

use super::MODEL;
use crate::config::ConfigReader;
use crate::error::Result;
use crate::unet_2d_condition::{BlockType, UNet2DConditionConfig};

/// `config.json` of a `ControlNetModel`; fields are named and mean what they do in diffusers.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct ControlNetConfig {
    /// The fields that a UNet has too. What it says of the way up has no meaning.
    pub unet: UNet2DConditionConfig,
    /// Channels of the control picture.
    pub conditioning_channels: usize,
    /// Of the layers that make the control picture as small as latents: each but the first halves it.
    pub conditioning_embedding_out_channels: Vec<usize>,
    /// The control picture's colours are taken in the order blue, green, red.
    pub is_bgr: bool,
    /// Residuals are averaged over all pixels.
    pub global_pool_conditions: bool,
}

impl ControlNetConfig {
    /// Reads the content of a `config.json`.
    ///
    /// # Errors
    /// When a field has a value that is not supported, or a field is set that is not known.
    pub fn from_json(config: &Value) -> Result<Self> {
        let mut reader = ConfigReader::new(MODEL, config)?;
        let reader = &mut reader;
        reader.only("_class_name", json!("ControlNetModel"))?;
        let unet = UNet2DConditionConfig::read(reader, |_, blocks| Ok(vec![BlockType::Plain; blocks]))?;
        if unet.mid_block_type.is_none() {
            return Err(reader.error("mid_block_type", "\"UNetMidBlock2DCrossAttn\" or \"UNetMidBlock2D\""));
        }
        let parse_order = |name: &str| match name {
            "rgb" => Some(false),
            "bgr" => Some(true),
            _ => None,
        };
        let config = Self {
            unet,
            conditioning_channels: reader.size("conditioning_channels", 3)?,
            conditioning_embedding_out_channels: reader
                .sizes("conditioning_embedding_out_channels", &[16, 32, 96, 256])?,
            is_bgr: reader.choice(
                "controlnet_conditioning_channel_order",
                "rgb",
                "\"rgb\" or \"bgr\"",
                parse_order,
            )?,
            global_pool_conditions: reader.bool("global_pool_conditions", false)?,
        };
        reader.finish()?;
        Ok(config)
    }

    /// How many times smaller than the control picture the latents are that it fits.
    pub fn conditioning_factor(&self) -> usize {
        1 << self.conditioning_embedding_out_channels.len().saturating_sub(1).min(31)
    }
}
