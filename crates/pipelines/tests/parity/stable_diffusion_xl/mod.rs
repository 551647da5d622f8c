//! Stable Diffusion XL with tiny random models: for each scheduler and each argument that changes what is painted.

use std::path::Path;

use candle_core::{DType, Tensor, TensorId};
use candle_diffusers_loaders::{LoadOptions, Repository, TextualInversion};
use candle_diffusers_models::layers::Layers;
use candle_diffusers_pipelines::{
    ImageToImage, InitImage, MicroConditions, PooledPromptEmbeds, PromptEmbeds, Replacements, Schedule,
    SharedParts, StableDiffusionPipeline, TextEncoders, TextToImage, check_refiner,
};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::{Fixture, relative_difference, values};
use image::RgbImage;
use serde_json::{Value, json};

use crate::painted::{
    cases, decoded, go_on, numbers, out_of_bounds, pictures, prompts, schedule, set_scheduler, strings,
    with_noise,
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/stable_diffusion_xl");

fn fixture() -> Fixture {
    Fixture::open(format!("{FOLDER}/stable_diffusion_xl.safetensors"))
}

pub(crate) fn load(model: &str) -> StableDiffusionPipeline {
    let repository = Repository::folder(format!("{FOLDER}/{model}")).unwrap();
    StableDiffusionPipeline::load(&repository, &LoadOptions::default()).unwrap()
}

/// A copy of a model's folder in which these fields of JSON files are others: `("vae/config.json", {"force_upcast": false})`.
fn changed_copy(model: &str, changes: &[(&str, &Value)]) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(&Path::new(FOLDER).join(model), copy.path());
    for (file, fields) in changes {
        let path = copy.path().join(file);
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for (field, value) in fields.as_object().into_iter().flatten() {
            json[field] = value.clone();
        }
        std::fs::write(path, json.to_string()).unwrap();
    }
    copy
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let target = to.join(entry.file_name().unwrap());
        if entry.is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_folder(&entry, &target);
        } else {
            std::fs::copy(entry, target).unwrap();
        }
    }
}

/// The case's model with the case's scheduler.
fn pipeline(case: &Value, model: &str, shared: SharedParts) -> StableDiffusionPipeline {
    let folder =
        changed_copy(model, &[("model_index.json", &case["index"]), ("vae/config.json", &case["vae"])]);
    let repository = Repository::folder(folder.path()).unwrap();
    let replacements = Replacements { shared, ..Default::default() };
    let mut pipeline =
        StableDiffusionPipeline::load_with(&repository, &LoadOptions::default(), replacements).unwrap();
    set_scheduler(&mut pipeline, case);
    if case["lora"].as_bool().is_some() {
        pipeline.load_lora_weights(format!("{FOLDER}/lora.safetensors"), "lora").unwrap();
    }
    if case["embedding"].as_bool().is_some() {
        pipeline.load_textual_inversion(format!("{FOLDER}/embedding.safetensors"), Some("<cat>")).unwrap();
    }
    pipeline
}

fn micro_conditions(case: &Value) -> MicroConditions {
    let pair = |key: &str| {
        let values = numbers(&case["conditions"], key)?;
        Some((values[0] as usize, values[1] as usize))
    };
    let default = MicroConditions::default();
    MicroConditions {
        original_size: pair("original_size"),
        crops_coords_top_left: pair("crops_coords_top_left").unwrap_or_default(),
        target_size: pair("target_size"),
        negative_original_size: pair("negative_original_size"),
        negative_crops_coords_top_left: pair("negative_crops_coords_top_left").unwrap_or_default(),
        negative_target_size: pair("negative_target_size"),
        aesthetic_score: case["aesthetic_score"].as_f64().unwrap_or(default.aesthetic_score),
        negative_aesthetic_score: case["negative_aesthetic_score"]
            .as_f64()
            .unwrap_or(default.negative_aesthetic_score),
    }
}

