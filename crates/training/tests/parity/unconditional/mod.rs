//! Ten steps of unconditional training, beside the reference's script; then the folder that it writes, loaded and painted with.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_models::UNet2DConfig;
use candle_diffusers_pipelines::{Schedule, Unconditional, UnconditionalPipeline, UnconditionalStepEnd};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::{Fixture, assert_close, values};
use candle_diffusers_training::recipes::{
    UnconditionalDenoising, UnconditionalOptions, default_unet_2d_config, save_unconditional,
};
use candle_diffusers_training::{
    AdamW, AdamWConfig, EmaConfig, EmaModel, LrSchedule, LrScheduleOptions, Parameter, ParameterGroup,
    Trainer, TrainerOptions, new_unet_2d, trainable_unet_2d,
};
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/unconditional");
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity/unconditional/ddpm");
const STEPS: usize = 10;

fn settings() -> Value {
    serde_json::from_slice(&std::fs::read(format!("{FOLDER}/cases.json")).unwrap()).unwrap()
}

fn options(case: &Value) -> UnconditionalOptions {
    let text = |key: &str| case[key].as_str().unwrap().to_string();
    UnconditionalOptions {
        scheduler: text("scheduler"),
        beta_schedule: text("beta_schedule"),
        prediction_type: text("prediction_type"),
        ..Default::default()
    }
}

fn trainer(case: &Value, parameters: Vec<Parameter>) -> Trainer {
    let groups = vec![ParameterGroup { parameters, learning_rate: 1e-3, weight_decay: 1e-6 }];
    let schedule = LrSchedule::new(
        case["lr_scheduler"].as_str().unwrap().parse().unwrap(),
        LrScheduleOptions {
            num_warmup_steps: case["warmup"].as_u64().unwrap_or(0) as usize,
            num_training_steps: STEPS,
            ..Default::default()
        },
    );
    let ema = EmaConfig { use_ema_warmup: true, power: 0.75, ..Default::default() };
    let ema = case["ema"].as_bool().map(|_| EmaModel::new(&groups, ema).unwrap());
    let options = TrainerOptions {
        gradient_accumulation_steps: case["accumulation"].as_u64().unwrap_or(1) as usize,
        ..Default::default()
    };
    let adamw = AdamWConfig { beta1: 0.95, ..Default::default() };
    let optimizer = Box::new(AdamW::new(adamw).unwrap());
    Trainer::new(groups, optimizer, schedule.unwrap(), ema, options, TorchGenerator::new(42)).unwrap()
}

/// How far a weight may be from the reference's.
fn bound(parameter: &str) -> f64 {
    // What is added to all keys changes no attention: its gradient is rounding alone, which AdamW makes steps of.
    if parameter.ends_with("to_k.bias") { 1e-2 } else { 1e-5 }
}

fn paint(repository: &Repository) -> Vec<f64> {
    let mut pipeline = UnconditionalPipeline::load(repository, &LoadOptions::default()).unwrap();
    let request = Unconditional { schedule: Some(Schedule::Steps(2)), ..Default::default() };
    let mut go_on = |_: UnconditionalStepEnd<'_>| Ok(ControlFlow::Continue(()));
    values(&pipeline.generate_tensor(&request, &mut TorchGenerator::new(3), &mut go_on).unwrap())
}

#[test]
fn losses_and_weights_are_those_of_the_reference() {
    let fixture = Fixture::open(format!("{FOLDER}/unconditional.safetensors"));
    let settings = settings();
    let size = settings["batch"].as_u64().unwrap() as usize;
    let repository = Repository::folder(MODEL).unwrap();
    let config: Value =
        serde_json::from_slice(&std::fs::read(format!("{MODEL}/unet/config.json")).unwrap()).unwrap();
    for (name, case) in settings["cases"].as_object().unwrap() {
        let whole = trainable_unet_2d(&repository, "unet", &LoadOptions::default()).unwrap();
        let mut trainer = trainer(case, whole.parameters);
        let denoising = UnconditionalDenoising::new(&whole.model, &options(case)).unwrap();
        let losses = fixture.values(&format!("{name}/losses"));
        let digests = fixture.values(&format!("{name}/digests"));
        let (mut batch, mut worst): (usize, f64) = (0, 0.0);
        for step in 0..STEPS {
            let report = trainer
                .step(|generator| {
                    let indices: Vec<u32> = (0..size).map(|i| ((batch * size + i) % 6) as u32).collect();
                    batch += 1;
                    let indices = Tensor::new(indices, &Device::Cpu)?;
                    denoising.loss(&fixture.get("pictures").index_select(&indices, 0)?, generator)
                })
                .unwrap();
            worst = worst.max((report.loss / losses[step] - 1.0).abs());
            assert!(worst < 1e-4, "{name}, step {step}: {} and {}", report.loss, losses[step]);
            let squares = |parameter: &Parameter| values(&parameter.var).iter().map(|x| x * x).sum::<f64>();
            let length = trainer.groups[0].parameters.iter().map(squares).sum::<f64>().sqrt();
            assert!((length / digests[step] - 1.0).abs() < 1e-5, "{name}, step {step}: {length}");
        }
        let compare = |when: &str, parameters: &[Parameter]| {
            let sample = |tensor: &Tensor| {
                let kept = values(tensor).into_iter().step_by(10).map(|value| value as f32);
                Tensor::new(kept.collect::<Vec<f32>>(), &Device::Cpu).unwrap()
            };
            for Parameter { name: parameter, var } in parameters {
                let expected = fixture.get(&format!("{name}/{when}/{parameter}"));
                assert_close(parameter, &sample(var), expected, bound(parameter));
            }
        };
        compare("end", &trainer.groups[0].parameters);
        let ends = fixture.names().iter().filter(|key| key.starts_with(&format!("{name}/end/"))).count();
        assert_eq!(ends, trainer.groups[0].parameters.len(), "{name}");
        println!("{name}: {ends} weights, losses within {worst:.1e}");
        if let Some(ema) = &mut trainer.ema {
            ema.copy_to(&trainer.groups).unwrap();
            compare("average", &trainer.groups[0].parameters);
        }

        let folder = tempfile::tempdir().unwrap();
        let parameters = &trainer.groups[0].parameters;
        save_unconditional(folder.path(), &config, parameters, denoising.scheduler()).unwrap();
        let saved = Repository::folder(folder.path()).unwrap();
        let pipeline = UnconditionalPipeline::load(&saved, &LoadOptions::default()).unwrap();
        let class = pipeline.scheduler().config()["_class_name"].clone();
        assert_eq!(class, case["scheduler"], "{name}");
        let noise = Tensor::ones((1, 3, 16, 16), candle_core::DType::F32, &Device::Cpu).unwrap();
        let predict = |model: &candle_diffusers_models::UNet2DModel| {
            values(&model.forward(&noise, &[500.0], None).unwrap())
        };
        assert_close_values(name, &predict(&pipeline.unet), &predict(&whole.model));
        assert_ne!(paint(&saved), paint(&repository), "{name}");
    }
}

