//! Each block of a UNet alone.

use candle_core::{DType, Device, Tensor};
use candle_diffusers_models::embeddings::{TimestepEmbedding, TimestepEmbeddingConfig, Timesteps};
use candle_diffusers_models::layers::Activation;
use candle_diffusers_models::transformer_2d::{
    BasicTransformerBlock, Context, FeedForward, Transformer2DConfig, Transformer2DModel,
};
use candle_diffusers_models::unet_2d_condition::BlockType;
use candle_diffusers_models::unet_2d_condition::blocks::{
    BlockConfig, DownBlock, MidBlock, UpBlock, Upsampling,
};
use candle_diffusers_models::{ResnetConfig, TimeScaleShift};
use candle_diffusers_test_support::{Fixture, assert_close, values};
use candle_nn::VarBuilder;

const FIXTURE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/unet_blocks/unet_blocks.safetensors");
const BOUND: f64 = 5e-6;

fn weights(fixture: &Fixture, name: &str) -> VarBuilder<'static> {
    VarBuilder::from_tensors(fixture.state_dict(&format!("{name}.model.")), DType::F32, &Device::Cpu)
}

#[track_caller]
fn check(fixture: &Fixture, name: &str, output: &Tensor) {
    assert_close(name, output, fixture.get(&format!("{name}.output")), BOUND);
}

fn transformer(only_cross_attention: bool, use_linear_projection: bool) -> Transformer2DConfig {
    Transformer2DConfig {
        in_channels: 8,
        heads: 2,
        head_dim: 4,
        layers: 2,
        cross_attention_dim: 12,
        norm_num_groups: 4,
        use_linear_projection,
        only_cross_attention,
    }
}

fn block(kind: BlockType, layers: usize, out_channels: usize) -> BlockConfig {
    let resnet = ResnetConfig {
        temb_channels: Some(10),
        groups: 4,
        eps: 1e-5,
        activation: Activation::Silu,
        time_scale_shift: TimeScaleShift::Add,
        skip_time_act: false,
        output_scale_factor: 1.0,
    };
    let transformer = Transformer2DConfig {
        in_channels: out_channels,
        head_dim: out_channels / 2,
        layers: 1,
        ..transformer(false, false)
    };
    let transformer = Transformer2DConfig { norm_num_groups: 4, ..transformer };
    BlockConfig { kind, layers, out_channels, resnet, transformer }
}

#[test]
fn embeddings() {
    let fixture = Fixture::open(FIXTURE);
    let timesteps: Vec<f32> = values(fixture.get("timesteps")).iter().map(|t| *t as f32).collect();
    let plain = Timesteps { channels: 8, flip_sin_to_cos: true, downscale_freq_shift: 0.0 };
    check(&fixture, "timesteps_plain", &plain.forward(&timesteps).unwrap());
    let shifted = Timesteps { channels: 7, flip_sin_to_cos: false, downscale_freq_shift: 1.0 };
    check(&fixture, "timesteps_shifted", &shifted.forward(&timesteps).unwrap());
    let config = TimestepEmbeddingConfig {
        activation: Activation::Silu,
        post_activation: Some(Activation::Silu),
        cond_proj_dim: Some(5),
    };
    let embedding = TimestepEmbedding::new(10, 12, config, weights(&fixture, "timestep_embedding")).unwrap();
    let condition = fixture.get("timestep_embedding.condition");
    check(&fixture, "timestep_embedding", &embedding.forward(fixture.get("temb"), Some(condition)).unwrap());
}

#[test]
fn transformers() {
    let fixture = Fixture::open(FIXTURE);
    let (x, tokens) = (fixture.get("x"), fixture.get("tokens"));
    let context = Context {
        encoder_hidden_states: fixture.get("text"),
        mask: None,
        cache: None,
        gradient_checkpointing: false,
    };
    let feed_forward = FeedForward::new(8, weights(&fixture, "feed_forward")).unwrap();
    check(&fixture, "feed_forward", &feed_forward.forward(tokens).unwrap());
    for (name, only_cross) in [("transformer_block", false), ("transformer_block_only_cross", true)] {
        let block =
            BasicTransformerBlock::new(transformer(only_cross, false), weights(&fixture, name)).unwrap();
        check(&fixture, name, &block.forward(tokens, context).unwrap());
    }
    for (name, linear) in [("transformer_conv", false), ("transformer_linear", true)] {
        let model = Transformer2DModel::new(transformer(false, linear), weights(&fixture, name)).unwrap();
        check(&fixture, name, &model.forward(x, context).unwrap());
    }
}

#[test]
fn down_blocks() {
    let fixture = Fixture::open(FIXTURE);
    let (x, temb) = (fixture.get("x"), fixture.get("temb"));
    let context = Context {
        encoder_hidden_states: fixture.get("text"),
        mask: None,
        cache: None,
        gradient_checkpointing: false,
    };
    let cases = [
        ("down_cross", BlockType::CrossAttention, 2, Some(1)),
        ("down_plain", BlockType::Plain, 2, Some(1)),
        ("down_last", BlockType::Plain, 1, None),
    ];
    for (name, kind, layers, padding) in cases {
        let block = DownBlock::new(8, block(kind, layers, 12), padding, weights(&fixture, name)).unwrap();
        let mut residuals = Vec::new();
        check(&fixture, name, &block.forward(x.clone(), temb, context, &mut residuals).unwrap());
        for (i, residual) in residuals.iter().enumerate() {
            assert_close(name, residual, fixture.get(&format!("{name}.residual.{i}")), BOUND);
        }
        assert!(!fixture.contains(&format!("{name}.residual.{}", residuals.len())));
    }
}

#[test]
fn mid_blocks() {
    let fixture = Fixture::open(FIXTURE);
    let (x, temb) = (fixture.get("x"), fixture.get("temb"));
    let context = Context {
        encoder_hidden_states: fixture.get("text"),
        mask: None,
        cache: None,
        gradient_checkpointing: false,
    };
    let mut cross = block(BlockType::CrossAttention, 1, 8);
    cross.resnet.output_scale_factor = 1.25;
    for (name, config) in [("mid_cross", cross), ("mid_plain", block(BlockType::Plain, 1, 8))] {
        let block = MidBlock::new(config, weights(&fixture, name)).unwrap();
        check(&fixture, name, &block.forward(x, temb, context).unwrap());
    }
}

#[test]
fn up_blocks() {
    let fixture = Fixture::open(FIXTURE);
    let (x, temb) = (fixture.get("x"), fixture.get("temb"));
    let context = Context {
        encoder_hidden_states: fixture.get("text"),
        mask: None,
        cache: None,
        gradient_checkpointing: false,
    };
    let cases = [
        ("up_cross", BlockType::CrossAttention, Upsampling::Double),
        ("up_plain", BlockType::Plain, Upsampling::Double),
        ("up_last", BlockType::Plain, Upsampling::Keep),
    ];
    for (name, kind, upsampling) in cases {
        let block = UpBlock::new(8, 4, block(kind, 2, 12), upsampling, weights(&fixture, name)).unwrap();
        let mut skips = vec![fixture.get("skip.0").clone(), fixture.get("skip.1").clone()];
        check(&fixture, name, &block.forward(x.clone(), temb, context, &mut skips).unwrap());
        let nothing_left = block.forward(x.clone(), temb, context, &mut skips).unwrap_err();
        assert!(nothing_left.to_string().contains("skip connections"));
    }
}
