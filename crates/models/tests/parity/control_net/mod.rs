//! Tiny ControlNets of both families, whole.

use candle_core::{DType, Device, Tensor};
use candle_diffusers_models::{
    ControlNetConfig, ControlNetModel, ControlNetOutput, ControlScale, TextTime, UNetConditions,
};
use candle_diffusers_test_support::{Fixture, relative_difference};
use candle_nn::VarBuilder;
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/control_net");

/// Config and how it steers, as export.py has it.
const CASES: [(&str, f64, bool); 5] = [
    ("sd1", 1.0, false),
    ("guess", 1.5, true),
    ("sdxl", 0.5, false),
    ("pooled", 0.7, true),
    ("oddities", 1.0, false),
];

fn configs() -> Value {
    serde_json::from_str(&std::fs::read_to_string(format!("{FOLDER}/configs.json")).unwrap()).unwrap()
}

fn load(name: &str) -> (ControlNetModel, Fixture) {
    let fixture = Fixture::open(format!("{FOLDER}/{name}.safetensors"));
    let config = ControlNetConfig::from_json(&configs()[name]).unwrap();
    let weights = VarBuilder::from_tensors(fixture.state_dict("model."), DType::F32, &Device::Cpu);
    (ControlNetModel::new(&config, weights).unwrap(), fixture)
}

/// Runs the model on items `start..start + length` of the fixture's batch.
fn run(
    model: &ControlNetModel,
    fixture: &Fixture,
    scale: ControlScale,
    start: usize,
    length: usize,
) -> ControlNetOutput {
    let part = |name: &str| fixture.get(name).narrow(0, start, length).unwrap();
    let get = |name: &str| fixture.contains(name).then(|| part(name));
    let text_time = get("text_embeds").zip(get("time_ids"));
    let class_labels = get("class_labels");
    let conditions = UNetConditions {
        added: text_time.as_ref().map(|(text_embeds, time_ids)| TextTime { text_embeds, time_ids }),
        class_labels: class_labels.as_ref(),
        ..Default::default()
    };
    let timesteps = &fixture.values("timesteps")[start..start + length];
    let condition = model.embed_condition(&part("picture")).unwrap();
    model.forward(&part("sample"), timesteps, &part("text"), &condition, scale, conditions).unwrap()
}

fn pairs<'a>(output: &'a ControlNetOutput, fixture: &'a Fixture) -> Vec<(&'a Tensor, &'a Tensor)> {
    let expected = (0..).map(|i| format!("down.{i}")).take_while(|name| fixture.contains(name));
    let expected: Vec<&Tensor> = expected.map(|name| fixture.get(&name)).collect();
    assert_eq!(output.down_block.len(), expected.len());
    let middle = (&output.mid_block, fixture.get("mid"));
    output.down_block.iter().zip(expected).chain([middle]).collect()
}

#[test]
fn every_family_equals_the_reference() {
    for (name, conditioning_scale, guess_mode) in CASES {
        let (model, fixture) = load(name);
        let output = run(&model, &fixture, ControlScale { conditioning_scale, guess_mode }, 0, 2);
        for (index, (found, expected)) in pairs(&output, &fixture).into_iter().enumerate() {
            assert_eq!(found.dims(), expected.dims(), "{name} {index}");
            let difference = relative_difference(found, expected);
            println!("{name} {index}: {difference:e}");
            assert!(difference < 1e-5, "{name} {index}: {difference:e}");
        }
    }
}

#[test]
fn every_family_lists_its_layers() {
    for (name, ..) in CASES {
        let (model, fixture) = load(name);
        crate::assert_lists_all_layers(&model, &fixture.state_dict("model."), &[]);
    }
}

#[test]
fn bits_do_not_depend_on_the_batch() {
    for (name, conditioning_scale, guess_mode) in CASES {
        let (model, fixture) = load(name);
        let scale = ControlScale { conditioning_scale, guess_mode };
        let together = run(&model, &fixture, scale, 0, 2);
        for item in 0..2 {
            let alone = run(&model, &fixture, scale, item, 1);
            for (together, alone) in together.down_block.iter().zip(&alone.down_block) {
                let difference = relative_difference(&together.narrow(0, item, 1).unwrap(), alone);
                assert_eq!(difference, 0.0, "{name}, item {item}");
            }
        }
    }
}

#[test]
fn a_field_that_is_not_supported_is_named() {
    let cases = [
        ("conditioning_channels", "0"),
        ("conditioning_embedding_out_channels", "[]"),
        ("conditioning_embedding_out_channels", "[4, \"x\"]"),
        ("controlnet_conditioning_channel_order", "\"gbr\""),
        ("global_pool_conditions", "\"yes\""),
        ("mid_block_type", "null"),
        ("transformer_layers_per_block", "[0]"),
        ("transformer_layers_per_block", "[0, -1]"),
        ("transformer_layers_per_block", "null"),
        ("encoder_hid_dim", "768"),
        ("down_block_types", "[\"DownBlock2D\"]"),
        ("up_block_types", "[\"UpBlock2D\"]"),
        ("a_field_of_tomorrow", "1"),
        ("_class_name", "\"UNet2DConditionModel\""),
    ];
    for (field, value) in cases {
        let mut config = configs()["sd1"].clone();
        config[field] = serde_json::from_str(value).unwrap();
        let message = ControlNetConfig::from_json(&config).unwrap_err().to_string();
        assert!(message.contains(&format!("ControlNetModel config: field `{field}`")), "{message}");
    }
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let (model, fixture) = load("sd1");
    let (sample, text, picture) = (fixture.get("sample"), fixture.get("text"), fixture.get("picture"));
    let grey = picture.narrow(1, 0, 1).unwrap();
    let message = model.embed_condition(&grey).unwrap_err().to_string();
    assert!(message.contains("controlnet_cond is [2, 1, 32, 32], expected (batch, 3"), "{message}");
    let condition = model.embed_condition(picture).unwrap();
    let small = model.embed_condition(&picture.narrow(2, 0, 16).unwrap()).unwrap();
    let scale = ControlScale { conditioning_scale: 1.0, guess_mode: false };
    let error = |sample: &Tensor, text: &Tensor, condition: &Tensor| {
        model.forward(sample, &[1.0], text, condition, scale, Default::default()).unwrap_err().to_string()
    };
    let message = error(sample, text, &small);
    assert!(message.contains("another size than what is painted"), "{message}");
    let message = error(sample, &text.narrow(2, 0, 11).unwrap(), &condition);
    assert!(message.contains("ControlNetModel: encoder_hidden_states"), "{message}");
    let message = error(&sample.narrow(1, 0, 3).unwrap(), text, &condition);
    assert!(message.contains("ControlNetModel: sample"), "{message}");
    let (of_sdxl, fixture) = load("sdxl");
    let condition = of_sdxl.embed_condition(fixture.get("picture")).unwrap();
    let (sample, text) = (fixture.get("sample"), fixture.get("text"));
    let error = of_sdxl.forward(sample, &[1.0], text, &condition, scale, Default::default());
    let message = error.unwrap_err().to_string();
    assert!(message.contains("ControlNetModel: added_cond_kwargs are missing"), "{message}");
}
