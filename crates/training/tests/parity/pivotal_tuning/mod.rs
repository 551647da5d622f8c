//! Ten steps of a new word, then ten of a LoRA on what it has become, beside the reference.

use candle_core::{DType, Device};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::StableDiffusionPipeline;
use candle_diffusers_schedulers::{NoiseSource, TorchGenerator};
use candle_diffusers_test_support::values;
use candle_diffusers_training::recipes::{
    Denoising, DenoisingOptions, Example, TextualInversionOptions, TrainedToken,
};
use candle_diffusers_training::{LoraConfig, Parameter, TrainedLora, UNET_TARGETS};

use crate::ten_steps::Reference;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity/text_to_image/sd1");

/// Takes the ten steps of a case.
fn check(reference: &Reference, name: &str, models: &StableDiffusionPipeline, parameters: Vec<Parameter>) {
    reference.begin(name, &parameters);
    let train_text_encoder = name == "word";
    let denoising =
        Denoising::new(models, DenoisingOptions { train_text_encoder, ..Default::default() }).unwrap();
    let learning_rate = reference.settings["cases"][name]["learning_rate"].as_f64().unwrap();
    reference.check(name, parameters, learning_rate, |batch, generator| {
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

#[test]
fn a_lora_is_learned_for_what_the_word_has_become() {
    let reference = Reference::open("pivotal_tuning");
    let text = |key: &str| reference.settings[key].as_str().unwrap().to_string();
    let mut models =
        StableDiffusionPipeline::load(&Repository::folder(MODEL).unwrap(), &LoadOptions::default()).unwrap();
    let options = TextualInversionOptions {
        placeholder_token: text("token"),
        initializer_token: text("initializer"),
        num_vectors: reference.settings["num_vectors"].as_u64().unwrap() as usize,
    };
    let token = TrainedToken::attach(&mut models, &options, &mut TorchGenerator::new(0)).unwrap();
    check(&reference, "word", &models, token.parameters());

    let learned = values(&token.parameters()[0].var);
    let config = LoraConfig::new(4, &UNET_TARGETS);
    let lora = TrainedLora::attach(&models.unet, "unet", &config, &mut TorchGenerator::new(0)).unwrap();
    check(&reference, "lora", &models, lora.parameters());
    assert!(values(&token.parameters()[0].var) == learned, "the word stays as it was learned");
}

#[test]
fn latents_can_be_drawn_once_for_each_picture() {
    let reference = Reference::open("pivotal_tuning");
    let models =
        StableDiffusionPipeline::load(&Repository::folder(MODEL).unwrap(), &LoadOptions::default()).unwrap();
    let loss = |latents_seed: u64, key: Option<u64>, generator: &mut TorchGenerator| {
        let options = DenoisingOptions { latents_seed: Some(latents_seed), ..Default::default() };
        let example = Example {
            pixel_values: reference.fixture.get("pictures").get(0).unwrap(),
            caption: "a star".to_string(),
            original_size: (32, 32),
            crop_top_left: (0, 0),
            key,
            others: Vec::new(),
            area: None,
        };
        let loss = Denoising::new(&models, options).unwrap().loss(&[example], generator);
        loss.map(|loss| loss.to_scalar::<f32>().unwrap())
    };
    let mut generator = TorchGenerator::new(3);
    let first = loss(7, Some(0), &mut generator).unwrap();
    // The run's own random numbers are for the noise and the timestep alone.
    let mut expected = TorchGenerator::new(3);
    expected.randn(&[1, 4, 8, 8], DType::F32, &Device::Cpu).unwrap();
    expected.randint(0, 1000, &[1], &Device::Cpu).unwrap();
    assert!(generator.state() == expected.state());
    let again = |latents_seed, key| loss(latents_seed, key, &mut TorchGenerator::new(3));
    assert_eq!(again(7, Some(0)).unwrap(), first);
    assert!(again(7, Some(1)).unwrap() != first && again(8, Some(0)).unwrap() != first);
    assert!(again(7, None).unwrap_err().to_string().starts_with("key is missing"));
}
