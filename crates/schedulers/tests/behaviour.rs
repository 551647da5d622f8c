//! What holds for every scheduler: a second loop starts afresh, pictures do not depend on their batch, gradients flow, and
//! nothing that a caller can do wrong panics.

// Helpers of tests fail the test, as the tests themselves do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use candle_core::{DType, Device, Tensor, Var};
use candle_diffusers_schedulers::{
    DdimConfig, DdimScheduler, Error, Result, Scheduler, StepOptions, TorchGenerator, config_from_json,
    scheduler_class_names, scheduler_from_config, scheduler_from_other,
};
use candle_diffusers_schedulers::{NoiseSource, PredictionType};
use serde_json::{Value, json};

const SHAPE: [usize; 4] = [2, 4, 3, 5];

fn noise(seed: u64) -> Tensor {
    TorchGenerator::new(seed).randn(&SHAPE, DType::F32, &Device::Cpu).unwrap()
}

fn scheduler(class_name: &str, config: Value) -> Box<dyn Scheduler> {
    scheduler_from_other(class_name, &config).unwrap()
}

fn error_of<T>(result: Result<T>) -> String {
    result.err().expect("an error").to_string()
}

/// A loop in which the model sees noise in everything.
fn denoise(
    scheduler: &mut dyn Scheduler,
    steps: usize,
    start: &Tensor,
    noise: &mut dyn NoiseSource,
) -> Result<Tensor> {
    scheduler.set_timesteps(steps)?;
    let mut sample = (start * scheduler.init_noise_sigma())?;
    let options = StepOptions { eta: 0.5, ..StepOptions::default() };
    for timestep in scheduler.timesteps().to_vec() {
        let model_output = (scheduler.scale_model_input(&sample, timestep)? * 0.5)?;
        sample = scheduler.step(&model_output, timestep, &sample, noise, &options)?.prev_sample;
    }
    Ok(sample)
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_second_loop_starts_afresh() {
    for class_name in scheduler_class_names() {
        let mut scheduler = scheduler(class_name, json!({}));
        let mut run =
            |steps| denoise(scheduler.as_mut(), steps, &noise(1), &mut TorchGenerator::new(2)).unwrap();
        let first = run(7);
        run(5);
        assert_eq!(bits(&first), bits(&run(7)), "{class_name}");
    }
}

#[test]
fn a_picture_does_not_depend_on_its_batch() {
    for class_name in scheduler_class_names() {
        let generators = || vec![TorchGenerator::new(10), TorchGenerator::new(11)];
        let both =
            denoise(scheduler(class_name, json!({})).as_mut(), 6, &noise(1), &mut generators()).unwrap();
        let second = noise(1).narrow(0, 1, 1).unwrap();
        let mut alone = scheduler(class_name, json!({}));
        let alone = denoise(alone.as_mut(), 6, &second, &mut TorchGenerator::new(11)).unwrap();
        assert_eq!(bits(&both.narrow(0, 1, 1).unwrap()), bits(&alone), "{class_name}");
    }
}

#[test]
fn samples_need_not_be_contiguous() {
    for class_name in scheduler_class_names() {
        let transposed = noise(1).transpose(2, 3).unwrap();
        let run = |start: &Tensor| {
            denoise(scheduler(class_name, json!({})).as_mut(), 5, start, &mut TorchGenerator::new(2)).unwrap()
        };
        assert_eq!(bits(&run(&transposed)), bits(&run(&transposed.contiguous().unwrap())), "{class_name}");
    }
}

#[test]
fn gradients_flow_through_a_step() {
    for class_name in scheduler_class_names() {
        let mut scheduler = scheduler(class_name, json!({"clip_sample": false}));
        scheduler.set_timesteps(10).unwrap();
        let timestep = scheduler.timesteps()[0];
        let model_output = Var::from_tensor(&noise(3)).unwrap();
        let step = |scheduler: &mut dyn Scheduler, model_output: &Tensor| {
            let mut generator = TorchGenerator::new(0);
            let options = StepOptions::default();
            scheduler.step(model_output, timestep, &noise(1), &mut generator, &options).unwrap().prev_sample
        };
        let prev_sample = step(scheduler.as_mut(), &model_output);
        let gradient = prev_sample.sum_all().unwrap().backward().unwrap().get(&model_output).unwrap().clone();
        // A step is linear in the model output: the gradient is what one more unit of it changes.
        scheduler.set_timesteps(10).unwrap();
        let more = step(scheduler.as_mut(), &(model_output.as_tensor() + 1.0).unwrap());
        let change = (more - prev_sample).unwrap();
        let error =
            (change - gradient).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(error < 1e-4, "{class_name}: {error}");
    }
}

#[test]
fn clipped_values_have_no_gradient() {
    let mut scheduler =
        scheduler("DDIMScheduler", json!({"prediction_type": "sample", "clip_sample_range": 0.5}));
    scheduler.set_timesteps(10).unwrap();
    let model_output = Var::from_tensor(&noise(3)).unwrap();
    let timestep = scheduler.timesteps()[0];
    let mut generator = TorchGenerator::new(0);
    let output =
        scheduler.step(&model_output, timestep, &noise(1), &mut generator, &StepOptions::default()).unwrap();
    let original = output.pred_original_sample.unwrap();
    let gradients = original.sum_all().unwrap().backward().unwrap();
    let gradient = gradients.get(&model_output).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let predicted = model_output.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (gradient, predicted) in gradient.into_iter().zip(predicted) {
        assert_eq!(gradient, if predicted.abs() < 0.5 { 1.0 } else { 0.0 });
    }
}

#[test]
fn steps_out_of_order_are_errors() {
    let options = StepOptions::default();
    let mut generator = TorchGenerator::new(0);
    for class_name in scheduler_class_names() {
        let mut scheduler = scheduler(class_name, json!({"skip_prk_steps": true}));
        let sample = noise(0);
        let mut step = |scheduler: &mut dyn Scheduler, timestep: f64, sample: &Tensor| {
            scheduler.step(&noise(1), timestep, sample, &mut generator, &options)
        };
        let before = error_of(step(scheduler.as_mut(), 1.0, &sample));
        assert!(before.contains("set_timesteps"), "{before}");
        scheduler.set_timesteps(5).unwrap();
        for timestep in [0.25, -3.0, 1e9, f64::NAN, f64::INFINITY] {
            let unknown = error_of(step(scheduler.as_mut(), timestep, &sample));
            assert!(unknown.contains("not in the schedule"), "{class_name}: {unknown}");
        }
        let first = scheduler.timesteps()[0];
        let small = sample.narrow(3, 0, 2).unwrap();
        assert!(error_of(step(scheduler.as_mut(), first, &small)).contains("[2, 4, 3, 2]"), "{class_name}");
        let integers = sample.to_dtype(DType::U32).unwrap();
        assert!(error_of(step(scheduler.as_mut(), first, &integers)).contains("U32"), "{class_name}");
        scheduler.set_timesteps(5).unwrap();
        step(scheduler.as_mut(), first, &sample).unwrap();
        let keeps_position = !matches!(class_name, "DDIMScheduler" | "DDPMScheduler");
        if keeps_position {
            let timesteps = scheduler.timesteps().to_vec();
            let last = timesteps[timesteps.len() - 1];
            assert!(
                matches!(step(scheduler.as_mut(), last, &sample), Err(Error::OutOfOrder { .. })),
                "{class_name}"
            );
            for &timestep in &timesteps[1..] {
                step(scheduler.as_mut(), timestep, &sample).unwrap();
            }
            let after = error_of(step(scheduler.as_mut(), last, &sample));
            assert!(after.contains("done"), "{class_name}: {after}");
            scheduler.set_timesteps(5).unwrap();
            scheduler.set_begin_index(99);
            assert!(step(scheduler.as_mut(), first, &sample).is_err());
            assert!(scheduler.add_noise(&sample, &noise(1), &[first]).is_ok());
        }
    }
}

#[test]
fn the_sample_may_not_change_shape_within_a_loop() {
    for class_name in ["PNDMScheduler", "DPMSolverMultistepScheduler"] {
        let mut scheduler = scheduler(class_name, json!({}));
        scheduler.set_timesteps(8).unwrap();
        let timesteps = scheduler.timesteps().to_vec();
        let mut generator = TorchGenerator::new(0);
        let options = StepOptions::default();
        scheduler.step(&noise(1), timesteps[0], &noise(0), &mut generator, &options).unwrap();
        let small = noise(1).narrow(3, 0, 2).unwrap();
        let error = error_of(scheduler.step(&small, timesteps[1], &small, &mut generator, &options));
        assert!(error.contains("shape"), "{error}");
    }
}

#[test]
fn numbers_of_steps_out_of_range_are_errors() {
    for class_name in scheduler_class_names() {
        let mut scheduler = scheduler(class_name, json!({"skip_prk_steps": true}));
        for steps in [0, 1_000_000_000_000, usize::MAX] {
            let error = error_of(scheduler.set_timesteps(steps));
            assert!(
                error.contains(&steps.to_string()) && error.contains("expected 1 to"),
                "{class_name}: {error}"
            );
        }
        let is_euler = class_name.starts_with("Euler");
        assert_eq!(scheduler.set_timesteps(1001).is_ok(), is_euler, "{class_name}");
        scheduler.set_timesteps(10).unwrap();
    }
    let prk = error_of(scheduler("PNDMScheduler", json!({})).set_timesteps(3));
    assert!(prk.contains("at least 4") && prk.contains("skip_prk_steps"), "{prk}");
    let offset = error_of(scheduler("DDIMScheduler", json!({"steps_offset": 1})).set_timesteps(1000));
    assert!(offset.contains("timestep 1000") && offset.contains("steps_offset"), "{offset}");
}

#[test]
fn what_a_scheduler_does_not_have_is_an_error_that_names_it() {
    let mut ddim = scheduler("DDIMScheduler", json!({}));
    assert!(
        error_of(ddim.set_custom_timesteps(&[3.0]))
            .starts_with("DDIMScheduler does not support custom timesteps")
    );
    let mut dpm = scheduler("DPMSolverMultistepScheduler", json!({}));
    assert!(error_of(dpm.set_custom_sigmas(&[3.0, 0.0])).contains("custom sigmas"));
    assert!(error_of(dpm.get_velocity(&noise(0), &noise(1), &[1.0])).contains("get_velocity"));
    let mut karras = scheduler("EulerDiscreteScheduler", json!({"use_karras_sigmas": true}));
    assert!(error_of(karras.set_custom_timesteps(&[3.0])).contains("use_karras_sigmas"));
    let mut ddpm = scheduler("DDPMScheduler", json!({}));
    for timesteps in [&[][..], &[1.0, 2.0], &[1000.0], &[5.5], &[f64::NAN], &[3.0, 3.0], &[3.0, -1.0]] {
        assert!(ddpm.set_custom_timesteps(timesteps).is_err(), "{timesteps:?}");
    }
    let mut euler = scheduler("EulerDiscreteScheduler", json!({}));
    for sigmas in [&[][..], &[1.0], &[f64::NAN, 0.0], &[1.0, -1.0], &[0.0, 0.0], &[f64::INFINITY, 0.0]] {
        assert!(euler.set_custom_sigmas(sigmas).is_err(), "{sigmas:?}");
    }
    for timesteps in [&[][..], &[1000.0], &[f64::NAN], &[-1.0]] {
        assert!(euler.set_custom_timesteps(timesteps).is_err(), "{timesteps:?}");
        assert!(dpm.set_custom_timesteps(timesteps).is_err(), "{timesteps:?}");
    }
}

#[test]
fn noise_goes_only_where_it_fits() {
    for class_name in scheduler_class_names() {
        let scheduler = scheduler(class_name, json!({}));
        let add = |timesteps: &[f64], noise: &Tensor| scheduler.add_noise(&self::noise(0), noise, timesteps);
        assert!(add(&[1.0, 2.0, 3.0], &noise(1)).is_err(), "{class_name}");
        assert!(add(&[], &noise(1)).is_err(), "{class_name}");
        assert!(add(&[1000.0], &noise(1)).is_err(), "{class_name}");
        assert!(add(&[1.0], &noise(1).narrow(0, 0, 1).unwrap()).is_err(), "{class_name}");
        assert_eq!(add(&[1.0], &noise(1)).unwrap().dims(), SHAPE);
        assert_eq!(bits(&add(&[7.0], &noise(1)).unwrap()), bits(&add(&[7.0, 7.0], &noise(1)).unwrap()));
    }
}

#[test]
fn bad_options_are_errors() {
    let mut ddim = scheduler("DDIMScheduler", json!({}));
    ddim.set_timesteps(5).unwrap();
    let timestep = ddim.timesteps()[0];
    for eta in [-0.1, f64::NAN, f64::INFINITY, 50.0] {
        let options = StepOptions { eta, ..StepOptions::default() };
        let error =
            error_of(ddim.step(&noise(0), timestep, &noise(1), &mut TorchGenerator::new(0), &options));
        assert!(error.starts_with("eta is"), "{error}");
    }
    let variance_noise = Some(noise(0).narrow(0, 0, 1).unwrap());
    let options = StepOptions { eta: 1.0, variance_noise, ..StepOptions::default() };
    let error = error_of(ddim.step(&noise(0), timestep, &noise(1), &mut TorchGenerator::new(0), &options));
    assert!(error.starts_with("variance_noise has shape [1, 4, 3, 5]"), "{error}");
    let mut euler = scheduler("EulerDiscreteScheduler", json!({}));
    euler.set_timesteps(5).unwrap();
    let timestep = euler.timesteps()[0];
    let options = StepOptions { s_churn: f64::NAN, ..StepOptions::default() };
    assert!(euler.step(&noise(0), timestep, &noise(1), &mut TorchGenerator::new(0), &options).is_err());
}

#[test]
fn bad_configs_are_errors_that_name_the_field() {
    let cases = [
        ("DDIMScheduler", json!({"num_train_timesteps": 0}), "`num_train_timesteps` is 0; expected 1 to"),
        (
            "DDIMScheduler",
            json!({"num_train_timesteps": 1_000_000_000_000u64}),
            "`num_train_timesteps` is 1000000000000",
        ),
        ("DDIMScheduler", json!({"num_train_timesteps": -1}), "`num_train_timesteps` is -1"),
        (
            "DDIMScheduler",
            json!({"num_train_timesteps": "many"}),
            "`num_train_timesteps` is \"many\"; invalid type: string",
        ),
        (
            "DDPMScheduler",
            json!({"beta_schedule": "quadratic"}),
            "`beta_schedule` is \"quadratic\"; unknown variant",
        ),
        (
            "DDIMScheduler",
            json!({"beta_schedule": "sigmoid"}),
            "`beta_schedule` is sigmoid; expected one of linear",
        ),
        ("PNDMScheduler", json!({"beta_end": 2.0}), "`beta_end` is 2; expected a number from 0 to 1"),
        ("PNDMScheduler", json!({"prediction_type": "sample"}), "`prediction_type`"),
        ("EulerAncestralDiscreteScheduler", json!({"prediction_type": "sample"}), "`prediction_type`"),
        ("EulerDiscreteScheduler", json!({"prediction_type": "flow_prediction"}), "`prediction_type`"),
        ("EulerDiscreteScheduler", json!({"sigma_min": -1.0}), "`sigma_min` is -1"),
        ("EulerDiscreteScheduler", json!({"timestep_spacing": null}), "`timestep_spacing` is null"),
        (
            "EulerDiscreteScheduler",
            json!({"use_beta_sigmas": true, "use_karras_sigmas": true}),
            "`use_beta_sigmas`",
        ),
        (
            "DDPMScheduler",
            json!({"trained_betas": [0.1, 0.2]}),
            "`trained_betas` is 2 numbers; expected num_train_timesteps",
        ),
        (
            "DDPMScheduler",
            json!({"trained_betas": [0.1, 1.5], "num_train_timesteps": 2}),
            "`trained_betas` is such that beta 1 is 1.5",
        ),
        ("DDPMScheduler", json!({"trained_betas": 3}), "`trained_betas` is 3"),
        ("DDPMScheduler", json!({"dynamic_thresholding_ratio": 1.5}), "`dynamic_thresholding_ratio` is 1.5"),
        ("DDPMScheduler", json!({"clip_sample_range": 0}), "`clip_sample_range` is 0"),
        ("DDPMScheduler", json!({"variance_type": "huge"}), "`variance_type` is \"huge\""),
        (
            "DDPMScheduler",
            json!({"num_train_timesteps": 1, "rescale_betas_zero_snr": true}),
            "`rescale_betas_zero_snr`",
        ),
        (
            "DPMSolverMultistepScheduler",
            json!({"solver_order": 4}),
            "`solver_order` is 4; expected 1, 2 or 3",
        ),
        (
            "DPMSolverMultistepScheduler",
            json!({"algorithm_type": "dpmsolver"}),
            "`final_sigmas_type` is zero",
        ),
        ("DPMSolverMultistepScheduler", json!({"algorithm_type": "dpm"}), "`algorithm_type` is \"dpm\""),
        (
            "DPMSolverMultistepScheduler",
            json!({"lambda_min_clipped": "low"}),
            "`lambda_min_clipped` is \"low\"",
        ),
        ("DPMSolverMultistepScheduler", json!({"flow_shift": 0.0}), "`flow_shift` is 0"),
        (
            "DPMSolverMultistepScheduler",
            json!({"time_shift_type": "linear"}),
            "`time_shift_type` is \"linear\"",
        ),
    ];
    for (class_name, config, expected) in cases {
        let error = error_of(scheduler_from_other(class_name, &config));
        assert!(error.contains(class_name) && error.contains(expected), "{config}: {error}");
    }
    let config = DdimConfig { beta_start: f64::NAN, ..DdimConfig::default() };
    assert!(error_of(DdimScheduler::new(config)).contains("`beta_start` is NaN"));
}

#[test]
fn unknown_classes_and_texts_are_errors() {
    let unknown = error_of(scheduler_from_config(&json!({"_class_name": "LCMScheduler"})));
    assert!(unknown.contains("LCMScheduler") && unknown.contains("EulerDiscreteScheduler"), "{unknown}");
    assert!(error_of(scheduler_from_config(&json!({}))).contains("_class_name"));
    assert!(error_of(scheduler_from_config(&json!({"_class_name": 3}))).contains("_class_name"));
    assert!(error_of(scheduler_from_config(&json!([1]))).contains("_class_name"));
    assert!(error_of(scheduler_from_other("DDIMScheduler", &json!([1]))).contains("JSON object"));
    for text in ["", "{", "{\"a\": Infinit}", "nonsense", "{\"a\": \"\\", "\"\\é"] {
        assert!(config_from_json(text).is_err(), "{text}");
    }
    let text = r#"{"lambda_min_clipped": -Infinity, "s": "an \"Infinity\" \\", "n": [NaN, Infinity]}"#;
    let config = config_from_json(text).unwrap();
    assert_eq!(config["lambda_min_clipped"], json!("-Infinity"));
    assert_eq!(config["s"], json!("an \"Infinity\" \\"));
    assert_eq!(config["n"], json!(["NaN", "Infinity"]));
    assert!(scheduler_from_other("DPMSolverMultistepScheduler", &config).is_ok());
}

#[test]
fn ddpm_says_what_it_lacks_for_its_variance() {
    for (variance_type, expected) in
        [("learned", "twice the sample's"), ("fixed_large_log", "fixed_large_log")]
    {
        let mut ddpm = scheduler("DDPMScheduler", json!({"variance_type": variance_type}));
        assert_eq!(ddpm.prediction_type(), PredictionType::Epsilon);
        ddpm.set_timesteps(5).unwrap();
        let timestep = ddpm.timesteps()[0];
        let options = StepOptions::default();
        let error =
            error_of(ddpm.step(&noise(0), timestep, &noise(1), &mut TorchGenerator::new(0), &options));
        assert!(error.contains(expected), "{error}");
    }
}
