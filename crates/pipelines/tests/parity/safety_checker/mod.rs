//! A safety checker that finds something in one of two pictures, and what it sees pictures through.

use candle_core::Tensor;
use candle_diffusers_loaders::{LoadOptions, ModelIndex, Repository};
use candle_diffusers_pipelines::{
    ClipImageProcessor, SafetyChecker, Schedule, StableDiffusionPipeline, TextToImage, seeded_generators,
};
use candle_diffusers_test_support::{Fixture, relative_difference, values};
use image::RgbImage;
use serde_json::{Value, json};

use crate::painted::{go_on, worst_pixel};
use crate::text_to_image::FOLDER as MODELS;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/safety_checker");

fn fixture() -> Fixture {
    Fixture::open(format!("{FOLDER}/safety_checker.safetensors"))
}

/// A folder with the models of `sd1` and the checker, whose index says what `classes` says of it.
fn folder(classes: Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let sd1 = format!("{MODELS}/sd1");
    let mut copied: Vec<String> = Vec::new();
    for (from, names) in [
        (sd1.as_str(), &["scheduler", "text_encoder", "tokenizer", "unet", "vae"][..]),
        (FOLDER, &["safety_checker", "feature_extractor"][..]),
    ] {
        for name in names {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            for entry in std::fs::read_dir(format!("{from}/{name}")).unwrap() {
                let file = entry.unwrap().file_name();
                let file = format!("{name}/{}", file.to_str().unwrap());
                std::fs::copy(format!("{from}/{file}"), folder.path().join(&file)).unwrap();
                copied.push(file);
            }
        }
    }
    assert!(copied.contains(&"safety_checker/model.safetensors".to_string()));
    let index = std::fs::read_to_string(format!("{sd1}/model_index.json")).unwrap();
    let mut index: Value = serde_json::from_str(&index).unwrap();
    for (component, class) in classes.as_object().unwrap() {
        index[component] = class.clone();
    }
    std::fs::write(folder.path().join("model_index.json"), index.to_string()).unwrap();
    folder
}

fn classes() -> Value {
    json!({
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    })
}

fn request() -> TextToImage {
    TextToImage {
        prompts: vec!["a large red circle on a blue background".into(), "a star".into()],
        schedule: Schedule::Steps(3),
        guidance_scale: Some(4.0),
        width: Some(40),
        height: Some(32),
        ..Default::default()
    }
}

#[test]
fn pictures_and_flags_equal_the_reference() {
    let fixture = fixture();
    let folder = folder(classes());
    let repository = Repository::folder(folder.path()).unwrap();
    let load =
        |repository: &Repository| StableDiffusionPipeline::load(repository, &LoadOptions::default()).unwrap();
    let mut pipeline = load(&repository);
    let output = pipeline.generate(&request(), &mut seeded_generators(0, 2), &mut go_on).unwrap();
    assert_eq!(output.nsfw_content_detected, Some(vec![false, true]));
    assert_eq!(fixture.values("flags"), [0.0, 1.0]);
    let worst = worst_pixel(&output.images, fixture.get("pictures"));
    println!("pixels {worst} of 255");
    assert!(worst <= 2.0, "{worst}");
    assert!(output.images[1].as_raw().iter().all(|pixel| *pixel == 0));
    let tensor = pipeline.generate_tensor(&request(), &mut seeded_generators(0, 2), &mut go_on).unwrap();
    assert!(relative_difference(&tensor.images, fixture.get("tensor")) < 1e-4);

    for mut pipeline in [load(&repository.clone().without(&["safety_checker"])), {
        pipeline.safety_checker = None;
        pipeline
    }] {
        let unchecked = pipeline.generate(&request(), &mut seeded_generators(0, 2), &mut go_on).unwrap();
        assert_eq!(unchecked.nsfw_content_detected, None);
        assert!(unchecked.images[1].as_raw().iter().any(|pixel| *pixel > 0));
        assert!(unchecked.images[0] == output.images[0]);
    }
}