fn request(name: &str, case: &Value, fixture: &Fixture) -> TextToImage {
    let given = |key: &str| fixture.get(&format!("{name}.{key}")).clone();
    let prompts = if case["prompt_embeds"].is_null() { prompts(case) } else { strings(case, "prompts") };
    let side = |key: &str| case["default_size"].is_null().then(|| case[key].as_u64().unwrap_or(32) as usize);
    TextToImage {
        prompts,
        negative_prompts: strings(case, "negative_prompt"),
        prompts_2: strings(case, "prompt_2"),
        negative_prompts_2: strings(case, "negative_prompt_2"),
        prompt_embeds: case["prompt_embeds"].as_bool().map(|_| PromptEmbeds {
            prompt: given("prompt_embeds"),
            negative: Some(given("negative_prompt_embeds")),
            pooled: Some(PooledPromptEmbeds {
                prompt: given("pooled_prompt_embeds"),
                negative: Some(given("negative_pooled_prompt_embeds")),
            }),
        }),
        num_images_per_prompt: case["num_images_per_prompt"].as_u64().unwrap_or(1) as usize,
        schedule: schedule(case, 4),
        guidance_scale: case["guidance_scale"].as_f64(),
        guidance_rescale: case["guidance_rescale"].as_f64().unwrap_or(0.0),
        eta: case["eta"].as_f64().unwrap_or(0.0),
        clip_skip: case["clip_skip"].as_u64().map(|skip| skip as usize),
        width: side("width"),
        height: side("height"),
        latents: case["latents"].as_bool().map(|_| given("start")),
        micro_conditions: micro_conditions(case),
        ..Default::default()
    }
}

/// Begins and, where the case has a split, refines a case: the pipeline that has taken the last step, and its latents.
fn paint(name: &str, case: &Value, fixture: &Fixture) -> (StableDiffusionPipeline, Tensor) {
    let mut base = pipeline(case, case["model"].as_str().unwrap_or("base"), SharedParts::default());
    let request = request(name, case, fixture);
    with_noise(case, |noise| {
        let split = case["split"].as_f64();
        let begun = TextToImage { denoising_end: split, ..request.clone() };
        let latents = match case["strength"].as_f64() {
            Some(strength) => {
                let text = TextToImage { width: None, height: None, ..begun };
                let image = InitImage::Pictures(pictures(fixture.get(&format!("{name}.image"))));
                let request = ImageToImage { text, image, strength, denoising_start: None };
                base.image_to_image_latents(&request, noise, &mut go_on).unwrap()
            }
            None => base.generate_latents(&begun, noise, &mut go_on).unwrap(),
        };
        let Some(_) = split else { return (base, latents) };
        let mut refiner = pipeline(case, "refiner", base.shared_parts());
        let text = TextToImage { prompts_2: vec![], width: None, height: None, ..request };
        let image = InitImage::Latents(latents);
        let request = ImageToImage { text, image, strength: 0.3, denoising_start: split };
        let latents = refiner.image_to_image_latents(&request, noise, &mut go_on).unwrap();
        (refiner, latents)
    })
}

