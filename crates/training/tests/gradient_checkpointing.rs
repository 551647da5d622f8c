//! Gradients are the same where blocks are computed again for them.

#![allow(clippy::unwrap_used, clippy::panic)]

use candle_core::{DType, Device, Tensor};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_models::gradient_checkpointing::backward;
use candle_diffusers_pipelines::{StableDiffusionPipeline, TextEncoders, TextToImage};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::{numbers, values};
use candle_diffusers_training::recipes::{Denoising, DenoisingOptions, Example};
use candle_diffusers_training::{
    BatchShare, Gradients, LoraConfig, Parameter, ParameterGroup, TrainedLora, UNET_TARGETS,
    trainable_text_encoder, trainable_unet,
};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity/text_to_image/sd1");

fn models(dtype: DType) -> (Repository, StableDiffusionPipeline) {
    let repository = Repository::folder(MODEL).unwrap();
    let options = LoadOptions { dtype, ..Default::default() };
    let models = StableDiffusionPipeline::load(&repository, &options).unwrap();
    (repository, models)
}

fn loss(models: &StableDiffusionPipeline, gradient_checkpointing: bool) -> Tensor {
    let pixel_values = numbers(&[3, 32, 32], 1).to_dtype(DType::F32).unwrap();
    let caption = "a cat".to_string();
    let (original_size, crop_top_left) = ((32, 32), (0, 0));
    let example = Example {
        pixel_values,
        caption,
        original_size,
        crop_top_left,
        key: None,
        others: Vec::new(),
        area: None,
    };
    let options = DenoisingOptions { gradient_checkpointing, ..Default::default() };
    Denoising::new(models, options).unwrap().loss(&[example], &mut TorchGenerator::new(3)).unwrap()
}

fn gradients(loss: &Tensor, parameters: &[Parameter]) -> Vec<Vec<f64>> {
    let group = ParameterGroup { parameters: parameters.to_vec(), learning_rate: 1e-4, weight_decay: 0.0 };
    let gradients = Gradients::of(loss, &[group]).unwrap();
    (0..parameters.len()).map(|i| gradients.get(i).map(values).unwrap_or_default()).collect()
}

/// The largest difference, as a part of the largest number; what is added up in another order is rounded otherwise.
fn difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    found.iter().zip(expected).fold(0f64, |worst, (a, b)| worst.max((a - b).abs())) / largest.max(1e-12)
}

#[test]
fn what_is_dropped_is_dropped_again() {
    let (_, models) = models(DType::F32);
    let config = LoraConfig { dropout: 0.5, ..LoraConfig::new(4, &UNET_TARGETS) };
    let lora = TrainedLora::attach(&models.unet, "unet", &config, &mut TorchGenerator::new(0)).unwrap();
    let parameters = lora.parameters();
    for Parameter { name, var } in &parameters {
        // So that both sides of each layer have a gradient.
        if name.contains("lora_B") {
            var.set(&numbers(var.dims(), 7).to_dtype(DType::F32).unwrap()).unwrap();
        }
    }
    let once = |seed, gradient_checkpointing| {
        lora.begin_step(seed, BatchShare::default());
        gradients(&loss(&models, gradient_checkpointing), &parameters)
    };
    let kept = once(5, false);
    assert!(kept.iter().all(|gradient| gradient.iter().any(|value| *value != 0.0)));
    let worst = |found: Vec<Vec<f64>>| {
        found.iter().zip(&kept).map(|(found, kept)| difference(found, kept)).fold(0f64, f64::max)
    };
    assert!(worst(once(5, true)) < 1e-4);
    assert!(worst(once(6, true)) > 0.1);
}

#[test]
fn float32_weights_are_trained_by_a_model_that_computes_in_bfloat16() {
    let (repository, mut models) = models(DType::BF16);
    let whole = trainable_unet(&repository, "unet", &LoadOptions::default()).unwrap();
    models.unet = whole.model;
    let kept = loss(&models, false);
    assert_eq!(kept.dtype(), DType::F32);
    let expected = gradients(&kept, &whole.parameters);
    let found = gradients(&loss(&models, true), &whole.parameters);
    for ((parameter, expected), found) in whole.parameters.iter().zip(&expected).zip(&found) {
        assert_eq!(parameter.var.dtype(), DType::F32);
        // Gradients of some biases are rounding alone.
        let largest = expected.iter().fold(0f64, |largest, value| largest.max(value.abs()));
        let found = difference(found, expected);
        assert!(found < 0.05 || largest < 1e-3, "{}: {found:.1e} of {largest:.1e}", parameter.name);
    }
}

#[test]
fn layers_of_a_text_encoder_are_computed_again() {
    let (repository, mut models) = models(DType::F32);
    let whole = trainable_text_encoder(&repository, "text_encoder", &LoadOptions::default()).unwrap();
    let TextEncoders::Clip(clip) = &mut models.text_encoders else { panic!("not a CLIP encoder") };
    clip.text_encoder = whole.model;
    let mut loss = |gradient_checkpointing| {
        models.text_encoders.set_gradient_checkpointing(gradient_checkpointing);
        let prompts = vec!["a cat".to_string()];
        let request = TextToImage { prompts, guidance_scale: Some(1.0), ..Default::default() };
        let embeds = models.encode_prompt(&request).unwrap().prompt;
        (&embeds * numbers(embeds.dims(), 9)).unwrap().sum_all().unwrap()
    };
    let (kept, again) = (loss(false), loss(true));
    let expected = gradients(&kept, &whole.parameters);
    let found = gradients(&again, &whole.parameters);
    for ((parameter, expected), found) in whole.parameters.iter().zip(&expected).zip(&found) {
        assert!(!expected.is_empty(), "{} has no gradient", parameter.name);
        // What is added to all keys changes no attention: that gradient is rounding alone.
        let found = difference(found, expected);
        assert!(found < 1e-4 || parameter.name.ends_with("k_proj.bias"), "{}: {found:.1e}", parameter.name);
    }
    // Only what is computed again cannot do without `gradient_checkpointing::backward`.
    assert!(kept.backward().is_ok());
    assert!(again.backward().unwrap_err().to_string().contains("gradient_checkpointing::backward"));
}

#[test]
fn gradients_that_would_be_lost_are_an_error() {
    let (repository, mut models) = models(DType::F32);
    models.unet = trainable_unet(&repository, "unet", &LoadOptions::default()).unwrap().model;
    let loss = loss(&models, true);
    let message = loss.backward().unwrap_err().to_string();
    assert!(message.contains("gradient_checkpointing::backward"), "{message}");
    assert!(backward(&loss).is_ok());
    let constant = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
    assert!(backward(&constant).is_ok());
}