/// Weights that are packed for a processor round otherwise than those that are trained.
fn assert_close_values(name: &str, found: &[f64], expected: &[f64]) {
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-4, "{name}: {found} and {expected}");
    }
}

#[test]
fn a_new_model_begins_as_in_torch() {
    let fixture = Fixture::open(format!("{FOLDER}/unconditional.safetensors"));
    let whole = new_unet_2d(&settings()["new"], TorchGenerator::new(0), &LoadOptions::default()).unwrap();
    let expected = fixture.names().iter().filter(|key| key.starts_with("new/")).count();
    assert_eq!(whole.parameters.len(), expected);
    for Parameter { name, var } in &whole.parameters {
        let ours = values(var);
        let [least, most, mean, spread] = fixture.values(&format!("new/{name}"))[..] else {
            panic!("{name}")
        };
        let count = ours.len() as f64;
        let our_mean = ours.iter().sum::<f64>() / count;
        let our_spread = (ours.iter().map(|x| (x - our_mean).powi(2)).sum::<f64>() / count).sqrt();
        // Two draws of one distribution: within six standard errors of their means and spreads.
        let error = 6.0 * (2.0 / count).sqrt() * spread;
        assert!((our_mean - mean).abs() <= error, "{name}: mean {our_mean} and {mean}");
        assert!((our_spread - spread).abs() <= error, "{name}: spread {our_spread} and {spread}");
        if !name.contains("class_embedding") {
            let bound = ours.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
            let theirs = most.max(-least);
            // The ends of a uniform distribution are nearly met.
            assert!((bound - theirs).abs() <= theirs * 12.0 / count, "{name}: up to {bound} and {theirs}");
        }
    }
    let mut other = settings()["new"].clone();
    other["time_embedding_type"] = "fourier".into();
    let whole = new_unet_2d(&other, TorchGenerator::new(0), &LoadOptions::default()).unwrap();
    let frequencies = whole.parameters.iter().find(|parameter| parameter.name == "unet.time_proj.weight");
    let largest = values(&frequencies.unwrap().var).into_iter().fold(0.0, f64::max);
    assert!((16.0..80.0).contains(&largest), "{largest}: standard normal numbers times 16");
}

#[test]
fn the_default_model_is_the_scripts() {
    let settings = settings();
    let (ours, theirs) = (default_unet_2d_config(64), &settings["default_config"]);
    assert_eq!(UNet2DConfig::from_json(&ours).unwrap(), UNet2DConfig::from_json(theirs).unwrap());
}

#[test]
fn settings_that_do_not_exist_are_refused() {
    let repository = Repository::folder(MODEL).unwrap();
    let whole = trainable_unet_2d(&repository, "unet", &LoadOptions::default()).unwrap();
    let refuse = |options: &UnconditionalOptions, message: &str| {
        let error = UnconditionalDenoising::new(&whole.model, options).err().unwrap().to_string();
        assert!(error.contains(message), "{error}");
    };
    let usual = UnconditionalOptions::default();
    let scheduler = "PNDMScheduler".to_string();
    refuse(
        &UnconditionalOptions { scheduler, ..usual.clone() },
        "scheduler is \"PNDMScheduler\"; expected DDPMScheduler or DDIMScheduler",
    );
    refuse(&UnconditionalOptions { beta_schedule: "steep".to_string(), ..usual.clone() }, "beta_schedule");
    refuse(
        &UnconditionalOptions { prediction_type: "nothing".to_string(), ..usual.clone() },
        "prediction_type",
    );
    refuse(&UnconditionalOptions { num_train_timesteps: 0, ..usual }, "num_train_timesteps");
}
