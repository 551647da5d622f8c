use candle_core::{DType, Device, Tensor};
use candle_diffusers_models::layers::Activation;
use candle_diffusers_models::{AutoencoderKL, AutoencoderKLConfig, BatchSlicing, Tiling};
use candle_diffusers_test_support::{Fixture, assert_close, relative_difference, values};
use candle_nn::VarBuilder;

const BOUND: f64 = 1e-5;

/// The second tiling of export.py: tiles of pixels that are no multiple of the factor.
const UNEVEN: Tiling = Tiling { tile_sample_min_size: 14, tile_latent_min_size: 3, tile_overlap_factor: 0.4 };

fn fixture() -> Fixture {
    let path = "/tests/parity/autoencoder_kl/autoencoder_kl.safetensors";
    Fixture::open(format!("{}{path}", env!("CARGO_MANIFEST_DIR")))
}

fn config(variant: &str) -> AutoencoderKLConfig {
    match variant {
        "full" => AutoencoderKLConfig {
            block_out_channels: vec![4, 8, 8],
            norm_num_groups: 4,
            sample_size: 16,
            ..Default::default()
        },
        "plain" => AutoencoderKLConfig {
            block_out_channels: vec![4, 6],
            layers_per_block: 2,
            norm_num_groups: 2,
            sample_size: 8,
            act_fn: Activation::Gelu,
            latent_channels: 3,
            in_channels: 4,
            out_channels: 2,
            use_quant_conv: false,
            use_post_quant_conv: false,
            mid_block_add_attention: false,
            ..Default::default()
        },
        _ => AutoencoderKLConfig {
            block_out_channels: vec![4],
            norm_num_groups: 4,
            sample_size: 8,
            use_post_quant_conv: false,
            ..Default::default()
        },
    }
}

fn model_in(fixture: &Fixture, variant: &str, dtype: DType) -> AutoencoderKL {
    let tensors = fixture.state_dict(&format!("{variant}.model."));
    let weights = VarBuilder::from_tensors(tensors, dtype, &Device::Cpu);
    AutoencoderKL::new(&config(variant), weights).unwrap()
}

fn model(fixture: &Fixture, variant: &str) -> AutoencoderKL {
    model_in(fixture, variant, DType::F32)
}

fn check_encode(fixture: &Fixture, vae: &AutoencoderKL, name: &str) {
    let posterior = vae.encode(fixture.get(&format!("{name}.sample"))).unwrap();
    let moments = Tensor::cat(&[posterior.mean(), posterior.logvar()], 1).unwrap();
    assert_close(name, &moments, fixture.get(&format!("{name}.moments")), BOUND);
}

fn check_decode(fixture: &Fixture, vae: &AutoencoderKL, name: &str) {
    let decoded = vae.decode(fixture.get(&format!("{name}.latents"))).unwrap();
    assert_close(name, &decoded, fixture.get(&format!("{name}.decoded")), BOUND);
}

#[test]
fn every_variant_lists_its_layers() {
    let fixture = fixture();
    for variant in ["full", "plain", "single"] {
        let state_dict = fixture.state_dict(&format!("{variant}.model."));
        crate::assert_lists_all_layers(&model(&fixture, variant), &state_dict, &[]);
    }
}

#[test]
fn encoding_decoding_and_drawing_equal_the_reference() {
    let fixture = fixture();
    for variant in ["full", "plain", "single"] {
        let vae = model(&fixture, variant);
        check_encode(&fixture, &vae, &format!("{variant}.encode"));
        check_encode(&fixture, &vae, &format!("{variant}.encode_odd"));
        check_decode(&fixture, &vae, &format!("{variant}.decode"));
        let get = |what: &str| fixture.get(&format!("{variant}.encode.{what}"));
        let posterior = vae.encode(get("sample")).unwrap();
        let drawn = posterior.sample(get("noise")).unwrap();
        assert_close("drawn", &drawn, get("drawn"), BOUND);
        assert_close("kl", &posterior.kl().unwrap(), get("kl"), BOUND);
        assert_eq!(values(posterior.mode()), values(posterior.mean()));
    }
}

#[test]
fn tiled_encoding_and_decoding_equal_the_reference() {
    let fixture = fixture();
    for variant in ["full", "plain"] {
        let mut vae = model(&fixture, variant);
        vae.set_tiling(Some(vae.config().tiling())).unwrap();
        check_encode(&fixture, &vae, &format!("{variant}.tiled_encode"));
        check_decode(&fixture, &vae, &format!("{variant}.tiled_decode"));
        // No larger than a tile: in one piece.
        check_encode(&fixture, &vae, &format!("{variant}.encode_odd"));
        check_decode(&fixture, &vae, &format!("{variant}.decode"));
        vae.set_tiling(Some(UNEVEN)).unwrap();
        check_encode(&fixture, &vae, &format!("{variant}.tiled_encode_uneven"));
        check_decode(&fixture, &vae, &format!("{variant}.tiled_decode_uneven"));
    }
}

