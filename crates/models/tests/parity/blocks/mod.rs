use candle_core::{DType, Device, Tensor};
use candle_diffusers_models::autoencoder_kl::{
    AutoencoderMidBlock2D, Decoder, DownEncoderBlock2D, Encoder, UpDecoderBlock2D,
};
use candle_diffusers_models::layers::Activation;
use candle_diffusers_models::{
    AutoencoderKLConfig, DiagonalGaussianDistribution, Downsample2D, PixelAttention, PixelAttentionConfig,
    ResnetBlock2D, ResnetConfig, Result, TimeScaleShift, Upsample2D,
};
use candle_diffusers_test_support::{Fixture, assert_close};
use candle_nn::VarBuilder;

const BOUND: f64 = 5e-6;

fn fixture() -> Fixture {
    Fixture::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/blocks/blocks.safetensors"))
}

/// Builds the block called `name`, runs it on its input and compares the output.
#[track_caller]
fn check(name: &str, run: impl Fn(VarBuilder, &Tensor) -> Result<Tensor>) {
    let fixture = fixture();
    let weights = fixture.state_dict(&format!("{name}.model."));
    let weights = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let output = run(weights, fixture.get(&format!("{name}.x"))).unwrap();
    assert_close(name, &output, fixture.get(&format!("{name}.output")), BOUND);
}

/// Without a time embedding.
const PLAIN: ResnetConfig = ResnetConfig {
    temb_channels: None,
    groups: 4,
    eps: 1e-6,
    activation: Activation::Silu,
    time_scale_shift: TimeScaleShift::Add,
    skip_time_act: false,
    output_scale_factor: 1.0,
};

/// With one.
const TIMED: ResnetConfig = ResnetConfig { temb_channels: Some(10), eps: 1e-5, ..PLAIN };

#[test]
fn residual_blocks_equal_the_reference() {
    let temb = fixture().get("temb").clone();
    for (name, out_channels, config) in [
        ("resnet", 8, PLAIN),
        ("resnet_shortcut", 4, PLAIN),
        ("resnet_gelu", 4, ResnetConfig { activation: Activation::Gelu, ..TIMED }),
        ("resnet_time", 12, TIMED),
        (
            "resnet_scale_shift",
            12,
            ResnetConfig {
                time_scale_shift: TimeScaleShift::ScaleShift,
                skip_time_act: true,
                output_scale_factor: 1.7,
                ..TIMED
            },
        ),
        ("resnet_skip_time_act", 8, ResnetConfig { skip_time_act: true, output_scale_factor: 0.5, ..TIMED }),
    ] {
        let temb = config.temb_channels.map(|_| &temb);
        check(name, |vb, x| ResnetBlock2D::new(8, out_channels, config, vb)?.forward(x.clone(), temb));
    }
}

#[test]
fn a_time_embedding_too_many_or_too_few_is_an_error() {
    let fixture = fixture();
    for (name, config, temb, problem) in [
        ("resnet", PLAIN, Some(fixture.get("temb")), "temb is given to a block without one"),
        ("resnet_skip_time_act", TIMED, None, "temb is missing"),
    ] {
        let weights = fixture.state_dict(&format!("{name}.model."));
        let weights = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
        let block = ResnetBlock2D::new(8, 8, config, weights).unwrap();
        let error = block.forward(fixture.get("resnet.x").clone(), temb).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn halving_and_doubling_equal_the_reference() {
    check("downsample_padding_1", |vb, x| Downsample2D::new(8, 1, vb)?.forward(x));
    check("downsample_padding_0", |vb, x| Downsample2D::new(8, 0, vb)?.forward(x));
    check("upsample", |vb, x| Upsample2D::new(8, vb)?.forward(x, None));
    check("upsample_to_9x11", |vb, x| Upsample2D::new(8, vb)?.forward(x, Some((9, 11))));
}

/// Of the autoencoder's blocks; `layers` counts the residual blocks.
fn config(layers: usize) -> AutoencoderKLConfig {
    AutoencoderKLConfig {
        in_channels: 8,
        block_out_channels: vec![4, 8],
        layers_per_block: layers,
        norm_num_groups: 4,
        ..Default::default()
    }
}

#[test]
fn the_blocks_of_an_autoencoder_equal_the_reference() {
    let attention = PixelAttentionConfig {
        channels: 8,
        head_dim: 8,
        groups: Some(4),
        eps: 1e-6,
        output_scale_factor: 1.0,
    };
    check("attention", |vb, x| PixelAttention::new(attention, vb)?.forward(x));
    check("mid", |vb, x| AutoencoderMidBlock2D::new(8, &config(1), vb)?.forward(x.clone()));
    let without = AutoencoderKLConfig { mid_block_add_attention: false, ..config(1) };
    check("mid_without_attention", |vb, x| AutoencoderMidBlock2D::new(8, &without, vb)?.forward(x.clone()));
    check("down", |vb, x| DownEncoderBlock2D::new(8, 4, &config(2), true, vb)?.forward(x.clone()));
    check("down_last", |vb, x| DownEncoderBlock2D::new(8, 8, &config(2), false, vb)?.forward(x.clone()));
    check("up", |vb, x| UpDecoderBlock2D::new(8, 4, &config(1), true, vb)?.forward(x.clone()));
    check("up_last", |vb, x| UpDecoderBlock2D::new(8, 8, &config(1), false, vb)?.forward(x.clone()));
}

#[test]
fn encoder_and_decoder_equal_the_reference() {
    check("encoder", |vb, x| Encoder::new(&config(1), vb)?.forward(x));
    let decoder = AutoencoderKLConfig { latent_channels: 8, ..config(1) };
    check("decoder", |vb, x| Decoder::new(&decoder, vb)?.forward(x));
}

#[test]
fn the_distribution_equals_the_reference_where_variances_are_clamped() {
    let fixture = fixture();
    let distribution = DiagonalGaussianDistribution::new(fixture.get("distribution.parameters")).unwrap();
    let check = |what: &str, actual: &Tensor| {
        let name = format!("distribution.{what}");
        assert_close(&name, actual, fixture.get(&name), BOUND);
    };
    check("mean", distribution.mean());
    check("logvar", distribution.logvar());
    check("std", &distribution.std().unwrap());
    check("var", &distribution.var().unwrap());
    check("kl", &distribution.kl().unwrap());
    let odd = Tensor::zeros((1, 3, 2, 2), DType::F32, &Device::Cpu).unwrap();
    let error = DiagonalGaussianDistribution::new(&odd).unwrap_err().to_string();
    assert!(error.contains("parameters is [1, 3, 2, 2], expected (batch, 2 * channels"), "{error}");
}
