//! Pictures painted from single files: those of the reference, and, bit for bit, those of the folders that the files convert to.

use std::path::Path;

use candle_core::{DType, Tensor};
use candle_diffusers_convert::{ConvertOptions, convert};
use candle_diffusers_loaders::{LoadOptions, PredictionType, ReadOptions, Repository};
use candle_diffusers_pipelines::{Schedule, StableDiffusionPipeline, TextToImage, seeded_generators};
use candle_diffusers_test_support::{Fixture, OriginalCheckpoint, relative_difference, values};

use crate::painted::{decoded, go_on, worst_pixel};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/single_file");
/// Lists of the tensors of small models of each family.
const LISTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../convert/tests/parity/single_file");

fn checkpoint(case: &str) -> OriginalCheckpoint {
    OriginalCheckpoint::read(format!("{FOLDER}/{case}.txt.gz"))
}

fn latents(pipeline: &mut StableDiffusionPipeline) -> Tensor {
    let request = TextToImage {
        prompts: vec!["a lighthouse at dusk, oil painting".into()],
        negative_prompts: vec!["blurry".into()],
        schedule: Schedule::Steps(4),
        guidance_scale: Some(5.0),
        width: Some(64),
        height: Some(64),
        ..Default::default()
    };
    pipeline.generate_latents(&request, &mut seeded_generators(42, 1), &mut go_on).unwrap()
}

fn from_single_file(file: &Path, read_options: &ReadOptions) -> StableDiffusionPipeline {
    StableDiffusionPipeline::from_single_file(file, read_options, &LoadOptions::default()).unwrap()
}

#[track_caller]
fn check(name: &str, case: &str, read_options: &ReadOptions) {
    let workplace = tempfile::tempdir().unwrap();
    let file = workplace.path().join("model.safetensors");
    checkpoint(case).write_safetensors(&file, DType::F32);
    let mut pipeline = from_single_file(&file, read_options);
    let latents = latents(&mut pipeline);
    let fixture = Fixture::open(format!("{FOLDER}/single_file.safetensors"));
    let difference = relative_difference(&latents, fixture.get(&format!("{name}.latents")));
    let worst = worst_pixel(&decoded(&pipeline, &latents), fixture.get(&format!("{name}.picture")));
    println!("{name}: latents {difference:.1e}, pixels {worst} of 255");
    assert!(worst <= 2.0 && difference <= 1e-4, "{name}: latents {difference:.1e}, pixels {worst} of 255");
}

#[test]
fn stable_diffusion_1_equals_the_reference() {
    check("sd1", "sd1", &ReadOptions::default());
}

#[test]
fn stable_diffusion_2_equals_the_reference() {
    check("sd2", "sd2", &ReadOptions::default());
    let epsilon = ReadOptions { prediction_type: Some(PredictionType::Epsilon), ..Default::default() };
    check("sd2_epsilon", "sd2", &epsilon);
}

#[test]
fn all_forms_of_a_file_equal_the_folder_bit_for_bit() {
    for case in ["sd1", "sd2"] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let workplace = tempfile::tempdir().unwrap();
            let [safetensors, ckpt, folder] =
                ["model.safetensors", "model.ckpt", "folder"].map(|name| workplace.path().join(name));
            checkpoint(case).write_safetensors(&safetensors, dtype);
            checkpoint(case).write_ckpt(&ckpt, dtype);
            convert(&safetensors, &folder, &ConvertOptions::default(), &|_| {}).unwrap();
            let repository = Repository::folder(&folder).unwrap();
            let mut pipeline = StableDiffusionPipeline::load(&repository, &LoadOptions::default()).unwrap();
            let expected = values(&latents(&mut pipeline));
            for file in [safetensors, ckpt] {
                let found = values(&latents(&mut from_single_file(&file, &ReadOptions::default())));
                assert!(found.iter().all(|value| value.is_finite()));
                assert!(found == expected, "{case}, {dtype:?}: {} differs from its folder", file.display());
            }
        }
    }
}

#[test]
fn stable_diffusion_xl_equals_its_folder_bit_for_bit() {
    let mut checkpoint = OriginalCheckpoint::read(format!("{LISTS}/small_sdxl.txt.gz"));
    // The lists have few tokens; the vocabulary that goes with a single file has all.
    for (name, shape) in &mut checkpoint.shapes {
        if name.ends_with("token_embedding.weight") {
            shape[0] = 49408;
        }
    }
    let workplace = tempfile::tempdir().unwrap();
    let [file, folder] = ["model.safetensors", "folder"].map(|name| workplace.path().join(name));
    checkpoint.write_safetensors(&file, DType::F16);
    convert(&file, &folder, &ConvertOptions::default(), &|_| {}).unwrap();
    let repository = Repository::folder(&folder).unwrap();
    let mut pipeline = StableDiffusionPipeline::load(&repository, &LoadOptions::default()).unwrap();
    let expected = values(&latents(&mut pipeline));
    let found = values(&latents(&mut from_single_file(&file, &ReadOptions::default())));
    assert!(found.iter().all(|value| value.is_finite()));
    assert!(found == expected);
}

#[test]
fn models_of_other_kinds_are_refused_by_name() {
    let cases = [
        ("small_vae", "is a VAE alone, not a whole model"),
        ("small_controlnet", "is a ControlNet alone, not a whole model"),
    ];
    for (case, expected) in cases {
        let workplace = tempfile::tempdir().unwrap();
        let file = workplace.path().join("model.safetensors");
        OriginalCheckpoint::read(format!("{LISTS}/{case}.txt.gz")).write_safetensors(&file, DType::F16);
        let loaded = StableDiffusionPipeline::from_single_file(
            &file,
            &ReadOptions::default(),
            &LoadOptions::default(),
        );
        let message = loaded.err().unwrap().to_string();
        assert!(message.contains(expected) && message.contains("model.safetensors"), "{message}");
    }
}
