//! What a loss refuses, and where the reference's formula has no answer.

#![allow(clippy::unwrap_used, clippy::panic)]

use candle_core::{DType, Device, Tensor, Var};
use candle_diffusers_schedulers::{TorchGenerator, scheduler_from_other};
use candle_diffusers_test_support::{numbers, values};
use candle_diffusers_training::{
    LossOptions, LossWeighting, NoiseOptions, draw_noise, draw_timesteps, loss, loss_mask, loss_weights,
};
use serde_json::json;

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let [three, two] = [[3, 4, 2, 2], [2, 4, 2, 2]].map(|shape| numbers(&shape, 1));
    let plain = LossOptions::default();
    let message = |result: Result<Tensor, candle_diffusers_training::Error>| result.unwrap_err().to_string();
    let error = message(loss(&three, &two, &plain));
    assert_eq!(error, "prediction has shape [3, 4, 2, 2]; expected [2, 4, 2, 2], the target's");
    let error = message(loss(&three, &three, &LossOptions { prior_loss_weight: Some(1.0), ..plain }));
    assert!(error.starts_with("batch has shape [3, 4, 2, 2]; expected an even number"), "{error}");
    let weights = numbers(&[2], 1);
    let error = message(loss(&three, &three, &LossOptions { weights: Some(&weights), ..plain }));
    assert_eq!(error, "weights has shape [2]; expected [3], one for each picture");
    assert!(loss_mask(&numbers(&[3, 8, 8], 1), 1, 1, 1.0).is_err());
    assert!(loss_mask(&numbers(&[3, 1, 8, 8], 1), 1, 1, f64::NAN).is_err());
    assert!(draw_noise(&numbers(&[3], 1), &NoiseOptions::default(), &mut TorchGenerator::new(0)).is_err());
    assert!(draw_timesteps(1, 0, &mut TorchGenerator::new(0)).is_err());
}

#[test]
fn weights_without_signal_are_numbers() {
    let config = json!({"rescale_betas_zero_snr": true});
    let scheduler = scheduler_from_other("DDPMScheduler", &config).unwrap();
    let weights = |weighting| loss_weights(scheduler.as_ref(), &[0.0, 999.0], weighting);
    let min_snr = weights(LossWeighting::MinSnr { gamma: 5.0 }).unwrap().unwrap();
    assert!((values(&min_snr)[1] - 1.0).abs() < 1e-6, "{min_snr}");
    assert!(weights(LossWeighting::Uniform).unwrap().is_none());
    for gamma in [0.0, -1.0, f64::NAN] {
        assert!(weights(LossWeighting::MinSnr { gamma }).is_err());
    }
    assert!(loss_weights(scheduler.as_ref(), &[1000.0], LossWeighting::Snr).is_err());
}

#[test]
fn gradients_flow_through_every_option() {
    let prediction = Var::from_tensor(&numbers(&[4, 4, 2, 2], 1).to_dtype(DType::BF16).unwrap()).unwrap();
    let (target, weights) = (numbers(&[4, 4, 2, 2], 2), Tensor::ones(4, DType::F32, &Device::Cpu).unwrap());
    let mask = loss_mask(&numbers(&[4, 1, 16, 16], 3).abs().unwrap(), 2, 2, 1.0).unwrap();
    let options = LossOptions { weights: Some(&weights), mask: Some(&mask), prior_loss_weight: Some(0.5) };
    let store = loss(&prediction, &target, &options).unwrap().backward().unwrap();
    let gradient = values(store.get(&prediction).unwrap());
    assert!(gradient.iter().all(|value| value.is_finite() && *value != 0.0));
}
