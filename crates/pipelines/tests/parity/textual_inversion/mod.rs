//! Prompts with textual inversion embeddings of every file layout: written out, encoded and painted as diffusers does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_diffusers_loaders::{ClipTokenizer, LoadOptions, Repository, TextualInversion, TokenVectors};
use candle_diffusers_pipelines::{
    ClipEncoder, PromptEmbeds, Schedule, StableDiffusionPipeline, TextEncoders, TextToImage,
    maybe_convert_prompt, seeded_generators,
};
use candle_diffusers_test_support::{Fixture, assert_close, values};
use image::RgbImage;
use serde_json::Value;

use crate::painted::{go_on, worst_pixel};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/textual_inversion");
const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/text_to_image");
const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../convert/tests/parity/embedding_layouts");

const BOUND: f64 = 5e-6;

fn cases() -> BTreeMap<String, Value> {
    serde_json::from_str(&std::fs::read_to_string(format!("{FOLDER}/cases.json")).unwrap()).unwrap()
}

fn load(model: &str) -> StableDiffusionPipeline {
    let repository = Repository::folder(format!("{MODELS}/{model}")).unwrap();
    StableDiffusionPipeline::load(&repository, &LoadOptions::default()).unwrap()
}

fn file(name: &str) -> PathBuf {
    Path::new(FILES).join(name)
}

fn strings<'a>(case: &'a Value, key: &str) -> Vec<Option<&'a str>> {
    case[key].as_array().into_iter().flatten().map(Value::as_str).collect()
}

/// The pipeline with the case's embeddings.
fn prepare(case: &Value) -> StableDiffusionPipeline {
    let mut pipeline = load(case["model"].as_str().unwrap_or("sd1"));
    for (name, token) in strings(case, "files").into_iter().zip(strings(case, "tokens")) {
        pipeline.load_textual_inversion(file(name.unwrap()), token).unwrap();
    }
    let gone: Vec<&str> = strings(case, "unload").into_iter().flatten().collect();
    if !gone.is_empty() {
        pipeline.unload_textual_inversion(&gone).unwrap();
    }
    pipeline
}

fn request(case: &Value) -> TextToImage {
    TextToImage {
        prompts: vec![case["prompt"].as_str().unwrap().to_string()],
        negative_prompts: case["negative_prompt"].as_str().map(str::to_string).into_iter().collect(),
        schedule: Schedule::Steps(4),
        guidance_scale: Some(4.0),
        clip_skip: case["clip_skip"].as_u64().map(|skip| skip as usize),
        width: Some(32),
        height: Some(32),
        ..Default::default()
    }
}

fn paint(pipeline: &mut StableDiffusionPipeline, request: &TextToImage) -> Vec<RgbImage> {
    pipeline.generate(request, &mut seeded_generators(3, 1), &mut go_on).unwrap().images
}

#[test]
fn prompts_are_encoded_and_painted_as_in_the_reference() {
    let fixture = Fixture::open(format!("{FOLDER}/textual_inversion.safetensors"));
    for (name, case) in &cases() {
        let mut pipeline = prepare(case);
        let request = request(case);
        let PromptEmbeds { prompt, negative, .. } = pipeline.encode_prompt(&request).unwrap();
        assert_close(name, &prompt, fixture.get(&format!("{name}.prompt_embeds")), BOUND);
        assert_close(name, &negative.unwrap(), fixture.get(&format!("{name}.negative_prompt_embeds")), BOUND);
        let worst = worst_pixel(&paint(&mut pipeline, &request), fixture.get(&format!("{name}.picture")));
        println!("{name}: {worst} of 255");
        assert!(worst <= 1.0, "{name}: {worst}");
    }
}

