//! Editing by instructions with the tiny models of `text_to_image` and `stable_diffusion_xl`, whose UNets see 8 channels here.

use candle_diffusers_loaders::{LoadOptions, Repository, load_unet};
use candle_diffusers_pipelines::{InitImage, InstructPix2Pix, StableDiffusionPipeline, TextToImage};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::Fixture;
use image::RgbImage;
use serde_json::{Value, json};

use crate::painted::{
    cases, decoded, go_on, numbers, out_of_bounds, pictures, prompts, schedule, set_scheduler, strings,
    with_noise,
};
use crate::{stable_diffusion_xl, text_to_image};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/instruct_pix2pix");

fn fixture() -> Fixture {
    Fixture::open(format!("{FOLDER}/instruct_pix2pix.safetensors"))
}

fn pipeline(case: &Value) -> StableDiffusionPipeline {
    let model = case["model"].as_str().unwrap();
    let mut pipeline = match model {
        "xl" => stable_diffusion_xl::load("base"),
        model => text_to_image::load(model),
    };
    let repository = Repository::folder(FOLDER).unwrap();
    pipeline.unet = load_unet(&repository, &format!("{model}_unet"), &LoadOptions::default()).unwrap();
    pipeline.is_cosxl_edit = case["cosxl"] == true;
    set_scheduler(&mut pipeline, case);
    pipeline
}

fn request(name: &str, case: &Value, fixture: &Fixture) -> InstructPix2Pix {
    let size = numbers(case, "size");
    let side = |index: usize| size.as_ref().map(|size| size[index] as usize);
    let text = TextToImage {
        prompts: prompts(case),
        negative_prompts: strings(case, "negative_prompts"),
        num_images_per_prompt: case["num_images_per_prompt"].as_u64().unwrap_or(1) as usize,
        schedule: schedule(case, 5),
        guidance_scale: Some(case["guidance_scale"].as_f64().unwrap_or(4.0)),
        guidance_rescale: case["guidance_rescale"].as_f64().unwrap_or(0.0),
        eta: case["eta"].as_f64().unwrap_or(0.0),
        width: side(0),
        height: side(1),
        latents: case["latents"].as_bool().map(|_| fixture.get(&format!("{name}.start")).clone()),
        denoising_end: case["denoising_end"].as_f64(),
        ..Default::default()
    };
    InstructPix2Pix {
        text,
        image: InitImage::Pictures(pictures(fixture.get(&format!("{name}.image")))),
        image_guidance_scale: case["image_guidance_scale"].as_f64().unwrap_or(1.5),
    }
}

#[test]
fn pictures_equal_the_reference() {
    let fixture = fixture();
    let mut wrong = Vec::new();
    for (name, case) in &cases(FOLDER) {
        let (mut pipeline, request) = (pipeline(case), request(name, case, &fixture));
        let latents =
            with_noise(case, |noise| pipeline.instruct_pix2pix_latents(&request, noise, &mut go_on).unwrap());
        wrong.extend(out_of_bounds(name, Some(&latents), &decoded(&pipeline, &latents), &fixture));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_cannot_be_painted_is_told_before_the_work() {
    let fixture = fixture();
    let case = json!({ "model": "sd1" });
    let mut editing = pipeline(&case);
    let good = request("plain", &case, &fixture);
    let problems = [
        (InstructPix2Pix { image_guidance_scale: f64::NAN, ..good.clone() }, "image_guidance_scale: is NaN"),
        (InstructPix2Pix { image: InitImage::Pictures(vec![]), ..good.clone() }, "image: is 0 pictures"),
        (
            InstructPix2Pix { image: InitImage::Pictures(vec![RgbImage::new(3, 8)]), ..good.clone() },
            "image: is smaller than 4x4 pixels",
        ),
        (
            InstructPix2Pix { text: TextToImage { prompts: vec![], ..good.text.clone() }, ..good.clone() },
            "prompts: are missing",
        ),
    ];
    for (request, expected) in problems {
        let problem =
            editing.instruct_pix2pix(&request, &mut TorchGenerator::new(0), &mut go_on).unwrap_err();
        assert!(problem.to_string().starts_with(expected), "{problem}");
    }
    let problem = editing.generate(&good.text, &mut TorchGenerator::new(0), &mut go_on).unwrap_err();
    assert!(problem.to_string().contains("unet: takes 8 channels, expected 4"), "{problem}");
    let mut plain = text_to_image::load("sd1");
    let problem = plain.instruct_pix2pix(&good, &mut TorchGenerator::new(0), &mut go_on).unwrap_err();
    assert!(problem.to_string().contains("unet: takes 4 channels, expected 8"), "{problem}");
}