#[test]
fn slices_and_single_pictures_give_the_bits_of_the_whole_batch() {
    let fixture = fixture();
    let (sample, latents) =
        (fixture.get("full.tiled_encode.sample"), fixture.get("full.tiled_decode.latents"));
    for tiling in [None, Some(UNEVEN)] {
        let mut vae = model(&fixture, "full");
        vae.set_tiling(tiling).unwrap();
        let encoded = vae.encode(sample).unwrap();
        let decoded = vae.decode(latents).unwrap();
        for item in 0..2 {
            let alone = vae.encode(&sample.narrow(0, item, 1).unwrap()).unwrap();
            assert_eq!(values(alone.mean()), values(&encoded.mean().narrow(0, item, 1).unwrap()));
            assert_eq!(values(alone.logvar()), values(&encoded.logvar().narrow(0, item, 1).unwrap()));
            let alone = vae.decode(&latents.narrow(0, item, 1).unwrap()).unwrap();
            assert_eq!(values(&alone), values(&decoded.narrow(0, item, 1).unwrap()));
        }
        vae.set_slicing(BatchSlicing::OneByOne);
        assert_eq!(values(vae.encode(sample).unwrap().mean()), values(encoded.mean()));
        assert_eq!(values(&vae.decode(latents).unwrap()), values(&decoded));
    }
}

#[test]
fn half_precision_stays_near_and_takes_any_float_input() {
    let fixture = fixture();
    for (dtype, bound) in [(DType::F16, 2e-2), (DType::BF16, 1e-1)] {
        let vae = model_in(&fixture, "full", dtype);
        let decoded = vae.decode(fixture.get("full.decode.latents")).unwrap();
        assert_eq!(decoded.dtype(), dtype);
        let difference = relative_difference(&decoded, fixture.get("full.decode.decoded"));
        assert!(difference < bound, "{dtype:?}: {difference:e}");
        let posterior = vae.encode(fixture.get("full.encode.sample")).unwrap();
        let drawn = posterior.sample(fixture.get("full.encode.noise")).unwrap();
        assert_close(dtype.as_str(), &drawn, fixture.get("full.encode.drawn"), bound);
    }
}

#[test]
fn wrong_inputs_are_errors_that_say_what_is_wrong() {
    let fixture = fixture();
    let mut vae = model(&fixture, "full");
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    for shape in [&[3, 8, 8][..], &[1, 4, 8, 8], &[1, 3, 3, 8], &[1, 3, 8, 0], &[0, 3, 8, 8]] {
        let error = vae.encode(&zeros(shape)).unwrap_err().to_string();
        let expected = format!("x is {shape:?}, expected (batch, 3, height, width) with sides of at least 4");
        assert!(error.contains(&expected), "{error}");
    }
    for shape in [&[4, 2, 2][..], &[1, 3, 2, 2], &[1, 4, 0, 2]] {
        let error = vae.decode(&zeros(shape)).unwrap_err().to_string();
        let expected = format!("latents is {shape:?}, expected (batch, 4, height, width)");
        assert!(error.contains(&expected), "{error}");
    }
    let posterior = vae.encode(&zeros(&[1, 3, 8, 8])).unwrap();
    let error = posterior.sample(&zeros(&[1, 4, 2, 1])).unwrap_err().to_string();
    assert!(error.contains("noise is [1, 4, 2, 1], expected [1, 4, 2, 2]"), "{error}");
    // The second tile is two pixels wide, less than one latent.
    vae.set_tiling(Some(vae.config().tiling())).unwrap();
    let error = vae.encode(&zeros(&[1, 3, 16, 26])).unwrap_err().to_string();
    assert!(error.contains("x is [1, 3, 16, 2], expected"), "{error}");
}

#[test]
fn tiles_without_end_are_refused() {
    let fixture = fixture();
    let mut vae = model(&fixture, "full");
    let tiling = vae.config().tiling();
    for (tiling, field) in [
        (Tiling { tile_overlap_factor: 1.0, ..tiling }, "tile_overlap_factor is 1"),
        (Tiling { tile_overlap_factor: -0.1, ..tiling }, "tile_overlap_factor is -0.1"),
        (Tiling { tile_overlap_factor: f64::NAN, ..tiling }, "tile_overlap_factor is NaN"),
        (Tiling { tile_sample_min_size: 0, ..tiling }, "tile_sample_min_size is 0"),
        (Tiling { tile_latent_min_size: 1, ..tiling }, "tile_latent_min_size is 1"),
    ] {
        let error = vae.set_tiling(Some(tiling)).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
}

#[test]
fn a_missing_and_a_wrongly_shaped_tensor_are_named() {
    let fixture = fixture();
    let name = "decoder.up_blocks.1.upsamplers.0.conv.weight";
    let mut tensors = fixture.state_dict("full.model.");
    tensors.insert(name.into(), Tensor::zeros((3, 5), DType::F32, &Device::Cpu).unwrap());
    let build = |tensors| {
        let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        AutoencoderKL::new(&config("full"), weights).unwrap_err().to_string()
    };
    let error = build(tensors.clone());
    assert!(error.contains(name) && error.contains("[8, 8, 3, 3]") && error.contains("[3, 5]"), "{error}");
    tensors.remove(name);
    assert!(build(tensors).contains(name));
}
