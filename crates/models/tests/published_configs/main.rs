//! The `config.json`s of published models, as their repositories have them: without fields that came later, and with some that are
//! no field of the model.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use candle_diffusers_models::layers::Activation;
use candle_diffusers_models::unet_2d_condition::{BlockType, TextTimeEmbed};
use candle_diffusers_models::{AutoencoderKLConfig, ClipTextConfig, EosTokenId, UNet2DConditionConfig};
use serde_json::{Map, Value};

/// What `read` makes of each config in `file`, by its repository.
fn published<C>(file: &str, read: impl Fn(&Value) -> candle_diffusers_models::Result<C>) -> Vec<(String, C)> {
    let path = format!("{}/tests/published_configs/{file}", env!("CARGO_MANIFEST_DIR"));
    let entries: Map<String, Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    entries
        .into_iter()
        .map(|(repository, json)| {
            let config = read(&json).map_err(|error| format!("{repository}: {error}")).unwrap();
            (repository, config)
        })
        .collect()
}

#[test]
fn unets() {
    let unets = published("unet.json", UNet2DConditionConfig::from_json);
    assert_eq!(unets.len(), 9);
    for (repository, config) in unets {
        let name = repository.as_str();
        let (channels, heads, text) = match name {
            _ if name.contains("refiner") => (vec![384, 768, 1536, 1536], vec![6, 12, 24, 24], 1280),
            _ if name.contains("-xl-") => (vec![320, 640, 1280], vec![5, 10, 20], 2048),
            _ if name.contains("-2-") => (vec![320, 640, 1280, 1280], vec![5, 10, 20, 20], 1024),
            _ => (vec![320, 640, 1280, 1280], vec![8; 4], 768),
        };
        let in_channels = match name {
            _ if name.contains("inpainting") => 9,
            "timbrooks/instruct-pix2pix" => 8,
            _ => 4,
        };
        let sample_size = match name {
            _ if name.contains("-xl-") => 128,
            "stabilityai/stable-diffusion-2-1" => 96,
            _ => 64,
        };
        assert_eq!(config.cross_attention_dim, vec![text; channels.len()], "{name}");
        assert_eq!(config.layers_per_block, vec![2; channels.len()], "{name}");
        assert_eq!(config.block_out_channels, channels, "{name}");
        assert_eq!(config.num_attention_heads, heads, "{name}");
        assert_eq!((config.in_channels, config.out_channels), (in_channels, 4), "{name}");
        assert_eq!(config.sample_size, Some((sample_size, sample_size)), "{name}");
        assert_eq!((config.norm_num_groups, config.norm_eps, config.freq_shift), (32, 1e-5, 0.0), "{name}");
        assert!(config.flip_sin_to_cos && !config.center_input_sample, "{name}");
        assert_eq!((config.class_embed_type, config.time_cond_proj_dim), (None, None), "{name}");
        assert_eq!(config.mid_block_type, Some(BlockType::CrossAttention), "{name}");
        assert_eq!(config.use_linear_projection, text > 768, "{name}");
        let transformer_layers = match (name.contains("refiner"), name.contains("-xl-")) {
            (true, _) => vec![4; 4],
            (false, true) => vec![1, 2, 10],
            (false, false) => vec![1; 4],
        };
        assert_eq!(config.transformer_layers_per_block, transformer_layers, "{name}");
        let text_time = name.contains("-xl-").then_some(TextTimeEmbed {
            time_embed_dim: 256,
            input_dim: if name.contains("refiner") { 2560 } else { 2816 },
        });
        assert_eq!(config.addition_embed_type, text_time, "{name}");
    }
}

#[test]
fn autoencoders() {
    let autoencoders = published("vae.json", AutoencoderKLConfig::from_json);
    assert_eq!(autoencoders.len(), 8);
    for (repository, config) in autoencoders {
        let name = repository.as_str();
        let sample_size = match name {
            _ if name.ends_with("-1.0") => 1024,
            "stabilityai/stable-diffusion-2-1" => 768,
            "stabilityai/sd-vae-ft-mse" | "stable-diffusion-v1-5/stable-diffusion-inpainting" => 256,
            _ => 512,
        };
        let expected = AutoencoderKLConfig {
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            scaling_factor: if name.contains("-xl-") { 0.13025 } else { 0.18215 },
            sample_size,
            force_upcast: !name.contains("-xl-1.0-inpainting"),
            ..Default::default()
        };
        assert_eq!(config, expected, "{name}");
    }
}

#[test]
fn text_encoders() {
    let text_encoders = published("text_encoder.json", ClipTextConfig::from_json);
    assert_eq!(text_encoders.len(), 10);
    for (repository, config) in text_encoders {
        let name = repository.as_str();
        let (width, layers, heads, projection_dim) = match name {
            _ if name.contains("refiner") || name.ends_with("_2") => (1280, 32, 20, 1280),
            _ if name.contains("-2-") => (1024, 23, 16, 512),
            "CompVis/stable-diffusion-v1-4/text_encoder" => (768, 12, 12, 512),
            _ => (768, 12, 12, 768),
        };
        let expected = ClipTextConfig {
            hidden_size: width,
            intermediate_size: 4 * width,
            projection_dim,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            hidden_act: if width == 768 { Activation::QuickGelu } else { Activation::Gelu },
            eos_token_id: EosTokenId::Legacy,
            ..Default::default()
        };
        assert_eq!(config, expected, "{name}");
    }
}
