//! Stable Diffusion XL with tiny random models: for each scheduler and each argument that changes what is painted.

use std::path::Path;

use candle_core::Tensor;
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::{
    MicroConditions, PooledPromptEmbeds, PromptEmbeds, Schedule, StableDiffusionPipeline, TextToImage,
    denormalize, to_pictures,
};
use candle_diffusers_schedulers::{NoiseSource, TorchGenerator};
use candle_diffusers_test_support::{Fixture, relative_difference, values};
use serde_json::{Value, json};

use crate::text_to_image::{go_on, numbers, strings};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/stable_diffusion_xl");

fn fixture() -> Fixture {
    Fixture::open(format!("{FOLDER}/stable_diffusion_xl.safetensors"))
}

fn cases() -> serde_json::Map<String, Value> {
    serde_json::from_str(&std::fs::read_to_string(format!("{FOLDER}/cases.json")).unwrap()).unwrap()
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
fn pipeline(case: &Value, model: &str) -> StableDiffusionPipeline {
    let folder =
        changed_copy(model, &[("model_index.json", &case["index"]), ("vae/config.json", &case["vae"])]);
    let repository = Repository::folder(folder.path()).unwrap();
    let mut pipeline = StableDiffusionPipeline::load(&repository, &LoadOptions::default()).unwrap();
    if let Some(class_name) = case["scheduler"].as_str() {
        let overrides = case["overrides"].as_object().cloned().unwrap_or_default();
        pipeline.set_scheduler(class_name, &overrides).unwrap();
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
    let prompts = match (case["prompt_embeds"].is_null(), strings(case, "prompts")) {
        (true, prompts) if prompts.is_empty() => vec!["a large red circle on a blue background".to_string()],
        (_, prompts) => prompts,
    };
    let schedule = match (numbers(case, "timesteps"), numbers(case, "sigmas")) {
        (Some(timesteps), _) => Schedule::Timesteps(timesteps),
        (_, Some(sigmas)) => Schedule::Sigmas(sigmas),
        _ => Schedule::Steps(case["steps"].as_u64().unwrap_or(4) as usize),
    };
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
        schedule,
        guidance_scale: case["guidance_scale"].as_f64(),
        guidance_rescale: case["guidance_rescale"].as_f64().unwrap_or(0.0),
        eta: case["eta"].as_f64().unwrap_or(0.0),
        clip_skip: case["clip_skip"].as_u64().map(|skip| skip as usize),
        width: side("width"),
        height: side("height"),
        latents: case["latents"].as_bool().map(|_| given("start")),
        micro_conditions: micro_conditions(case),
        denoising_end: None,
    }
}

/// Runs `paint` with the case's generators.
fn with_noise<T>(case: &Value, paint: impl FnOnce(&mut dyn NoiseSource) -> T) -> T {
    let seeds = numbers(case, "seeds").unwrap_or(vec![0.0]);
    let mut generators: Vec<TorchGenerator> =
        seeds.iter().map(|seed| TorchGenerator::new(*seed as u64)).collect();
    match &mut generators[..] {
        [one] => paint(one),
        _ => paint(&mut generators),
    }
}

/// What is wrong with a case's latents and with the pictures that `pipeline` makes of them: nothing within the bounds.
fn differences(
    name: &str,
    pipeline: &StableDiffusionPipeline,
    latents: &Tensor,
    fixture: &Fixture,
) -> Option<String> {
    let decoded = denormalize(&pipeline.decode_latents(latents).unwrap()).unwrap();
    let pixels: Vec<u8> =
        to_pictures(&decoded).unwrap().iter().flat_map(|picture| picture.as_raw().clone()).collect();
    let expected = values(fixture.get(&format!("{name}.pictures")));
    assert_eq!(pixels.len(), expected.len(), "{name}");
    let pixels = pixels.iter().zip(&expected).map(|(pixel, expected)| (f64::from(*pixel) - expected).abs());
    let pixels = pixels.fold(0.0, f64::max);
    let latents = relative_difference(latents, fixture.get(&format!("{name}.latents")));
    let found = format!("{name}: latents {latents:.1e}, pixels {pixels} of 255");
    println!("{found}");
    (pixels > 2.0 || latents > 1e-4).then_some(found)
}

#[test]
fn pictures_equal_the_reference() {
    let fixture = fixture();
    let mut wrong = Vec::new();
    for (name, case) in cases().iter().filter(|(_, case)| case["image"].is_null() && case["split"].is_null())
    {
        let mut pipeline = pipeline(case, "base");
        let request = request(name, case, &fixture);
        let latents =
            with_noise(case, |noise| pipeline.generate_latents(&request, noise, &mut go_on).unwrap());
        wrong.extend(differences(name, &pipeline, &latents, &fixture));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
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
        let zeros = |shape: &[usize]| {
            Tensor::zeros(shape, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap()
        };
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
