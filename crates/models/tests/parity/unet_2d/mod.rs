//! Tiny unconditional and class-conditional UNets, whole.

use candle_core::{DType, Device, Tensor};
use candle_diffusers_models::unet_2d::BlockType2D;
use candle_diffusers_models::{UNet2DConfig, UNet2DModel};
use candle_diffusers_test_support::{Fixture, relative_difference};
use candle_nn::VarBuilder;
use serde_json::{Value, json};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/unet_2d");

fn configs() -> Value {
    serde_json::from_str(&std::fs::read_to_string(format!("{FOLDER}/configs.json")).unwrap()).unwrap()
}

fn load(name: &str, config: &Value, dtype: DType) -> (UNet2DModel, Fixture) {
    let fixture = Fixture::open(format!("{FOLDER}/{name}.safetensors"));
    let config = UNet2DConfig::from_json(config).unwrap();
    let weights = VarBuilder::from_tensors(fixture.state_dict("model."), dtype, &Device::Cpu);
    (UNet2DModel::new(&config, weights).unwrap(), fixture)
}

/// Runs the model on items `start..start + length` of the fixture's batch.
fn run(model: &UNet2DModel, fixture: &Fixture, start: usize, length: usize) -> Tensor {
    let part = |name: &str| fixture.get(name).narrow(0, start, length).unwrap();
    let labels = fixture.contains("class_labels").then(|| part("class_labels"));
    let timesteps = fixture.values("timesteps");
    let timesteps = if timesteps.len() == 1 { &timesteps[..] } else { &timesteps[start..start + length] };
    model.forward(&part("sample"), timesteps, labels.as_ref()).unwrap()
}

#[test]
fn every_kind_equals_the_reference() {
    let mut worst: f64 = 0.0;
    for (name, config) in configs().as_object().unwrap() {
        let (model, fixture) = load(name, config, DType::F32);
        let difference = relative_difference(&run(&model, &fixture, 0, 2), fixture.get("output"));
        println!("{name}: {difference:e}");
        assert!(difference < 1e-5, "{name}: {difference:e}");
        worst = worst.max(difference);
    }
    println!("worst: {worst:e}");
}

#[test]
fn every_kind_lists_its_layers() {
    for (name, config) in configs().as_object().unwrap() {
        let (model, fixture) = load(name, config, DType::F32);
        let tables = ["class_embedding.weight", "time_proj.weight"];
        crate::assert_lists_all_layers(&model, &fixture.state_dict("model."), &tables);
    }
}

#[test]
fn bits_do_not_depend_on_the_batch() {
    for (name, config) in configs().as_object().unwrap() {
        let (model, fixture) = load(name, config, DType::F32);
        let together = run(&model, &fixture, 0, 2);
        for item in 0..2 {
            let alone = run(&model, &fixture, item, 1);
            assert_eq!(
                relative_difference(&together.narrow(0, item, 1).unwrap(), &alone),
                0.0,
                "{name}, item {item}"
            );
        }
    }
}

#[test]
fn half_precision_stays_near_float32() {
    for (name, dtype, bound) in [("ddpm", DType::F16, 1e-2), ("class_table", DType::BF16, 6e-2)] {
        let (model, fixture) = load(name, &configs()[name], dtype);
        let sample = fixture.get("sample").to_dtype(dtype).unwrap();
        let labels = fixture.contains("class_labels").then(|| fixture.get("class_labels"));
        let output = model.forward(&sample, &fixture.values("timesteps"), labels).unwrap();
        assert_eq!(output.dtype(), dtype);
        let difference = relative_difference(&output, fixture.get("output"));
        assert!(difference < bound, "{name}: {difference:e}");
    }
}

