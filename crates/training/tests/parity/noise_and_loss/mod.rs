//! Noise, targets and losses beside the formulae of the reference's scripts.

use candle_core::Tensor;
use candle_diffusers_schedulers::{TorchGenerator, scheduler_from_other};
use candle_diffusers_test_support::{Fixture, assert_close};
use candle_diffusers_training::{
    LossOptions, LossWeighting, NoiseOptions, draw_noise, draw_timesteps, loss, loss_mask, loss_weights,
    training_target,
};
use serde_json::Value;

#[test]
fn steps_are_those_of_the_reference_scripts() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/noise_and_loss");
    let fixture = Fixture::open(format!("{folder}/noise_and_loss.safetensors"));
    let settings: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{folder}/cases.json")).unwrap()).unwrap();
    let [latents, prediction] = ["latents", "prediction"].map(|name| fixture.get(name));
    let mask = loss_mask(fixture.get("mask"), 6, 5, settings["temperature"].as_f64().unwrap()).unwrap();
    for (kind, config) in settings["schedulers"].as_object().unwrap() {
        let scheduler = scheduler_from_other("DDPMScheduler", config).unwrap();
        for (index, case) in settings["cases"].as_array().unwrap().iter().enumerate() {
            let name = |name: &str| format!("{kind}/{index}/{name}");
            let number = |field: &str| case[field].as_f64().unwrap();
            let options = NoiseOptions {
                noise_offset: number("noise_offset"),
                input_perturbation: number("input_perturbation"),
            };
            let mut generator = TorchGenerator::new(100 + index as u64);
            let noise = draw_noise(latents, &options, &mut generator).unwrap();
            let timesteps = draw_timesteps(4, 1000, &mut generator).unwrap();
            assert_eq!(timesteps, fixture.values(&name("timesteps")));
            let noisy = scheduler.add_noise(latents, &noise.added, &timesteps).unwrap();
            assert_close(&name("noisy"), &noisy, fixture.get(&name("noisy")), 1e-5);
            let target = training_target(scheduler.as_ref(), latents, &noise.target, &timesteps).unwrap();
            assert_close(&name("target"), &target, fixture.get(&name("target")), 1e-5);

            let gamma = settings["gamma"].as_f64().unwrap();
            let weights =
                |weighting| loss_weights(scheduler.as_ref(), &timesteps, weighting).unwrap().unwrap();
            let min_snr = weights(LossWeighting::MinSnr { gamma });
            assert_close(&name("weights"), &min_snr, fixture.get(&name("weights")), 1e-5);
            let prior_loss_weight = settings["prior_loss_weight"].as_f64();
            let plain = LossOptions::default();
            let check = |what: &str, options: LossOptions<'_>| {
                let actual: Tensor = loss(prediction, &target, &options).unwrap();
                assert_close(&name(what), &actual, fixture.get(&name(what)), 1e-5);
            };
            check("loss", plain);
            check("min_snr", LossOptions { weights: Some(&min_snr), ..plain });
            check("prior", LossOptions { prior_loss_weight, ..plain });
            check("prior_min_snr", LossOptions { weights: Some(&min_snr), prior_loss_weight, ..plain });
            check("masked", LossOptions { mask: Some(&mask), ..plain });
            if kind == "sample" {
                check("snr", LossOptions { weights: Some(&weights(LossWeighting::Snr)), ..plain });
            }
        }
    }
}
