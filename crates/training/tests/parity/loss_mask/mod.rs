//! The masked loss and its gradient beside cloneofsimo's lora.

use candle_core::{DType, Tensor, Var};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::StableDiffusionPipeline;
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::{Fixture, assert_close, numbers};
use candle_diffusers_training::recipes::{Denoising, DenoisingOptions, Example};
use candle_diffusers_training::{LossOptions, loss, loss_mask};
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/loss_mask");
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity/text_to_image/sd1");

/// Fails unless the difference is at most a millionth of the largest expected value, however small that is.
fn check(what: &str, actual: &Tensor, expected: &Tensor) {
    let largest = expected.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let [actual, expected] = [actual, expected].map(|tensor| (tensor / f64::from(largest)).unwrap());
    assert_close(what, &actual, &expected, 1e-6);
}

#[test]
fn loss_and_gradient_are_those_of_the_original() {
    let fixture = Fixture::open(format!("{FOLDER}/loss_mask.safetensors"));
    let settings: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{FOLDER}/cases.json")).unwrap()).unwrap();
    let prediction = Var::from_tensor(fixture.get("prediction")).unwrap();
    let (_, _, height, width) = prediction.dims4().unwrap();
    for (index, temperature) in settings["temperatures"].as_array().unwrap().iter().enumerate() {
        let temperature = temperature.as_f64().unwrap();
        let expected = |name: &str| fixture.get(&format!("{index}/{name}"));
        let what = |name: &str| format!("{name} at temperature {temperature}");
        let weights = loss_mask(fixture.get("masks"), height, width, temperature).unwrap();
        check(&what("weights"), &weights, expected("weights"));
        let options = LossOptions { mask: Some(&weights), ..Default::default() };
        let loss = loss(&prediction, fixture.get("target"), &options).unwrap();
        check(&what("loss"), &loss, expected("loss"));
        let gradients = loss.backward().unwrap();
        check(&what("gradient"), gradients.get(&prediction).unwrap(), expected("gradient"));
    }
}

#[test]
fn pictures_of_masks_become_those_of_the_original() {
    let fixture = Fixture::open(format!("{FOLDER}/loss_mask.safetensors"));
    let models =
        StableDiffusionPipeline::load(&Repository::folder(MODEL).unwrap(), &LoadOptions::default()).unwrap();
    let options = DenoisingOptions { mask_temperature: Some(2.5), ..Default::default() };
    let denoising = Denoising::new(&models, options).unwrap();
    let example = |index: usize| {
        let mask = fixture.get("pictures").get(index).unwrap().to_dtype(DType::F32).unwrap();
        Example {
            pixel_values: numbers(&[3, 32, 32], index as u64),
            caption: "a star".to_string(),
            original_size: (32, 32),
            crop_top_left: (0, 0),
            key: None,
            others: vec![(mask / 255.0).unwrap().broadcast_as((3, 32, 32)).unwrap()],
            area: None,
        }
    };
    let examples: Vec<Example> = (0..2).map(example).collect();
    let of_pictures = denoising.loss(&examples, &mut TorchGenerator::new(3)).unwrap();
    let masks = fixture.get("masks");
    let of_masks = denoising.masked_loss(&examples, masks, 2.5, &mut TorchGenerator::new(3)).unwrap();
    check("loss", &of_pictures, &of_masks);
}
