//! Ten steps of InstructPix2Pix, beside the reference's script.

use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::StableDiffusionPipeline;
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_training::recipes::{
    Denoising, DenoisingOptions, Example, InstructPix2PixDenoising, InstructPix2PixOptions,
    trainable_edit_unet,
};
use serde_json::{Map, Value};

use crate::ten_steps::Reference;

const PIPELINES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity");

/// The tiny model with the UNet of this folder, if it is not its own.
fn model(unet: Option<&str>) -> (tempfile::TempDir, Repository) {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| {
        std::fs::create_dir_all(folder.path().join(to)).unwrap();
        for entry in std::fs::read_dir(format!("{PIPELINES}/{from}")).unwrap() {
            let entry = entry.unwrap();
            if entry.path().is_file() {
                std::fs::copy(entry.path(), folder.path().join(to).join(entry.file_name())).unwrap();
            }
        }
    };
    for part in ["", "vae", "text_encoder", "tokenizer", "scheduler"] {
        copy(&format!("text_to_image/sd1/{part}"), part);
    }
    copy(unet.unwrap_or("text_to_image/sd1/unet"), "unet");
    let repository = Repository::folder(folder.path()).unwrap();
    (folder, repository)
}

fn load(repository: &Repository) -> StableDiffusionPipeline {
    StableDiffusionPipeline::load(repository, &LoadOptions::default()).unwrap()
}

#[test]
fn losses_and_weights_are_those_of_the_reference() {
    let reference = Reference::open("instruct_pix2pix");
    for (name, case) in reference.cases() {
        let (_folder, repository) = model(case["unet"].as_str());
        let mut models = load(&repository);
        if let Some(prediction_type) = case["prediction_type"].as_str() {
            let change = Map::from_iter([("prediction_type".to_string(), prediction_type.into())]);
            models.set_scheduler("DDPMScheduler", &change).unwrap();
        }
        let (whole, config) = trainable_edit_unet(&repository, &LoadOptions::default()).unwrap();
        assert_eq!(config["in_channels"], 8);
        models.unet = whole.model;
        let options = |seen: usize| {
            let options = InstructPix2PixOptions {
                denoising: DenoisingOptions::default(),
                conditioning_dropout_prob: case["dropout"].as_f64(),
                seed: 42,
                ..Default::default()
            };
            InstructPix2PixDenoising::new(&models, options, seen).unwrap()
        };
        let denoising = options(0);
        let examples = |batch: usize| -> Vec<Example> {
            let example = |(index, caption): (usize, String)| Example {
                pixel_values: reference.fixture.get("edited").get(index).unwrap(),
                caption,
                original_size: (32, 32),
                crop_top_left: (0, 0),
                key: Some(index as u64),
                others: vec![reference.fixture.get("originals").get(index).unwrap()],
                area: None,
            };
            reference.batch(batch).into_iter().map(example).collect()
        };
        reference.check(name, whole.parameters, 1e-3, |batch, generator| {
            denoising.loss(&examples(batch), generator)
        });
        // A run that goes on leaves out what one that never stopped does.
        let whole_run = options(0);
        for batch in 0..7 {
            let resumed = options(batch * reference.batch(0).len());
            let [one, other] = [&whole_run, &resumed].map(|denoising| {
                let loss = denoising.loss(&examples(batch), &mut TorchGenerator::new(batch as u64)).unwrap();
                loss.to_scalar::<f32>().unwrap()
            });
            assert_eq!(one, other, "{name}, batch {batch}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (_folder, painting) = model(None);
    let models = load(&painting);
    let new = |models, share| {
        let conditioning_dropout_prob = Some(share);
        let options = InstructPix2PixOptions { conditioning_dropout_prob, ..Default::default() };
        InstructPix2PixDenoising::new(models, options, 0).err().unwrap().to_string()
    };
    assert_eq!(new(&models, 0.1), "in_channels of the UNet is 4; expected 8");
    let (_folder, editing) = model(Some("instruct_pix2pix/sd1_unet"));
    let models = load(&editing);
    assert_eq!(new(&models, 0.5), "conditioning_dropout_prob is 0.5; expected 0 to a third");
    let error = Denoising::new(&models, DenoisingOptions::default()).err().unwrap().to_string();
    assert_eq!(error, "in_channels of the UNet is 8; expected 4, to paint, or 9, to paint into pictures");
    let (_folder, inpainting) = model(Some("inpainting/sd1_unet"));
    let error = trainable_edit_unet(&inpainting, &LoadOptions::default()).unwrap_err().to_string();
    assert_eq!(error, "in_channels of the UNet is 9; expected 4, to learn to edit, or 8");
    let config: Value = painting.read_json("unet/config.json").unwrap();
    assert_eq!(config["in_channels"], 4);
}