#[test]
fn names_may_have_one_step_more() {
    let with_files = folder(classes());
    let path = with_files.path().join("safety_checker/model.safetensors");
    let check = || {
        let repository = Repository::folder(with_files.path()).unwrap();
        let index = ModelIndex::load(&repository).unwrap();
        let checker = SafetyChecker::load(&repository, &index, &LoadOptions::default()).unwrap().unwrap();
        let pictures = [RgbImage::from_fn(20, 20, |x, y| image::Rgb([x as u8 * 9, y as u8 * 7, 80]))];
        checker.model.forward(&checker.feature_extractor.preprocess(&pictures).unwrap()).unwrap()
    };
    let short = check();
    let tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    let longer = |(name, tensor): (String, Tensor)| {
        let prefix = if name.starts_with("vision_model.") { "vision_model." } else { "" };
        (format!("{prefix}{name}"), tensor)
    };
    let mut tensors: std::collections::HashMap<String, Tensor> = tensors.into_iter().map(longer).collect();
    let position_ids = Tensor::arange(0i64, 17, &candle_core::Device::Cpu).unwrap();
    tensors.insert("vision_model.vision_model.embeddings.position_ids".into(), position_ids);
    candle_core::safetensors::save(&tensors, &path).unwrap();
    assert_eq!(check(), short);
}

#[test]
fn pictures_are_brought_to_size_as_transformers_does_it() {
    let fixture = fixture();
    let cases: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{FOLDER}/processors.json")).unwrap()).unwrap();
    for (name, case) in cases.as_object().unwrap() {
        let processor = ClipImageProcessor::from_json(&case["config"]).unwrap();
        let pixels = fixture.get(&format!("{name}.from"));
        let (height, width, _) = pixels.dims3().unwrap();
        let bytes = pixels.flatten_all().unwrap().to_vec1().unwrap();
        let picture = RgbImage::from_raw(width as u32, height as u32, bytes).unwrap();
        let output = processor.preprocess(&[picture]).unwrap();
        let expected = fixture.get(&format!("{name}.to"));
        assert_eq!(output.dims(), expected.dims(), "{name}");
        assert_eq!(values(&output), values(expected), "{name}: to the last bit");
    }
}

#[test]
fn a_checker_that_cannot_be_used_is_named() {
    let class = |name: &str| json!(["stable_diffusion", name]);
    let mut without_extractor = classes();
    without_extractor["feature_extractor"] = json!([null, null]);
    let mut other = classes();
    other["safety_checker"] = class("MyChecker");
    for (classes, expected) in [
        (without_extractor, "there is a safety_checker, but no feature_extractor for it"),
        (other, "safety_checker is a MyChecker, expected a StableDiffusionSafetyChecker"),
    ] {
        let folder = folder(classes);
        let repository = Repository::folder(folder.path()).unwrap();
        let error = StableDiffusionPipeline::load(&repository, &LoadOptions::default()).err().unwrap();
        let error = error.to_string();
        assert!(error.contains("model_index.json") && error.contains(expected), "{error}");
        assert!(error.contains("load the pipeline without its safety_checker"), "{error}");
    }
    let damaged = folder(classes());
    let config = damaged.path().join("feature_extractor/preprocessor_config.json");
    let refused = |expected: &str| {
        let repository = Repository::folder(damaged.path()).unwrap();
        let error = StableDiffusionPipeline::load(&repository, &LoadOptions::default()).err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
    };
    std::fs::write(&config, r#"{"crop_size": 15}"#).unwrap();
    refused("its feature_extractor does not make pictures of 16x16");
    std::fs::write(&config, r#"{"size": "large"}"#).unwrap();
    refused("preprocessor_config.json: field `size` is \"large\"");
    std::fs::remove_file(&config).unwrap();
    refused("has no feature_extractor/preprocessor_config.json");
}
