//! Image to image with the tiny models of `text_to_image`, and what it resizes pictures with.

use candle_core::Tensor;
use candle_diffusers_pipelines::{
    ImageToImage, InitImage, Schedule, StableDiffusionPipeline, TextToImage, denormalize, resize, to_pictures,
};
use candle_diffusers_schedulers::{NoiseSource, TorchGenerator};
use candle_diffusers_test_support::{Fixture, relative_difference, values};
use image::RgbImage;
use serde_json::{Map, Value};

use crate::text_to_image::{go_on, load, numbers, strings};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/image_to_image");

fn fixture() -> Fixture {
    Fixture::open(format!("{FOLDER}/image_to_image.safetensors"))
}

/// The picture of `(height, width, 3)` bytes.
fn picture(pixels: &Tensor) -> RgbImage {
    let (height, width, _) = pixels.dims3().unwrap();
    let bytes = pixels.flatten_all().unwrap().to_vec1().unwrap();
    RgbImage::from_raw(width as u32, height as u32, bytes).unwrap()
}

fn request(name: &str, case: &Value, fixture: &Fixture) -> ImageToImage {
    let image = fixture.get(&format!("{name}.image"));
    let image = match case["latents"].as_bool() {
        Some(_) => InitImage::Latents(image.clone()),
        None => {
            InitImage::Pictures((0..image.dim(0).unwrap()).map(|i| picture(&image.get(i).unwrap())).collect())
        }
    };
    let mut prompts = strings(case, "prompts");
    if prompts.is_empty() {
        prompts.push("a large red circle on a blue background".into());
    }
    let schedule = match (numbers(case, "timesteps"), numbers(case, "sigmas")) {
        (Some(timesteps), _) => Schedule::Timesteps(timesteps),
        (_, Some(sigmas)) => Schedule::Sigmas(sigmas),
        _ => Schedule::Steps(5),
    };
    let text = TextToImage {
        prompts,
        negative_prompts: strings(case, "negative_prompts"),
        num_images_per_prompt: case["num_images_per_prompt"].as_u64().unwrap_or(1) as usize,
        schedule,
        guidance_scale: Some(case["guidance_scale"].as_f64().unwrap_or(4.0)),
        eta: case["eta"].as_f64().unwrap_or(0.0),
        ..Default::default()
    };
    ImageToImage { text, image, strength: case["strength"].as_f64().unwrap(), denoising_start: None }
}

fn pipeline(case: &Value) -> StableDiffusionPipeline {
    let mut pipeline = load(case["model"].as_str().unwrap());
    if let Some(class_name) = case["scheduler"].as_str() {
        let overrides = case["overrides"].as_object().cloned().unwrap_or_default();
        pipeline.set_scheduler(class_name, &overrides).unwrap();
    }
    pipeline
}

#[test]
fn pictures_equal_the_reference() {
    let fixture = fixture();
    let cases: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{FOLDER}/cases.json")).unwrap()).unwrap();
    let mut failed = Vec::new();
    for (name, case) in cases.as_object().unwrap() {
        let mut pipeline = pipeline(case);
        let request = request(name, case, &fixture);
        let seeds = numbers(case, "seeds").unwrap_or(vec![0.0]);
        let mut generators: Vec<TorchGenerator> =
            seeds.iter().map(|seed| TorchGenerator::new(*seed as u64)).collect();
        let mut first = generators[0].clone();
        let noise: &mut dyn NoiseSource = if seeds.len() == 1 { &mut first } else { &mut generators };
        let latents = pipeline.image_to_image_latents(&request, noise, &mut go_on).unwrap();
        let decoded = denormalize(&pipeline.decode_latents(&latents).unwrap()).unwrap();
        let pixels: Vec<u8> =
            to_pictures(&decoded).unwrap().iter().flat_map(|picture| picture.as_raw().clone()).collect();
        let expected = values(fixture.get(&format!("{name}.pictures")));
        assert_eq!(pixels.len(), expected.len(), "{name}");
        let differences =
            pixels.iter().zip(&expected).map(|(pixel, expected)| (f64::from(*pixel) - expected).abs());
        let pixels = differences.fold(0.0, f64::max);
        let latents = relative_difference(&latents, fixture.get(&format!("{name}.latents")));
        println!("{name}: latents {latents:.1e}, pixels {pixels} of 255");
        if pixels > 2.0 || latents > 1e-4 {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn resizing_equals_pillow_to_the_last_bit() {
    let fixture = fixture();
    let pairs = (0..).map_while(|i| {
        let name = format!("resize.{i}");
        let contains = fixture.contains(&format!("{name}.from"));
        contains.then(|| ["from", "to"].map(|end| picture(fixture.get(&format!("{name}.{end}")))))
    });
    let pairs: Vec<_> = pairs.collect();
    assert_eq!(pairs.len(), 8);
    for [from, to] in pairs {
        let resized = resize(&from, to.width(), to.height()).unwrap();
        assert!(resized == to, "{:?} to {:?}", from.dimensions(), to.dimensions());
    }
    assert!(resize(&RgbImage::new(3, 3), 0, 3).unwrap_err().to_string().contains("0 pixels"));
}

#[test]
fn what_cannot_be_painted_is_told_before_the_work() {
    let mut pipeline = load("sd1");
    let picture = |width, height| InitImage::Pictures(vec![RgbImage::new(width, height)]);
    let text = TextToImage { prompts: vec!["a".into()], schedule: Schedule::Steps(5), ..Default::default() };
    let request = ImageToImage { text, image: picture(32, 32), strength: 0.8, denoising_start: None };
    let with_size = |width| ImageToImage {
        text: TextToImage { width: Some(width), ..request.text.clone() },
        ..request.clone()
    };
    let latents = |shape: &[usize]| {
        InitImage::Latents(Tensor::zeros(shape, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap())
    };
    let problems = [
        (ImageToImage { strength: 1.5, ..request.clone() }, "strength: is 1.5, expected 0 to 1"),
        (ImageToImage { strength: f64::NAN, ..request.clone() }, "strength: is NaN, expected 0 to 1"),
        (
            ImageToImage { strength: 0.1, ..request.clone() },
            "strength: is 0.1, which of 5 steps leaves none; expected at least 0.2",
        ),
        (ImageToImage { image: picture(3, 40), ..request.clone() }, "image: is smaller than 4x4 pixels"),
        (
            ImageToImage { image: InitImage::Pictures(vec![]), ..request.clone() },
            "image: is 0 pictures, expected 1",
        ),
        (
            ImageToImage { image: latents(&[2, 4, 8, 8]), ..request.clone() },
            "image: is 2 pictures, expected 1, or one for each of the 1",
        ),
        (
            ImageToImage { image: latents(&[1, 3, 8, 8]), ..request.clone() },
            "image: is latents [1, 3, 8, 8], expected (pictures, 4, height, width)",
        ),
        (with_size(30), "width: is 30, expected a multiple of 4"),
        (
            ImageToImage { image: latents(&[1, 4, 8, 8]), ..with_size(40) },
            "width, height: are 40x32, but the image is latents of 32x32",
        ),
    ];
    for (request, expected) in problems {
        let problem = pipeline
            .image_to_image_latents(&request, &mut TorchGenerator::new(0), &mut go_on)
            .unwrap_err()
            .to_string();
        assert!(problem.starts_with(expected), "{problem}");
    }
    pipeline.set_scheduler("DDIMScheduler", &Map::new()).unwrap();
    let resized = pipeline.image_to_image(&with_size(40), &mut TorchGenerator::new(0), &mut go_on).unwrap();
    assert_eq!(resized.images[0].dimensions(), (40, 32));
}
