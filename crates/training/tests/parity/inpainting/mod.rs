//! Ten steps of a LoRA for a model that paints into pictures, beside the reference's script; and the masks.

use candle_diffusers_loaders::{LoadOptions, Repository, load_unet};
use candle_diffusers_pipelines::StableDiffusionPipeline;
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::values;
use candle_diffusers_training::recipes::{Denoising, DenoisingOptions, Example, random_mask};
use candle_diffusers_training::{LoraConfig, TrainedLora, UNET_TARGETS};
use serde_json::Map;

use crate::ten_steps::Reference;

const PIPELINES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity");

#[test]
fn losses_and_weights_are_those_of_the_reference() {
    let reference = Reference::open("inpainting");
    let options = LoadOptions::default();
    for (name, case) in reference.cases() {
        let repository = Repository::folder(format!("{PIPELINES}/text_to_image/sd1")).unwrap();
        let mut models = StableDiffusionPipeline::load(&repository, &options).unwrap();
        let unet = Repository::folder(format!("{PIPELINES}/inpainting/sd1_unet")).unwrap();
        models.unet = load_unet(&unet, "", &options).unwrap();
        if let Some(prediction_type) = case["prediction_type"].as_str() {
            let change = Map::from_iter([("prediction_type".to_string(), prediction_type.into())]);
            models.set_scheduler("DDPMScheduler", &change).unwrap();
        }
        let config = LoraConfig::new(4, &UNET_TARGETS);
        let lora = TrainedLora::attach(&models.unet, "unet", &config, &mut TorchGenerator::new(0)).unwrap();
        reference.begin(name, &lora.parameters());
        let prior_loss_weight = case["prior"].as_f64();
        let denoising =
            Denoising::new(&models, DenoisingOptions { prior_loss_weight, ..Default::default() }).unwrap();
        reference.check(name, lora.parameters(), 5e-3, |batch, generator| {
            let example = |(index, caption): (usize, String)| Example {
                pixel_values: reference.fixture.get("pictures").get(index).unwrap(),
                caption,
                original_size: (32, 32),
                crop_top_left: (0, 0),
                key: Some(index as u64),
                others: Vec::new(),
                area: None,
            };
            let examples: Vec<Example> = reference.batch(batch).into_iter().map(example).collect();
            denoising.loss(&examples, generator)
        });
    }
}

#[test]
fn masks_are_those_that_the_script_draws() {
    let reference = Reference::open("inpainting");
    for size in reference.settings["masks"].as_array().unwrap() {
        let [width, height] = [0, 1].map(|side| size[side].as_u64().unwrap() as usize);
        let expected = reference.fixture.get(&format!("masks/{width}x{height}"));
        let mut generator = TorchGenerator::new(5);
        for index in 0..expected.dims()[0] {
            let mask = random_mask(width, height, &mut generator).unwrap();
            let expected = expected.get(index).unwrap();
            assert_eq!(mask.dims(), expected.dims());
            assert!(values(&mask) == values(&expected), "{width}x{height}, mask {index}");
        }
    }
}