#[test]
fn the_config_of_an_old_ddpm_is_read() {
    let config = json!({
        "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu", "attention_head_dim": null,
        "block_out_channels": [128, 256, 256, 256], "center_input_sample": false,
        "down_block_types": ["DownBlock2D", "UNetResAttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 0, "flip_sin_to_cos": false, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-6, "norm_num_groups": 32, "out_channels": 3, "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
    });
    let config = UNet2DConfig::from_json(&config).unwrap();
    assert_eq!(config.down_block_types[1], BlockType2D::Attention);
    assert_eq!((config.attention_head_dim, config.downsample_padding), (None, 0));
    assert_eq!((config.sample_size, config.side_multiple()), (Some((32, 32)), 8));
    let default = UNet2DConfig::from_json(&json!({})).unwrap();
    assert_eq!(default.attention_head_dim, Some(8));
    assert_eq!(default.up_block_types[3], BlockType2D::Plain);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let refused = [
        (
            json!({"down_block_types": ["DownBlock2D"]}),
            "`down_block_types` is [\"DownBlock2D\"], expected a list of 4",
        ),
        (
            json!({"block_out_channels": [32], "down_block_types": ["SkipDownBlock2D"]}),
            "(\"SkipDownBlock2D\" is not supported)",
        ),
        (
            json!({"time_embedding_type": "learned"}),
            "`num_train_timesteps` is missing, expected a size, since",
        ),
        (
            json!({"time_embedding_type": "none"}),
            "`time_embedding_type` is \"none\", expected \"positional\"",
        ),
        (json!({"class_embed_type": "projection"}), "`class_embed_type` is \"projection\", expected null"),
        (json!({"downsample_type": "fir"}), "`downsample_type` is \"fir\", expected \"conv\" or \"resnet\""),
        (json!({"downsample_padding": 9}), "`downsample_padding` is 9, expected a whole number from 0 to 2"),
        (json!({"resnet_time_scale_shift": "spatial"}), "`resnet_time_scale_shift` is \"spatial\""),
        (
            json!({"attention_head_dim": 600}),
            "`attention_head_dim` is 600, expected no more than the channels of a",
        ),
        (
            json!({"mid_block_scale_factor": 0}),
            "`mid_block_scale_factor` is 0, expected a number other than 0",
        ),
        (json!({"layers_per_block": 0}), "`layers_per_block` is 0"),
        (json!({"extra": 1}), "`extra` is 1, expected no such field"),
    ];
    for (config, message) in refused {
        let error = UNet2DConfig::from_json(&config).unwrap_err().to_string();
        assert!(error.contains("UNet2DModel config") && error.contains(message), "{error}");
    }
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let (plain, _) = load("ddpm", &configs()["ddpm"], DType::F32);
    let (with_classes, _) = load("class_table", &configs()["class_table"], DType::F32);
    let (learned, _) = load("learned", &configs()["learned"], DType::F32);
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let labels = |labels: &[u32]| Tensor::new(labels, &Device::Cpu).unwrap();
    let error = |model: &UNet2DModel, shape: &[usize], timesteps: &[f64], labels: Option<Tensor>| {
        model.forward(&zeros(shape), timesteps, labels.as_ref()).unwrap_err().to_string()
    };
    let fits = &[2, 3, 8, 8];
    for (message, expected) in [
        (
            error(&plain, &[2, 3, 8, 6], &[1.0], None),
            "sample is [2, 3, 8, 6], expected (batch, 3, height, width)",
        ),
        (error(&plain, &[2, 3, 8, 6], &[1.0], None), "multiples of 4"),
        (error(&plain, &[2, 4, 8, 8], &[1.0], None), "sample is [2, 4, 8, 8]"),
        (error(&plain, fits, &[1.0; 3], None), "timesteps are 3, expected 1 or 2"),
        (error(&plain, fits, &[1.0], Some(labels(&[0, 1]))), "class_labels are given, but"),
        (error(&with_classes, fits, &[1.0], None), "class_labels are missing, but"),
        (error(&with_classes, fits, &[1.0], Some(labels(&[0]))), "class_labels are [1], expected (2, ...)"),
        (
            error(&learned, fits, &[400.0], None),
            "timesteps contain 400, expected whole numbers from 0 to 399",
        ),
        (error(&learned, fits, &[0.5], None), "timesteps contain 0.5"),
    ] {
        assert!(message.contains(expected), "{message}");
    }
    assert!(with_classes.forward(&zeros(fits), &[1.0], Some(&labels(&[0, 5]))).is_err());
    let mut config = UNet2DConfig::from_json(&configs()["ddpm"]).unwrap();
    config.up_block_types.pop();
    let error =
        UNet2DModel::new(&config, VarBuilder::zeros(DType::F32, &Device::Cpu)).unwrap_err().to_string();
    assert!(error.contains("up_block_types has 2 entries, expected 3"), "{error}");
}
