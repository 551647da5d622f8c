use serde_json::{Value, json};

use super::unet::{Settings, encoder_from_config, encoder_to_config};
use super::{DIFFUSERS_VERSION, Fields};
use crate::Result;
use crate::layout::ControlNet;

/// The `config.json` of a `ControlNetModel`.
pub(crate) fn controlnet_to_config(net: &ControlNet, settings: Settings) -> Value {
    let mut config = encoder_to_config(&net.encoder, settings);
    config["_class_name"] = json!("ControlNetModel");
    config["_diffusers_version"] = json!(DIFFUSERS_VERSION);
    config["conditioning_channels"] = json!(net.conditioning_channels);
    config["conditioning_embedding_out_channels"] = json!(net.conditioning_embedding_out_channels);
    config["controlnet_conditioning_channel_order"] = json!("rgb");
    config["global_pool_conditions"] = json!(false);
    if let Some(fields) = config.as_object_mut() {
        fields.remove("time_embedding_dim");
    }
    config
}

/// The structure that a `config.json` describes; `file` is its name in errors.
pub(crate) fn controlnet_from_config(file: &str, config: &Value) -> Result<ControlNet> {
    let fields = Fields::new(file, config)?;
    Ok(ControlNet {
        encoder: encoder_from_config(&fields)?,
        conditioning_channels: fields.size("conditioning_channels", 3)?,
        conditioning_embedding_out_channels: fields
            .sizes("conditioning_embedding_out_channels", &[16, 32, 96, 256])?,
    })
}