#[test]
fn embeddings_change_the_picture_and_unloading_brings_the_old_one_back() {
    for (name, case) in &cases() {
        let mut pipeline = prepare(case);
        let with = paint(&mut pipeline, &request(case));
        pipeline.unload_textual_inversion(&[""; 0]).unwrap();
        let without = paint(&mut pipeline, &request(case));
        assert_ne!(with, without, "{name}");
        let never = paint(&mut load(case["model"].as_str().unwrap_or("sd1")), &request(case));
        assert_eq!(without, never, "{name}");
    }
}

/// The tokens that export.py adds, with as many vectors.
fn add_tokens(tokenizer: &mut ClipTokenizer) {
    let tokens = [
        ("<cat>", 3),
        ("EasyNegative", 2),
        ("cat-toy", 2),
        ("my style", 2),
        ("<one>", 1),
        ("<seven>", 12),
        ("straße", 2),
        ("<cat-2>", 2),
    ];
    for (token, count) in tokens {
        let further = (1..count).map(|number| format!("{token}_{number}"));
        let names: Vec<String> = std::iter::once(token.to_string()).chain(further).collect();
        tokenizer.add_tokens(&names).unwrap();
    }
}

#[test]
fn tokens_are_written_out_as_in_the_reference() {
    let mut tokenizer = clip(&load("sd1")).tokenizer.clone();
    add_tokens(&mut tokenizer);
    let text = std::fs::read_to_string(format!("{FOLDER}/converted.json")).unwrap();
    let expected: BTreeMap<String, String> = serde_json::from_str(&text).unwrap();
    assert!(expected.len() > 20);
    for (prompt, converted) in &expected {
        assert_eq!(&maybe_convert_prompt(prompt, &tokenizer).unwrap(), converted, "{prompt:?}");
    }
}

#[test]
fn a_prompt_does_not_grow_without_end() {
    let mut tokenizer = clip(&load("sd1")).tokenizer.clone();
    let names: Vec<String> = (1..1000).map(|number| format!("<y>_{number}")).collect();
    tokenizer.add_tokens(&["<y>"]).unwrap();
    tokenizer.add_tokens(&names).unwrap();
    let error = maybe_convert_prompt(&"<y>".repeat(20_000), &tokenizer).unwrap_err().to_string();
    assert!(error.starts_with("prompt: would have") && error.contains("<y>"), "{error}");
}

#[test]
fn embeddings_for_other_models_are_refused() {
    let mut pipeline = load("sd1");
    let error = pipeline.load_textual_inversion(file("sdxl.safetensors"), None).unwrap_err().to_string();
    assert!(error.contains("sdxl.safetensors is for Stable Diffusion XL"), "{error}");
    let vectors = Tensor::zeros((2, 768), DType::F32, &Device::Cpu).unwrap();
    let wide = TextualInversion {
        file: "wide.pt".into(),
        token: "<wide>".into(),
        text_encoder: Some(TokenVectors { tensor: "emb_params".into(), vectors }),
        text_encoder_2: None,
    };
    let error = pipeline.add_textual_inversions(&[wide]).unwrap_err().to_string();
    assert!(error.contains("wide.pt") && error.contains("768") && error.contains("16"), "{error}");
    assert!(clip(&pipeline).tokenizer.loaded_tokens().is_empty());
    let tokens = pipeline.load_textual_inversion(file("several.safetensors"), None).unwrap();
    assert_eq!(tokens, ["<s0>", "<s1>"]);
    let error = pipeline.load_textual_inversion(file("several.safetensors"), None).unwrap_err().to_string();
    assert!(error.contains("several.safetensors") && error.contains("\"<s0>\""), "{error}");
    assert_eq!(
        values(&clip(&pipeline).text_encoder.forward(&ids(&pipeline)).unwrap().pooler_output).len(),
        16
    );
}

fn clip(pipeline: &StableDiffusionPipeline) -> &ClipEncoder {
    let TextEncoders::Clip(clip) = &pipeline.text_encoders else { unreachable!() };
    clip
}

fn ids(pipeline: &StableDiffusionPipeline) -> Tensor {
    let ids = clip(pipeline).tokenizer.encode("<s1> <s0>").unwrap().ids;
    Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap()
}
