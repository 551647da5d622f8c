//! Image to image with the tiny models of `text_to_image`, and what it resizes pictures with.

use candle_core::Tensor;
use candle_diffusers_pipelines::{
    ImageToImage, InitImage, Schedule, StableDiffusionPipeline, TextToImage, resize,
};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::Fixture;
use image::RgbImage;
use serde_json::{Map, Value};

use crate::painted::{
    cases, decoded, go_on, out_of_bounds, picture, pictures, prompts, schedule, set_scheduler, strings,
    with_noise,
};
use crate::text_to_image::load;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/image_to_image");

fn fixture() -> Fixture {
    Fixture::open(format!("{FOLDER}/image_to_image.safetensors"))
}

fn request(name: &str, case: &Value, fixture: &Fixture) -> ImageToImage {
    let image = fixture.get(&format!("{name}.image"));
    let image = match case["latents"].as_bool() {
        Some(_) => InitImage::Latents(image.clone()),
        None => InitImage::Pictures(pictures(image)),
    };
    let text = TextToImage {
        prompts: prompts(case),
        negative_prompts: strings(case, "negative_prompts"),
        num_images_per_prompt: case["num_images_per_prompt"].as_u64().unwrap_or(1) as usize,
        schedule: schedule(case, 5),
        guidance_scale: Some(case["guidance_scale"].as_f64().unwrap_or(4.0)),
        eta: case["eta"].as_f64().unwrap_or(0.0),
        ..Default::default()
    };
    ImageToImage { text, image, strength: case["strength"].as_f64().unwrap(), denoising_start: None }
}

fn pipeline(case: &Value) -> StableDiffusionPipeline {
    let mut pipeline = load(case["model"].as_str().unwrap());
    set_scheduler(&mut pipeline, case);
    pipeline
}

#[test]
fn pictures_equal_the_reference() {
    let fixture = fixture();
    let mut wrong = Vec::new();
    for (name, case) in &cases(FOLDER) {
        let mut pipeline = pipeline(case);
        let request = request(name, case, &fixture);
        let latents = with_noise(case, |noise| pipeline.image_to_image_latents(&request, noise, &mut go_on));
        let latents = latents.unwrap();
        wrong.extend(out_of_bounds(name, Some(&latents), &decoded(&pipeline, &latents), &fixture));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
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
