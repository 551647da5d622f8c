//! Whole pipelines with tiny random models, for each scheduler and each argument that changes what is painted.

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Tensor};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::{
    PromptEmbeds, Schedule, StableDiffusionPipeline, StepEnd, TextToImage, seeded_generators,
};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::{Fixture, relative_difference, values};
use serde_json::{Map, Value};

use crate::painted::{
    cases, decoded, go_on, out_of_bounds, prompts, schedule, set_scheduler, strings, with_noise,
};

pub(crate) const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/text_to_image");

pub(crate) fn load(model: &str) -> StableDiffusionPipeline {
    let repository = Repository::folder(format!("{FOLDER}/{model}")).unwrap();
    StableDiffusionPipeline::load(&repository, &LoadOptions::default()).unwrap()
}

fn request(name: &str, case: &Value, fixture: &Fixture) -> TextToImage {
    let prompts = if case["prompt_embeds"].is_null() { prompts(case) } else { strings(case, "prompts") };
    let embeds = |key: &str| fixture.get(&format!("{name}.{key}")).clone();
    let size = |key: &str| Some(case[key].as_u64().unwrap_or(32) as usize);
    let number = |key: &str, default| case[key].as_f64().unwrap_or(default);
    TextToImage {
        prompts,
        negative_prompts: strings(case, "negative_prompts"),
        prompt_embeds: case["prompt_embeds"].as_bool().map(|_| PromptEmbeds {
            prompt: embeds("prompt_embeds"),
            negative: Some(embeds("negative_prompt_embeds")),
            pooled: None,
        }),
        num_images_per_prompt: case["num_images_per_prompt"].as_u64().unwrap_or(1) as usize,
        schedule: schedule(case, 5),
        guidance_scale: Some(number("guidance_scale", 4.0)),
        guidance_rescale: number("guidance_rescale", 0.0),
        eta: number("eta", 0.0),
        clip_skip: case["clip_skip"].as_u64().map(|skip| skip as usize),
        width: size("width"),
        height: size("height"),
        latents: case["latents"].as_bool().map(|_| embeds("start")),
        ..Default::default()
    }
}