#[track_caller]
fn check(is_asked_for: impl Fn(&Value) -> bool) {
    let fixture = fixture();
    let mut wrong = Vec::new();
    for (name, case) in cases(FOLDER).iter().filter(|(_, case)| is_asked_for(case)) {
        let (pipeline, latents) = paint(name, case, &fixture);
        wrong.extend(out_of_bounds(name, Some(&latents), &decoded(&pipeline, &latents), &fixture));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn pictures_equal_the_reference() {
    check(|case| case["image"].is_null() && case["split"].is_null());
}

#[test]
fn pictures_from_pictures_equal_the_reference() {
    check(|case| !case["image"].is_null() && case["split"].is_null());
}

#[test]
fn refined_pictures_equal_the_reference() {
    check(|case| !case["split"].is_null());
}

#[test]
fn a_picture_does_not_depend_on_its_batch() {
    let mut pipeline = load("base");
    let request = |prompts: &[&str]| TextToImage {
        prompts: prompts.iter().map(|prompt| prompt.to_string()).collect(),
        schedule: Schedule::Steps(3),
        micro_conditions: MicroConditions {
            negative_original_size: Some((16, 16)),
            negative_target_size: Some((512, 512)),
            ..Default::default()
        },
        ..Default::default()
    };
    let prompts = ["a red circle", "a blue star", "a green square"];
    let mut paint = |prompts: &[&str], seed| {
        let mut noise = candle_diffusers_pipelines::seeded_generators(seed, prompts.len());
        pipeline.generate_latents(&request(prompts), &mut noise, &mut go_on).unwrap()
    };
    let together = paint(&prompts, 40);
    for (i, prompt) in prompts.iter().enumerate() {
        let alone = paint(&[prompt], 40 + i as u64);
        assert_eq!(relative_difference(&together.narrow(0, i, 1).unwrap(), &alone), 0.0, "picture {i}");
    }
}

#[test]
fn requests_that_cannot_be_met_name_the_argument() {
    let mut base = load("base");
    let good = || TextToImage {
        prompts: vec!["a red circle".into(), "a star".into()],
        schedule: Schedule::Steps(2),
        ..Default::default()
    };
    let embeds = |pooled| {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &candle_core::Device::Cpu).unwrap();
        let pooled =
            if pooled { Some(PooledPromptEmbeds { prompt: zeros(&[1, 10]), negative: None }) } else { None };
        let prompt_embeds =
            Some(PromptEmbeds { prompt: zeros(&[1, 24, 20]), negative: Some(zeros(&[1, 24, 20])), pooled });
        TextToImage { prompts: vec![], prompt_embeds, ..good() }
    };
    let three = vec!["a".to_string(); 3];
    let cases = [
        ("prompts_2: are 3", TextToImage { prompts_2: three.clone(), ..good() }),
        ("negative_prompts_2: are 3", TextToImage { negative_prompts_2: three, ..good() }),
        ("clip_skip: is 3", TextToImage { clip_skip: Some(3), ..good() }),
        ("denoising_end: is 1, expected", TextToImage { denoising_end: Some(1.0), ..good() }),
        ("denoising_end: is NaN, expected", TextToImage { denoising_end: Some(f64::NAN), ..good() }),
        ("denoising_end: is 0.1, which of 2 steps", TextToImage { denoising_end: Some(0.1), ..good() }),
        ("pooled_prompt_embeds: are missing: S", embeds(false)),
        ("negative_pooled_prompt_embeds: are missing, b", embeds(true)),
        ("prompt_embeds: are given together", TextToImage { prompts_2: vec!["a".into()], ..embeds(true) }),
        (
            "aesthetic_score: is NaN",
            TextToImage {
                micro_conditions: MicroConditions { aesthetic_score: f64::NAN, ..Default::default() },
                ..good()
            },
        ),
    ];
    for (expected, request) in cases {
        let problem = base.generate_latents(&request, &mut TorchGenerator::new(0), &mut go_on).unwrap_err();
        assert!(problem.to_string().starts_with(expected), "{problem}");
    }
    let refuse = |model: &mut StableDiffusionPipeline, request: TextToImage, expected: &str| {
        let problem = model.generate_latents(&request, &mut TorchGenerator::new(0), &mut go_on).unwrap_err();
        assert!(problem.to_string().starts_with(expected), "{problem}");
    };
    refuse(&mut load("refiner"), good(), "image: is missing: this model is a refiner");
    let mut sd1 = crate::text_to_image::load("sd1");
    let second = vec!["a".to_string()];
    refuse(
        &mut sd1,
        TextToImage { prompts_2: second.clone(), ..good() },
        "prompts_2: are given, but the model has one",
    );
    refuse(
        &mut sd1,
        TextToImage { negative_prompts_2: second, ..good() },
        "negative_prompts_2: are given, but the model has one",
    );
    let micro_conditions = MicroConditions { target_size: Some((8, 8)), ..Default::default() };
    refuse(&mut sd1, TextToImage { micro_conditions, ..good() }, "micro_conditions: are given");
}

#[test]
fn folders_whose_parts_do_not_belong_together_are_refused() {
    let cases = [
        (
            "base",
            "model_index.json",
            json!({"requires_aesthetics_score": true}),
            "projection_class_embeddings_input_dim is 46, expected 40",
        ),
        (
            "refiner",
            "model_index.json",
            json!({"requires_aesthetics_score": false}),
            "projection_class_embeddings_input_dim is 40, expected 46",
        ),
        (
            "base",
            "model_index.json",
            json!({"requires_aesthetics_score": "no"}),
            "requires_aesthetics_score is \"no\", expected true or false",
        ),
        (
            "base",
            "model_index.json",
            json!({"text_encoder": [null, null]}),
            "cross_attention_dim is 20, but the text encoders make 12 values",
        ),
        (
            "base",
            "model_index.json",
            json!({"_class_name": "StableDiffusionPipeline"}),
            "cross_attention_dim is 20, but the text encoders make 8 values",
        ),
        ("base", "unet/config.json", json!({"addition_embed_type": null}), "addition_embed_type is missing"),
        (
            "base",
            "tokenizer_2/tokenizer_config.json",
            json!({"model_max_length": 20, "max_length": 20}),
            "tokenizer_2: reads 20 tokens and the first tokenizer 24",
        ),
        ("base", "model_index.json", json!({"tokenizer_2": null}), "tokenizer_2"),
    ];
    for (model, file, change, expected) in cases {
        let folder = changed_copy(model, &[(file, &change)]);
        let repository = Repository::folder(folder.path()).unwrap();
        let problem =
            StableDiffusionPipeline::load(&repository, &LoadOptions::default()).err().unwrap().to_string();
        assert!(problem.contains(expected) && !problem.contains('\n'), "{problem}");
    }
}

#[test]
fn what_cannot_be_refined_is_told_before_the_work() {
    let mut refiner = load("refiner");
    let latents = Tensor::zeros((1, 4, 8, 8), DType::F32, &candle_core::Device::Cpu).unwrap();
    let text = TextToImage { prompts: vec!["a".into()], schedule: Schedule::Steps(5), ..Default::default() };
    let request = ImageToImage {
        text: text.clone(),
        image: InitImage::Latents(latents),
        strength: 0.3,
        denoising_start: Some(0.8),
    };
    let problems = [
        (
            ImageToImage { denoising_start: Some(0.0), ..request.clone() },
            "denoising_start: is 0, expected more",
        ),
        (
            ImageToImage { denoising_start: Some(1.0), ..request.clone() },
            "denoising_start: is 1, expected more",
        ),
        (
            ImageToImage { denoising_start: Some(f64::NAN), ..request.clone() },
            "denoising_start: is NaN, expected",
        ),
        (
            ImageToImage { denoising_start: Some(0.9999), ..request.clone() },
            "denoising_start: is 0.9999, which of 5 steps leaves none",
        ),
        (
            ImageToImage {
                text: TextToImage { denoising_end: Some(0.8), ..text.clone() },
                ..request.clone()
            },
            "denoising_start: is 0.8, expected less than denoising_end, which is 0.8",
        ),
        (
            ImageToImage { text: TextToImage { prompts_2: vec!["b".into()], ..text }, ..request },
            "prompts_2: are given, but the model has one text encoder",
        ),
    ];
    for (request, expected) in problems {
        let problem = refiner
            .image_to_image_latents(&request, &mut TorchGenerator::new(0), &mut go_on)
            .unwrap_err()
            .to_string();
        assert!(problem.starts_with(expected), "{problem}");
    }
}

#[test]
fn models_that_do_not_belong_together_are_told_by_their_small_files() {
    let open = |path: &Path| Repository::folder(path).unwrap();
    let [base, refiner] = ["base", "refiner"].map(|name| open(&Path::new(FOLDER).join(name)));
    check_refiner(&base, &refiner).unwrap();
    check_refiner(&base, &base).unwrap();
    let sd1 = open(&Path::new(FOLDER).with_file_name("text_to_image").join("sd1"));
    for (base, refiner) in [(&sd1, &refiner), (&base, &sd1), (&sd1, &sd1)] {
        let problem = check_refiner(base, refiner).unwrap_err().to_string();
        assert!(problem.contains("only two models of Stable Diffusion XL"), "{problem}");
    }
    let wider = changed_copy("refiner", &[("vae/config.json", &json!({"latent_channels": 8}))]);
    let problem = check_refiner(&base, &open(wider.path())).unwrap_err().to_string();
    assert!(problem.contains("has latents of (8, 4)") && problem.contains("of (4, 4)"), "{problem}");
}

#[test]
fn what_base_and_refiner_have_in_common_is_held_once() {
    let base = load("base");
    let open = |path: &Path| Repository::folder(path).unwrap();
    let own = open(&Path::new(FOLDER).join("base"));
    let shared_with = |other: &Repository| {
        let shared = base.shared_parts().that_are_the_same(&own, other, None).unwrap();
        (shared.text_encoder_2.is_some(), shared.vae.is_some())
    };
    assert_eq!(shared_with(&open(&Path::new(FOLDER).join("refiner"))), (true, true));
    let changes: [(&str, Value, (bool, bool)); 4] = [
        ("vae/config.json", json!({"scaling_factor": 0.5}), (true, false)),
        ("vae/config.json", json!({"_name_or_path": "elsewhere"}), (true, true)),
        ("text_encoder_2/config.json", json!({"hidden_act": "quick_gelu"}), (false, true)),
        ("tokenizer_2/tokenizer_config.json", json!({"pad_token": "<|endoftext|>"}), (false, true)),
    ];
    for (file, change, expected) in changes {
        let other = changed_copy("refiner", &[(file, &change)]);
        assert_eq!(shared_with(&open(other.path())), expected, "{file}: {change}");
    }
    let other = changed_copy("refiner", &[]);
    let weights = other.path().join("vae/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(weights, bytes).unwrap();
    assert_eq!(shared_with(&open(other.path())), (true, false));

    let refiner = StableDiffusionPipeline::load_with(
        &open(&Path::new(FOLDER).join("refiner")),
        &LoadOptions::default(),
        Replacements { shared: base.shared_parts(), ..Default::default() },
    )
    .unwrap();
    let of_vae = |pipeline: &StableDiffusionPipeline| biases(&pipeline.vae);
    let of_text_encoder = |pipeline: &StableDiffusionPipeline| match &pipeline.text_encoders {
        TextEncoders::Xl(encoders) => biases(&encoders.second.text_encoder),
        TextEncoders::Clip(_) => vec![],
    };
    assert!(!of_vae(&base).is_empty() && of_vae(&base) == of_vae(&refiner));
    assert!(!of_text_encoder(&base).is_empty() && of_text_encoder(&base) == of_text_encoder(&refiner));
    assert!(of_vae(&base) != of_vae(&load("refiner")));
}

/// The tensors of the layers' biases, which packing leaves as they are.
pub(crate) fn biases(model: &dyn Layers) -> Vec<TensorId> {
    model.layers().into_iter().filter_map(|(_, layer)| Some(layer.bias()?.id())).collect()
}

#[test]
fn embeddings_go_to_both_text_encoders_or_to_none() {
    let mut base = load("base");
    let request = TextToImage {
        prompts: vec!["a <cat> <dog>".into()],
        schedule: Schedule::Steps(2),
        ..Default::default()
    };
    let embeds =
        |pipeline: &StableDiffusionPipeline| values(&pipeline.encode_prompt(&request).unwrap().prompt);
    let without = embeds(&base);
    let mut embedding =
        TextualInversion::read(format!("{FOLDER}/embedding.safetensors"), Some("<cat>")).unwrap();
    let first_only = TextualInversion { text_encoder_2: None, token: "<dog>".into(), ..embedding[0].clone() };
    let wide = TextualInversion {
        text_encoder_2: embedding[0].text_encoder.clone(),
        token: "<dog>".into(),
        ..embedding[0].clone()
    };
    for (bad, expected) in [(first_only, "has no vectors for the text_encoder_2"), (wide, "have the width 8")]
    {
        embedding.push(bad);
        let problem = base.add_textual_inversions(&embedding).unwrap_err().to_string();
        assert!(problem.contains(expected), "{problem}");
        assert_eq!(embeds(&base), without, "{problem}");
        embedding.pop();
    }
    base.add_textual_inversions(&embedding).unwrap();
    assert_ne!(embeds(&base), without);
    base.unload_textual_inversion(&["<cat>"]).unwrap();
    assert_eq!(embeds(&base), without);
    let mut refiner = load("refiner");
    refiner.add_textual_inversions(&embedding).unwrap();
    refiner.unload_textual_inversion(&[""; 0]).unwrap();
}

#[test]
fn half_precision_decodes_as_the_config_asks() {
    let repository = Repository::folder(format!("{FOLDER}/base")).unwrap();
    let text = TextToImage {
        prompts: vec!["a red circle".into()],
        schedule: Schedule::Steps(2),
        ..Default::default()
    };
    let image = InitImage::Pictures(vec![RgbImage::from_pixel(32, 32, image::Rgb([200, 30, 30]))]);
    let request = ImageToImage { text: text.clone(), image, strength: 0.5, denoising_start: None };
    for (dtype, decoded_in) in [(DType::F16, DType::F32), (DType::BF16, DType::BF16)] {
        let options = LoadOptions { dtype, ..Default::default() };
        let mut pipeline = StableDiffusionPipeline::load(&repository, &options).unwrap();
        assert_eq!(pipeline.vae.dtype(), decoded_in);
        let mut noise = TorchGenerator::new(0);
        let painted = pipeline.generate_latents(&text, &mut noise, &mut go_on).unwrap();
        let repainted = pipeline.image_to_image_latents(&request, &mut noise, &mut go_on).unwrap();
        for latents in [painted, repainted] {
            assert_eq!(latents.dtype(), dtype);
            let pictures = pipeline.decode_latents(&latents).unwrap();
            assert_eq!(pictures.dtype(), decoded_in);
            assert!(values(&pictures).into_iter().all(f64::is_finite));
        }
    }
}
