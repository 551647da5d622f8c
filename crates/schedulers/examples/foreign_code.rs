//! Puts this crate's schedulers into a program that has nothing to do with pictures, nor with any model of this project: points in
//! the plane, a hundred lines from somewhere else, with a sampling loop of its own.
//!
//! The foreign part knows plain numbers only. What it takes to give it any scheduler is [`with_scheduler`].
//!
//! `cargo run --example foreign_code -- 12`

use candle_core::{Device, Tensor};
use candle_diffusers_schedulers::{
    NoiseSource, Result, StepOptions, TorchGenerator, scheduler_class_names, scheduler_from_other,
};
use serde_json::json;

/// Code from elsewhere: points that should lie on a ring, and what is known of noise in them.
mod foreign {
    use std::f64::consts::TAU;

    /// How many places of the ring there are.
    const PLACES: usize = 64;

    /// Where the points should lie.
    fn ring() -> impl Iterator<Item = [f64; 2]> {
        (0..PLACES).map(|i| (TAU * i as f64 / PLACES as f64).sin_cos()).map(|(sin, cos)| [cos, sin])
    }

    /// The noise in a noisy point `signal * place + sigma * noise`, as a perfect model would predict it.
    pub(crate) fn predict_noise(point: [f64; 2], signal: f64, sigma: f64) -> [f64; 2] {
        let distance =
            |place: [f64; 2]| (point[0] - signal * place[0]).powi(2) + (point[1] - signal * place[1]).powi(2);
        let nearest = ring().map(distance).fold(f64::INFINITY, f64::min);
        let mut mean = [0.0; 3];
        for place in ring() {
            let weight = ((nearest - distance(place)) / (2.0 * sigma * sigma)).exp();
            mean = [mean[0] + weight * place[0], mean[1] + weight * place[1], mean[2] + weight];
        }
        [0, 1].map(|i| (point[i] - signal * mean[i] / mean[2]) / sigma)
    }

    /// How far a point is from the ring's nearest place.
    pub(crate) fn error(point: [f64; 2]) -> f64 {
        ring().map(|place| (point[0] - place[0]).hypot(point[1] - place[1])).fold(f64::INFINITY, f64::min)
    }
}

fn main() -> Result<()> {
    let steps = std::env::args().nth(1).and_then(|steps| steps.parse().ok()).unwrap_or(12);
    for class_name in scheduler_class_names() {
        let points = with_scheduler(class_name, steps, 200)?;
        let mean = points.iter().map(|point| foreign::error(*point)).sum::<f64>() / points.len() as f64;
        println!("{class_name}: {mean:.4} from the ring after {steps} steps");
    }
    Ok(())
}

/// Samples points by any scheduler: the foreign program's numbers become tensors at the two places where they meet.
fn with_scheduler(class_name: &str, steps: usize, count: usize) -> Result<Vec<[f64; 2]>> {
    let mut scheduler = scheduler_from_other(class_name, &json!({"clip_sample": false}))?;
    let mut generator = TorchGenerator::new(0);
    scheduler.set_timesteps(steps)?;
    let noise = generator.randn(&[count, 2], candle_core::DType::F64, &Device::Cpu)?;
    let mut sample = (noise * scheduler.init_noise_sigma())?;
    for timestep in scheduler.timesteps().to_vec() {
        let input = scheduler.scale_model_input(&sample, timestep)?;
        let signal = f64::from(scheduler.alphas_cumprod()[timestep.round() as usize]);
        let predict = |point: [f64; 2]| foreign::predict_noise(point, signal.sqrt(), (1.0 - signal).sqrt());
        let noise: Vec<f64> = points(&input)?.into_iter().flat_map(predict).collect();
        let noise = Tensor::from_vec(noise, (count, 2), &Device::Cpu)?;
        let options = StepOptions::default();
        sample = scheduler.step(&noise, timestep, &sample, &mut generator, &options)?.prev_sample;
    }
    points(&sample)
}

fn points(tensor: &Tensor) -> Result<Vec<[f64; 2]>> {
    Ok(tensor.to_vec2::<f64>()?.into_iter().map(|point| [point[0], point[1]]).collect())
}
