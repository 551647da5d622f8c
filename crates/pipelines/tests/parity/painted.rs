//! What tests of whole pictures share: a fixture's cases, what a case asks for, and how far the result is from the reference's.

use std::ops::ControlFlow;

use candle_core::Tensor;
use candle_diffusers_pipelines::{Schedule, StableDiffusionPipeline, StepEnd, denormalize, to_pictures};
use candle_diffusers_schedulers::{NoiseSource, TorchGenerator};
use candle_diffusers_test_support::{Fixture, relative_difference, values};
use image::{ImageBuffer, Pixel, RgbImage};
use serde_json::{Map, Value};

/// The cases in `cases.json` of a test's folder, by name.
pub(crate) fn cases(folder: &str) -> Map<String, Value> {
    serde_json::from_slice(&std::fs::read(format!("{folder}/cases.json")).unwrap()).unwrap()
}

pub(crate) fn strings(case: &Value, key: &str) -> Vec<String> {
    let list = case[key].as_array().into_iter().flatten();
    list.map(|text| text.as_str().unwrap().to_string()).collect()
}

pub(crate) fn numbers(case: &Value, key: &str) -> Option<Vec<f64>> {
    Some(case[key].as_array()?.iter().map(|number| number.as_f64().unwrap()).collect())
}

/// The case's prompts, or one where it says nothing.
pub(crate) fn prompts(case: &Value) -> Vec<String> {
    match strings(case, "prompts") {
        prompts if prompts.is_empty() => vec!["a large red circle on a blue background".to_string()],
        prompts => prompts,
    }
}

/// The case's own timesteps or sigmas, else so many steps.
pub(crate) fn schedule(case: &Value, steps: usize) -> Schedule {
    match (numbers(case, "timesteps"), numbers(case, "sigmas")) {
        (Some(timesteps), _) => Schedule::Timesteps(timesteps),
        (_, Some(sigmas)) => Schedule::Sigmas(sigmas),
        _ => Schedule::Steps(case["steps"].as_u64().map_or(steps, |steps| steps as usize)),
    }
}

/// Gives the pipeline the case's scheduler, where it names one.
pub(crate) fn set_scheduler(pipeline: &mut StableDiffusionPipeline, case: &Value) {
    if let Some(class_name) = case["scheduler"].as_str() {
        let overrides = case["overrides"].as_object().cloned().unwrap_or_default();
        pipeline.set_scheduler(class_name, &overrides).unwrap();
    }
}

/// Runs `paint` with the case's generators: one for all pictures, or one each.
pub(crate) fn with_noise<T>(case: &Value, paint: impl FnOnce(&mut dyn NoiseSource) -> T) -> T {
    let seeds = numbers(case, "seeds").unwrap_or(vec![0.0]);
    let mut generators: Vec<TorchGenerator> =
        seeds.iter().map(|seed| TorchGenerator::new(*seed as u64)).collect();
    match &mut generators[..] {
        [one] => paint(one),
        _ => paint(&mut generators),
    }
}

pub(crate) fn go_on(_: StepEnd) -> candle_diffusers_pipelines::Result<ControlFlow<()>> {
    Ok(ControlFlow::Continue(()))
}

/// The picture of `(height, width, channels)` bytes, or the mask of `(height, width)`.
pub(crate) fn picture<P: Pixel<Subpixel = u8>>(pixels: &Tensor) -> ImageBuffer<P, Vec<u8>> {
    let (height, width) = (pixels.dims()[0] as u32, pixels.dims()[1] as u32);
    let bytes = pixels.flatten_all().unwrap().to_vec1().unwrap();
    ImageBuffer::from_raw(width, height, bytes).unwrap()
}

/// The pictures of `(count, height, width, channels)` bytes, or the masks of `(count, height, width)`.
pub(crate) fn pictures<P: Pixel<Subpixel = u8>>(pixels: &Tensor) -> Vec<ImageBuffer<P, Vec<u8>>> {
    (0..pixels.dim(0).unwrap()).map(|i| picture(&pixels.get(i).unwrap())).collect()
}

pub(crate) fn decoded(pipeline: &StableDiffusionPipeline, latents: &Tensor) -> Vec<RgbImage> {
    to_pictures(&denormalize(&pipeline.decode_latents(latents).unwrap()).unwrap()).unwrap()
}

/// The largest difference between any two pixels, of 255; `expected` are bytes of as many pictures.
pub(crate) fn worst_pixel(pictures: &[RgbImage], expected: &Tensor) -> f64 {
    let pixels: Vec<u8> = pictures.iter().flat_map(|picture| picture.as_raw().clone()).collect();
    let expected = values(expected);
    assert_eq!(pixels.len(), expected.len(), "pixels");
    let differences =
        pixels.iter().zip(&expected).map(|(pixel, expected)| (f64::from(*pixel) - expected).abs());
    differences.fold(0.0, f64::max)
}

/// Says how far a case's pictures, and latents where there are any, are from the reference's; told again where that is too far.
pub(crate) fn out_of_bounds(
    name: &str,
    latents: Option<&Tensor>,
    pictures: &[RgbImage],
    fixture: &Fixture,
) -> Option<String> {
    let pixels = worst_pixel(pictures, fixture.get(&format!("{name}.pictures")));
    let latents =
        latents.map(|latents| relative_difference(latents, fixture.get(&format!("{name}.latents"))));
    let found = match latents {
        Some(latents) => format!("{name}: latents {latents:.1e}, pixels {pixels} of 255"),
        None => format!("{name}: pixels {pixels} of 255"),
    };
    println!("{found}");
    (pixels > 2.0 || latents.is_some_and(|latents| latents > latents_bound(name))).then_some(found)
}

/// How far latents may be from the reference's, relative to the largest.
fn latents_bound(name: &str) -> f64 {
    match name {
        // Two runs of the reference itself, in float32 with the same noise, were 1.3e-4 apart, and each about 1e-4 from its float64.
        "refined_ddim" => 3e-4,
        _ => 1e-4,
    }
}