#[test]
fn pictures_equal_the_reference() {
    let fixture = Fixture::open(format!("{FOLDER}/text_to_image.safetensors"));
    let mut wrong = Vec::new();
    for (name, case) in &cases(FOLDER) {
        let mut pipeline = load(case["model"].as_str().unwrap());
        set_scheduler(&mut pipeline, case);
        if let Some(class_name) = case["then"].as_str() {
            pipeline.set_scheduler(class_name, &Map::new()).unwrap();
        }
        let stop_after = case["stop_after"].as_u64().map(|steps| steps as usize);
        let mut on_step_end = |step: StepEnd| {
            let stop = stop_after == Some(step.index + 1);
            Ok(if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        let request = request(name, case, &fixture);
        let latents = with_noise(case, |noise| pipeline.generate_latents(&request, noise, &mut on_step_end));
        let latents = latents.unwrap();
        wrong.extend(out_of_bounds(name, Some(&latents), &decoded(&pipeline, &latents), &fixture));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_picture_does_not_depend_on_its_batch() {
    let mut pipeline = load("sd1");
    pipeline.set_scheduler("EulerAncestralDiscreteScheduler", &Map::new()).unwrap();
    let request = |prompts: &[&str]| TextToImage {
        prompts: prompts.iter().map(|prompt| prompt.to_string()).collect(),
        schedule: Schedule::Steps(3),
        ..Default::default()
    };
    let prompts = ["a red circle", "a blue star", "a green square"];
    let together =
        pipeline.generate_latents(&request(&prompts), &mut seeded_generators(40, 3), &mut go_on).unwrap();
    for (i, prompt) in prompts.iter().enumerate() {
        let mut generators = seeded_generators(40 + i as u64, 1);
        let alone = pipeline.generate_latents(&request(&[prompt]), &mut generators, &mut go_on).unwrap();
        assert_eq!(relative_difference(&together.narrow(0, i, 1).unwrap(), &alone), 0.0, "picture {i}");
    }
}

#[test]
fn a_callback_may_change_what_follows_and_fail() {
    let mut pipeline = load("sd1");
    let request =
        TextToImage { prompts: vec!["a".into()], schedule: Schedule::Steps(3), ..Default::default() };
    let mut zero = |step: StepEnd| {
        *step.latents = step.latents.zeros_like()?;
        Ok(ControlFlow::Continue(()))
    };
    let latents = pipeline.generate_latents(&request, &mut TorchGenerator::new(0), &mut zero).unwrap();
    assert!(values(&latents).iter().all(|value| *value == 0.0));
    let mut fail = |_: StepEnd| Err(candle_diffusers_pipelines::Error::Callback("enough".into()));
    let error = pipeline.generate_latents(&request, &mut TorchGenerator::new(0), &mut fail).unwrap_err();
    assert_eq!(error.to_string(), "enough");
}

#[test]
fn the_scheduler_is_of_the_class_that_the_index_names() {
    let folder = tempfile::tempdir().unwrap();
    for part in ["", "scheduler", "text_encoder", "tokenizer", "unet", "vae"] {
        let (from, to) = (Path::new(FOLDER).join("sd1").join(part), folder.path().join(part));
        std::fs::create_dir_all(&to).unwrap();
        for entry in
            std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
        {
            std::fs::copy(&entry, to.join(entry.file_name().unwrap())).unwrap();
        }
    }
    let config = folder.path().join("scheduler/scheduler_config.json");
    let text = std::fs::read_to_string(&config).unwrap().replace("PNDMScheduler", "DDIMScheduler");
    std::fs::write(config, text).unwrap();
    let repository = Repository::folder(folder.path()).unwrap();
    let pipeline = StableDiffusionPipeline::load(&repository, &LoadOptions::default()).unwrap();
    assert_eq!(pipeline.scheduler().class_name(), "PNDMScheduler");
}

#[test]
fn requests_that_cannot_be_met_name_the_argument() {
    let mut pipeline = load("sd1");
    let good = || TextToImage {
        prompts: vec!["a red circle".into()],
        schedule: Schedule::Steps(2),
        ..Default::default()
    };
    let latents = Tensor::zeros((2, 4, 8, 8), DType::F32, &pipeline.device).unwrap();
    let cases = [
        ("prompts", TextToImage { prompts: vec![], ..good() }),
        ("negative_prompts", TextToImage { negative_prompts: vec!["a".into(); 2], ..good() }),
        ("num_images_per_prompt", TextToImage { num_images_per_prompt: 0, ..good() }),
        ("guidance_scale", TextToImage { guidance_scale: Some(f64::NAN), ..good() }),
        ("guidance_scale", TextToImage { guidance_scale: Some(f64::INFINITY), ..good() }),
        ("guidance_rescale", TextToImage { guidance_rescale: 1.5, ..good() }),
        ("eta", TextToImage { eta: -1.0, ..good() }),
        ("width", TextToImage { width: Some(30), ..good() }),
        ("height", TextToImage { height: Some(0), ..good() }),
        ("width", TextToImage { width: Some(usize::MAX), ..good() }),
        ("GB of memory", TextToImage { width: Some(1 << 24), height: Some(1 << 24), ..good() }),
        ("GB of memory", TextToImage { num_images_per_prompt: 1 << 50, ..good() }),
        ("clip_skip", TextToImage { clip_skip: Some(4), ..good() }),
        ("latents", TextToImage { latents: Some(latents), ..good() }),
        ("steps", TextToImage { schedule: Schedule::Steps(0), ..good() }),
        ("steps", TextToImage { schedule: Schedule::Steps(1001), ..good() }),
        ("custom", TextToImage { schedule: Schedule::Sigmas(vec![1.0, 0.0]), ..good() }),
    ];
    for (named, request) in cases {
        let error = pipeline.generate_latents(&request, &mut TorchGenerator::new(0), &mut go_on).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(named), "{named}: {message}");
        assert!(!message.contains('\n'), "{message}");
    }
}
