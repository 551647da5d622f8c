//! Pictures that are not to be shown.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use crate::program::{Workplace, copy_of_shapes};

const PROMPT: &str = "a large red circle on a blue background";

/// The small model with a safety checker that finds something in every picture, or in none.
fn model(workplace: &Workplace, threshold: f32) {
    let model = copy_of_shapes(workplace);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines/tests/parity/safety_checker");
    for path in [
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
        "feature_extractor/preprocessor_config.json",
    ] {
        fs::create_dir_all(model.join(path).parent().unwrap()).unwrap();
        fs::copy(fixture.join(path), model.join(path)).unwrap();
    }
    let weights = model.join("safety_checker/model.safetensors");
    let mut tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
    tensors.insert("concept_embeds_weights".into(), Tensor::full(threshold, 17, &Device::Cpu).unwrap());
    candle_core::safetensors::save(&tensors, &weights).unwrap();
    let index = model.join("model_index.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    json["safety_checker"] = json!(["stable_diffusion", "StableDiffusionSafetyChecker"]);
    json["feature_extractor"] = json!(["transformers", "CLIPImageProcessor"]);
    fs::write(index, json.to_string()).unwrap();
}

fn is_black(workplace: &Workplace, name: &str) -> bool {
    image::open(workplace.path(name)).unwrap().to_rgb8().iter().all(|value| *value == 0)
}

#[test]
fn what_is_found_is_black_and_said() {
    let workplace = Workplace::new();
    model(&workplace, -2.0);
    let flags = ["generate", PROMPT, "--model", "model", "--steps", "1", "--seed", "1"];
    let run = workplace.succeed(flags);
    assert!(run.stderr.starts_with("the picture is black: the safety checker"), "{}", run.stderr);
    assert!(run.stderr.contains("--no-safety-checker"), "{}", run.stderr);
    assert!(is_black(&workplace, "out.png"));

    let run = workplace.succeed([&flags[..], &["--num-images", "2"]].concat());
    assert!(run.stderr.contains("picture 2 of 2 is black: "), "{}", run.stderr);

    fs::remove_file(workplace.path("model/safety_checker/model.safetensors")).unwrap();
    workplace.refuse([&flags[..], &["--output", "a.png"]].concat(), &["safety_checker"]);
    let run = workplace.succeed([&flags[..], &["--no-safety-checker"]].concat());
    assert_eq!(run.stderr, "wrote out.png\n");
    assert!(!is_black(&workplace, "out.png"));
}

#[test]
fn where_nothing_is_found_nothing_is_said() {
    let workplace = Workplace::new();
    model(&workplace, 2.0);
    let flags = ["--steps", "1", "--seed", "1"];
    let run = workplace.succeed([&["generate", PROMPT, "--model", "model"][..], &flags].concat());
    assert_eq!(run.stderr, "wrote out.png\n");
    workplace.succeed([&["generate", PROMPT, "--output", "plain.png"][..], &flags].concat());
    let pixels = |name: &str| image::open(workplace.path(name)).unwrap().to_rgb8();
    assert_eq!(pixels("out.png"), pixels("plain.png"));
}
