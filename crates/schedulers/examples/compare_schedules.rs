//! Shows how each scheduler goes through the noise: its timesteps, and how far a picture of one grey value is from what it
//! should be after so many steps with a model that knows the answer.
//!
//! `cargo run --example compare_schedules -- 10`

use candle_core::{DType, Device, Tensor};
use candle_diffusers_schedulers::{
    NoiseSource, PredictionType, Result, Scheduler, StepOptions, TorchGenerator, scheduler_class_names,
    scheduler_from_other,
};
use serde_json::json;

/// The picture that the model always sees in the noise.
const GREY: f64 = 0.25;

fn main() -> Result<()> {
    let steps = std::env::args().nth(1).and_then(|steps| steps.parse().ok()).unwrap_or(10);
    for class_name in scheduler_class_names() {
        let config = json!({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": false});
        let mut scheduler = scheduler_from_other(class_name, &config)?;
        let sample = denoise(scheduler.as_mut(), steps)?;
        let error = (sample - GREY)?.abs()?.max_all()?.to_scalar::<f32>()?;
        let timesteps: Vec<i64> =
            scheduler.timesteps().iter().map(|timestep| timestep.round() as i64).collect();
        println!("{class_name}\n  timesteps {timesteps:?}\n  furthest from the answer: {error:.4}");
    }
    Ok(())
}

fn denoise(scheduler: &mut dyn Scheduler, steps: usize) -> Result<Tensor> {
    let mut generator = TorchGenerator::new(0);
    scheduler.set_timesteps(steps)?;
    let noise = generator.randn(&[1, 4, 8, 8], DType::F32, &Device::Cpu)?;
    let mut sample = (noise * scheduler.init_noise_sigma())?;
    for timestep in scheduler.timesteps().to_vec() {
        let model_input = scheduler.scale_model_input(&sample, timestep)?;
        let model_output = perfect_model(scheduler, &model_input, timestep)?;
        let output =
            scheduler.step(&model_output, timestep, &sample, &mut generator, &StepOptions::default())?;
        sample = output.prev_sample;
    }
    Ok(sample)
}

/// The noise in the input, if the picture under it is grey: (input - sqrt(ᾱ) grey) / sqrt(1 - ᾱ).
fn perfect_model(scheduler: &dyn Scheduler, model_input: &Tensor, timestep: f64) -> Result<Tensor> {
    assert_eq!(scheduler.prediction_type(), PredictionType::Epsilon);
    let alphas_cumprod = scheduler.alphas_cumprod();
    let below = timestep.floor() as usize;
    let above = (below + 1).min(alphas_cumprod.len() - 1);
    let share = timestep - timestep.floor();
    let alpha = f64::from(alphas_cumprod[below]) * (1.0 - share) + f64::from(alphas_cumprod[above]) * share;
    Ok(((model_input - alpha.sqrt() * GREY)? / (1.0 - alpha).sqrt())?)
}
