//! A tiny safety checker, with the encoder of pictures in it.

use candle_core::{DType, Device, Tensor};
use candle_diffusers_models::{SafetyCheckerConfig, StableDiffusionSafetyChecker};
use candle_diffusers_test_support::{Fixture, assert_close};
use candle_nn::VarBuilder;
use serde_json::{Value, json};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/safety_checker");

fn json() -> Value {
    serde_json::from_str(&std::fs::read_to_string(format!("{FOLDER}/config.json")).unwrap()).unwrap()
}

fn load(dtype: DType) -> (StableDiffusionSafetyChecker, Fixture) {
    let fixture = Fixture::open(format!("{FOLDER}/safety_checker.safetensors"));
    let weights = VarBuilder::from_tensors(fixture.state_dict("model."), dtype, &Device::Cpu);
    let config = SafetyCheckerConfig::from_json(&json()).unwrap();
    (StableDiffusionSafetyChecker::new(&config, weights).unwrap(), fixture)
}

#[test]
fn scores_and_flags_equal_the_reference() {
    let (model, fixture) = load(DType::F32);
    let clip_input = fixture.get("clip_input");
    let output = model.vision_model().forward(clip_input).unwrap();
    assert_eq!(output.last_hidden_state.dims(), [4, 17, 16]);
    assert_close("pooler_output", &output.pooler_output, fixture.get("pooler_output"), 5e-6);
    let findings = model.forward(clip_input).unwrap();
    let rounded = |score: f64| (score * 1000.0).round() as i32;
    let check = |name: &str, scores: Vec<f32>| {
        let expected: Vec<i32> = fixture.values(name).into_iter().map(rounded).collect();
        let scores: Vec<i32> = scores.into_iter().map(|score| rounded(score.into())).collect();
        assert_eq!(scores, expected, "{name}");
    };
    check("special_scores", findings.iter().flat_map(|found| found.special_scores.clone()).collect());
    check("concept_scores", findings.iter().flat_map(|found| found.concept_scores.clone()).collect());
    let flags: Vec<f64> = findings.iter().map(|found| found.has_nsfw_concept().into()).collect();
    assert_eq!(flags, fixture.values("flags"));
    assert_eq!(flags, [0.0, 1.0, 0.0, 1.0]);
}

#[test]
fn a_picture_is_judged_alike_alone_and_in_half_precision() {
    let (model, fixture) = load(DType::F32);
    let clip_input = fixture.get("clip_input");
    let together = model.forward(clip_input).unwrap();
    for (i, found) in together.iter().enumerate() {
        assert_eq!(model.forward(&clip_input.narrow(0, i, 1).unwrap()).unwrap()[0], *found);
    }
    let (half, _) = load(DType::F16);
    let output = half.vision_model().forward(clip_input).unwrap().pooler_output;
    assert_close("half", &output, fixture.get("pooler_output"), 1e-2);
    assert!(half.forward(clip_input).unwrap()[3].has_nsfw_concept());
}

#[test]
fn all_layers_are_listed() {
    let (model, fixture) = load(DType::F32);
    let tables = [
        "concept_embeds",
        "special_care_embeds",
        "vision_model.vision_model.embeddings.position_embedding.weight",
    ];
    crate::assert_lists_all_layers(&model, &fixture.state_dict("model."), &tables);
}

#[test]
fn the_older_name_of_the_vision_config_comes_first() {
    let config =
        SafetyCheckerConfig::from_json(&json!({"vision_config": {"hidden_size": 96, "patch_size": 8}}));
    assert_eq!(config.unwrap().vision_config.hidden_size, 96);
    let both = json!({"vision_config": {"hidden_size": 64}, "vision_config_dict": {"patch_size": 14}, "projection_dim": 768});
    let config = SafetyCheckerConfig::from_json(&both).unwrap();
    assert_eq!((config.vision_config.hidden_size, config.vision_config.patch_size), (768, 14));
    assert_eq!(config.projection_dim, 768);
}

#[test]
fn what_does_not_fit_is_named() {
    let refused = [
        (
            json!({"vision_config": {"patch_size": 300}}),
            "`patch_size` is 300, expected at most image_size, 224",
        ),
        (
            json!({"vision_config": {"num_attention_heads": 7}}),
            "`num_attention_heads` is 7, expected a number that",
        ),
        (json!({"vision_config": [1]}), "CLIPVisionModel config: field `(the whole file)` is [1]"),
        (json!({"vision_config": {"extra": 1}}), "`extra` is 1, expected no such field"),
        (json!({"projection_dim": 0}), "StableDiffusionSafetyChecker config: field `projection_dim` is 0"),
        (json!({"model_type": "blip"}), "`model_type` is \"blip\", expected \"clip\""),
    ];
    for (config, message) in refused {
        let error = SafetyCheckerConfig::from_json(&config).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let (model, _) = load(DType::F32);
    for shape in [[1, 3, 16, 17], [1, 1, 17, 17], [0, 3, 17, 17]] {
        let pictures = Tensor::zeros(&shape, DType::F32, &Device::Cpu).unwrap();
        let error = model.forward(&pictures).unwrap_err().to_string();
        assert!(error.contains("pixel_values is") && error.contains("(batch, 3, 17, 17)"), "{error}");
    }
}
