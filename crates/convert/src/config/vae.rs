use serde_json::{Value, json};

use super::{DIFFUSERS_VERSION, Fields};
use crate::Result;
use crate::inventory::MAX_PARTS;
use crate::layout::Vae;

/// The `config.json` of an `AutoencoderKL`.
pub(crate) fn vae_to_config(vae: &Vae, sample_size: usize, scaling_factor: f64) -> Value {
    let levels = vae.block_out_channels.len();
    json!({
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": "silu",
        "block_out_channels": vae.block_out_channels,
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "force_upcast": true,
        "in_channels": vae.in_channels,
        "latent_channels": vae.latent_channels,
        "layers_per_block": vae.layers_per_block,
        "mid_block_add_attention": vae.mid_block_add_attention,
        "norm_num_groups": 32,
        "out_channels": vae.out_channels,
        "sample_size": sample_size,
        "scaling_factor": scaling_factor,
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
        "use_post_quant_conv": vae.use_post_quant_conv,
        "use_quant_conv": vae.use_quant_conv,
    })
}

/// The structure that a `config.json` describes; `file` is its name in errors.
pub(crate) fn vae_from_config(file: &str, config: &Value) -> Result<Vae> {
    let fields = Fields::new(file, config)?;
    let layers_per_block = fields.size("layers_per_block", 1)?;
    if layers_per_block >= MAX_PARTS {
        return Err(fields.error("layers_per_block", "at most a few"));
    }
    Ok(Vae {
        in_channels: fields.size("in_channels", 3)?,
        out_channels: fields.size("out_channels", 3)?,
        latent_channels: fields.size("latent_channels", 4)?,
        block_out_channels: fields.sizes("block_out_channels", &[64])?,
        layers_per_block,
        use_quant_conv: fields.bool("use_quant_conv", true)?,
        use_post_quant_conv: fields.bool("use_post_quant_conv", true)?,
        mid_block_add_attention: fields.bool("mid_block_add_attention", true)?,
    })
}
