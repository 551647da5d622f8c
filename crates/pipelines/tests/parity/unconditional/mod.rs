//! Pictures without a text, with tiny models.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{Device, Tensor};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::{
    Schedule, Unconditional, UnconditionalPipeline, UnconditionalStepEnd, seeded_generators,
};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::Fixture;
use image::RgbImage;
use serde_json::{Map, Value};

use crate::painted::{cases, numbers, with_noise, worst_pixel};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/unconditional");

fn load_folder(folder: impl AsRef<Path>) -> candle_diffusers_pipelines::Result<UnconditionalPipeline> {
    let repository = Repository::folder(folder.as_ref()).unwrap();
    UnconditionalPipeline::load(&repository, &LoadOptions::default())
}

fn load(model: &str) -> UnconditionalPipeline {
    load_folder(format!("{FOLDER}/{model}")).unwrap()
}

fn go_on(_: UnconditionalStepEnd) -> candle_diffusers_pipelines::Result<ControlFlow<()>> {
    Ok(ControlFlow::Continue(()))
}

fn request(case: &Value) -> Unconditional {
    let class_labels = numbers(case, "class_labels").map(|labels| {
        let labels: Vec<u32> = labels.into_iter().map(|label| label as u32).collect();
        Tensor::new(labels, &Device::Cpu).unwrap()
    });
    Unconditional {
        batch_size: case["batch_size"].as_u64().unwrap_or(1) as usize,
        schedule: case["steps"].as_u64().map(|steps| Schedule::Steps(steps as usize)),
        eta: case["eta"].as_f64().unwrap_or(0.0),
        use_clipped_model_output: case["use_clipped_model_output"].as_bool().unwrap_or(false),
        class_labels,
        ..Default::default()
    }
}

fn paint(pipeline: &mut UnconditionalPipeline, case: &Value) -> Vec<RgbImage> {
    with_noise(case, |noise| pipeline.generate(&request(case), noise, &mut go_on)).unwrap()
}

#[test]
fn pictures_equal_the_reference() {
    let fixture = Fixture::open(format!("{FOLDER}/unconditional.safetensors"));
    let mut wrong = Vec::new();
    for (name, case) in &cases(FOLDER) {
        let mut pipeline = load(case["model"].as_str().unwrap());
        if case["pipeline"] == "DDIMPipeline" {
            pipeline.set_scheduler("DDIMScheduler", &Map::new()).unwrap();
        }
        let worst = worst_pixel(&paint(&mut pipeline, case), fixture.get(name));
        println!("{name}: pixels {worst} of 255");
        if worst > 2.0 {
            wrong.push(format!("{name}: {worst}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_picture_is_the_same_alone_and_among_others() {
    let mut pipeline = load("ddpm");
    let mut paint = |seed, batch_size| {
        let schedule = Some(Schedule::Steps(3));
        let request = Unconditional { batch_size, schedule, ..Default::default() };
        pipeline.generate(&request, &mut seeded_generators(seed, batch_size), &mut go_on).unwrap()
    };
    let together = paint(5, 2);
    assert!(together[1] == paint(6, 1)[0]);
}

#[test]
fn folders_that_have_all_at_their_top_are_loaded() {
    let folder = tempfile::tempdir().unwrap();
    for (from, to) in [
        ("model_index.json", "model_index.json"),
        ("unet/config.json", "config.json"),
        ("unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors"),
        ("scheduler/scheduler_config.json", "scheduler_config.json"),
    ] {
        fs::copy(format!("{FOLDER}/ddpm/{from}"), folder.path().join(to)).unwrap();
    }
    let case = &cases(FOLDER)["ddpm_one_generator_each"];
    let mut at_top = load_folder(folder.path()).unwrap();
    assert!(paint(&mut at_top, case) == paint(&mut load("ddpm"), case));
}

#[test]
fn steps_and_sizes_are_the_models_own_unless_said() {
    assert_eq!(
        [load("ddpm"), load("ddim"), load("ldm")].map(|pipeline| pipeline.default_steps()),
        [1000, 50, 50]
    );
    let mut pipeline = load("ldm");
    let mut seen = Vec::new();
    let request = Unconditional { width: Some(24), height: Some(12), ..Default::default() };
    let pictures = pipeline
        .generate(&request, &mut TorchGenerator::new(0), &mut |step| {
            seen.push((step.index, step.total, step.sample.dims().to_vec()));
            Ok(if step.index == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
        .unwrap();
    assert_eq!(pictures[0].dimensions(), (24, 12));
    assert_eq!(seen, [(0, 50, vec![1, 3, 6, 12]), (1, 50, vec![1, 3, 6, 12])]);
}

#[test]
fn what_cannot_be_painted_is_told() {
    let labels = |labels: &[u32]| Some(Tensor::new(labels, &Device::Cpu).unwrap());
    let base = Unconditional { schedule: Some(Schedule::Steps(2)), ..Default::default() };
    for (model, request, expected) in [
        ("ddpm", Unconditional { batch_size: 0, ..base.clone() }, "batch_size: is 0"),
        ("ddpm", Unconditional { eta: f64::NAN, ..base.clone() }, "eta: is NaN, expected 0 or more"),
        ("ddpm", Unconditional { width: Some(15), ..base.clone() }, "width: is 15, expected a multiple of 2"),
        (
            "ldm",
            Unconditional { height: Some(18), ..base.clone() },
            "height: is 18, expected a multiple of 4",
        ),
        (
            "ddpm",
            Unconditional { width: Some(1 << 30), height: Some(1 << 30), ..base.clone() },
            "would need about",
        ),
        ("ddpm", Unconditional { class_labels: labels(&[1]), ..base.clone() }, "class_labels are given, but"),
        ("classes", base.clone(), "class_labels are missing, but"),
        ("classes", Unconditional { class_labels: labels(&[1, 2]), ..base.clone() }, "class_labels: are [2]"),
    ] {
        let error = load(model).generate(&request, &mut TorchGenerator::new(0), &mut go_on).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let out_of_table = Unconditional { class_labels: labels(&[5]), ..base };
    assert!(load("classes").generate(&out_of_table, &mut TorchGenerator::new(0), &mut go_on).is_err());
    let error = load_folder(format!("{}/sd1", crate::text_to_image::FOLDER)).err().unwrap().to_string();
    assert!(error.contains("is the index of a StableDiffusionPipeline, expected one that paints"), "{error}");
}
