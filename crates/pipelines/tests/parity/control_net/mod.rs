//! ControlNets beside the tiny models of `text_to_image` and `stable_diffusion_xl`.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::Tensor;
use candle_diffusers_loaders::{LoadOptions, Repository, load_component};
use candle_diffusers_models::{ControlNetConfig, ControlNetModel};
use candle_diffusers_pipelines::{
    Control, ImageToImage, InitImage, Inpainting, MicroConditions, StableDiffusionPipeline, TextToImage,
    check_controlnet,
};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::{Fixture, relative_difference};
use image::RgbImage;
use serde_json::{Value, json};

use crate::painted::{
    cases, decoded, go_on, numbers, out_of_bounds, pictures, prompts, schedule, set_scheduler, strings,
    with_noise,
};
use crate::{stable_diffusion_xl, text_to_image};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/control_net");

fn fixture() -> Fixture {
    Fixture::open(format!("{FOLDER}/control_net.safetensors"))
}

fn load(model: &str) -> StableDiffusionPipeline {
    match model {
        "xl" => stable_diffusion_xl::load("base"),
        model => text_to_image::load(model),
    }
}

fn net_folder(name: &str) -> Repository {
    Repository::folder(format!("{FOLDER}/{name}")).unwrap()
}

/// A net whose config says this besides.
fn net(name: &str, changes: &Value) -> Arc<ControlNetModel> {
    let build = |config: &Value, weights| {
        let mut config = config.clone();
        config.as_object_mut().unwrap().extend(changes.as_object().cloned().unwrap_or_default());
        ControlNetModel::new(&ControlNetConfig::from_json(&config)?, weights)
    };
    Arc::new(load_component(&net_folder(name), "", &LoadOptions::default(), build).unwrap())
}

fn controls(name: &str, case: &Value, fixture: &Fixture) -> Vec<Control> {
    let changes = json!({ "global_pool_conditions": case["pooled"] == true });
    let mut nets: HashMap<String, Arc<ControlNetModel>> = HashMap::new();
    let number = |key: &str, index: usize, usual: f64| numbers(case, key).map_or(usual, |all| all[index]);
    let control = |(index, name_of_net): (usize, String)| Control {
        net: nets.entry(name_of_net.clone()).or_insert_with(|| net(&name_of_net, &changes)).clone(),
        pictures: pictures(fixture.get(&format!("{name}.control.{index}"))),
        scale: number("scales", index, 1.0),
        start: number("starts", index, 0.0),
        end: number("ends", index, 1.0),
    };
    strings(case, "nets").into_iter().enumerate().map(control).collect()
}

fn request(name: &str, case: &Value, fixture: &Fixture) -> TextToImage {
    let side = case.get("size").is_none().then_some(32);
    let conditions = MicroConditions {
        original_size: Some((64, 48)),
        negative_original_size: Some((16, 24)),
        negative_target_size: Some((40, 32)),
        ..Default::default()
    };
    TextToImage {
        prompts: prompts(case),
        negative_prompts: strings(case, "negative_prompts"),
        num_images_per_prompt: case["num_images_per_prompt"].as_u64().unwrap_or(1) as usize,
        schedule: schedule(case, 5),
        guidance_scale: Some(case["guidance_scale"].as_f64().unwrap_or(4.0)),
        width: side,
        height: side,
        micro_conditions: if case["conditions"] == true { conditions } else { Default::default() },
        denoising_end: case["denoising_end"].as_f64(),
        controls: controls(name, case, fixture),
        guess_mode: case["guess_mode"] == true,
        ..Default::default()
    }
}

/// The pictures, and their latents where the reference has them.
fn paint(name: &str, case: &Value, fixture: &Fixture) -> (Vec<RgbImage>, Option<Tensor>) {
    let mut pipeline = load(case["model"].as_str().unwrap());
    set_scheduler(&mut pipeline, case);
    let text = request(name, case, fixture);
    let image = || InitImage::Pictures(pictures(fixture.get(&format!("{name}.image"))));
    let strength = case["strength"].as_f64();
    with_noise(case, |noise| {
        let latents = match strength {
            None => pipeline.generate_latents(&text, noise, &mut go_on),
            Some(strength) if case["mask"] == true => {
                let request = Inpainting {
                    text,
                    image: image(),
                    masks: pictures(fixture.get(&format!("{name}.mask"))),
                    strength,
                    denoising_start: None,
                    padding_mask_crop: case["padding_mask_crop"].as_u64().map(|padding| padding as u32),
                    keep_unmasked: false,
                };
                if request.padding_mask_crop.is_some() {
                    return (pipeline.inpaint(&request, noise, &mut go_on).unwrap().images, None);
                }
                pipeline.inpaint_latents(&request, noise, &mut go_on)
            }
            Some(strength) => {
                let request = ImageToImage { text, image: image(), strength, denoising_start: None };
                pipeline.image_to_image_latents(&request, noise, &mut go_on)
            }
        };
        let latents = latents.unwrap();
        (decoded(&pipeline, &latents), Some(latents))
    })
}

#[test]
fn pictures_equal_the_reference() {
    let fixture = fixture();
    let mut wrong = Vec::new();
    for (name, case) in &cases(FOLDER) {
        let (pictures, latents) = paint(name, case, &fixture);
        wrong.extend(out_of_bounds(name, latents.as_ref(), &pictures, &fixture));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A folder with a copy of the net's config in which these fields are others.
fn changed_config(name: &str, changes: &Value) -> tempfile::TempDir {
    let mut config: Value = net_folder(name).read_json("config.json").unwrap();
    config.as_object_mut().unwrap().extend(changes.as_object().cloned().unwrap());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

#[test]
fn a_net_for_another_model_is_told_by_its_config() {
    let folder = |path: &str| {
        Repository::folder(format!("{}/tests/parity/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    };
    let (sd1, xl) = (folder("text_to_image/sd1"), folder("stable_diffusion_xl/base"));
    check_controlnet(&sd1, &net_folder("sd1")).unwrap();
    check_controlnet(&xl, &net_folder("xl")).unwrap();
    let refused = |base: &Repository, net: &Repository, expected: &str| {
        let message = check_controlnet(base, net).unwrap_err().to_string();
        assert!(message.starts_with(net.name()) && message.contains(expected), "{message}");
    };
    refused(&xl, &net_folder("sd1"), "for Stable Diffusion 1 or 2, but the model is Stable Diffusion XL");
    refused(&sd1, &net_folder("xl"), "for Stable Diffusion XL, but the model is Stable Diffusion 1 or 2");
    refused(&sd1, &folder("text_to_image/sd1/unet"), "is a UNet2DConditionModel, expected a ControlNetModel");
    refused(&sd1, &sd1, "is a whole model, expected a ControlNet");
    let changes = [
        (json!({ "cross_attention_dim": 12 }), "sees text in 12 numbers a token"),
        (json!({ "block_out_channels": [8, 12] }), "blocks of [8, 12] channels"),
        (json!({ "num_class_embeds": 3 }), "is told a class"),
        (json!({ "in_channels": 9 }), "sees 9 channels, but latents have 4"),
        (json!({ "conditioning_channels": 1 }), "for pictures of 1 channels"),
        (json!({ "conditioning_embedding_out_channels": [4, 8] }), "2 times smaller, but latents are 4"),
        (json!({ "block_out_channels": "many" }), "field `block_out_channels`"),
    ];
    for (change, expected) in changes {
        let changed = changed_config("sd1", &change);
        refused(&sd1, &Repository::folder(changed.path()).unwrap(), expected);
    }
    let of_refiner = changed_config("xl", &json!({ "projection_class_embeddings_input_dim": 40 }));
    refused(&xl, &Repository::folder(of_refiner.path()).unwrap(), "other sizes and texts");
    let pipeline = load("sd1");
    pipeline.load_controlnet(&net_folder("sd1"), None).unwrap();
    let message = pipeline.load_controlnet(&net_folder("xl"), None).unwrap_err().to_string();
    assert!(message.contains("for Stable Diffusion XL"), "{message}");
}

#[test]
fn what_cannot_be_painted_is_told_before_the_work() {
    let mut pipeline = load("sd1");
    let good = Control::new(net("sd1", &json!({})), RgbImage::new(32, 32));
    let problems = [
        (Control { scale: f64::NAN, ..good.clone() }, "control.scale: is NaN"),
        (Control { start: 0.5, end: 0.5, ..good.clone() }, "control.start, control.end: are 0.5 and 0.5"),
        (Control { start: -0.1, ..good.clone() }, "control.start, control.end: are -0.1 and 1"),
        (Control { end: 1.1, ..good.clone() }, "control.start, control.end: are 0 and 1.1"),
        (Control { pictures: vec![], ..good.clone() }, "control.pictures: are 0, expected 1"),
        (Control { pictures: vec![RgbImage::new(0, 8)], ..good.clone() }, "are 0 pixels wide or high"),
        (
            Control { pictures: vec![RgbImage::new(3, 8)], ..good.clone() },
            "width: is 0, expected a multiple of 4",
        ),
        (Control { net: net("xl", &json!({})), ..good.clone() }, "control.net: is a ControlNet for"),
    ];
    for (control, expected) in problems {
        let request =
            TextToImage { prompts: vec!["a".into()], controls: vec![control], ..Default::default() };
        let problem = pipeline.generate(&request, &mut TorchGenerator::new(0), &mut go_on).unwrap_err();
        assert!(problem.to_string().contains(expected), "{problem}");
    }
    let text = TextToImage { prompts: vec!["a".into()], controls: vec![good], ..Default::default() };
    let request = Inpainting {
        text,
        image: InitImage::Pictures(vec![RgbImage::new(40, 32)]),
        masks: vec![image::GrayImage::from_pixel(40, 32, image::Luma([255]))],
        strength: 1.0,
        denoising_start: None,
        padding_mask_crop: Some(2),
        keep_unmasked: false,
    };
    let problem =
        pipeline.inpaint(&request, &mut TorchGenerator::new(0), &mut go_on).unwrap_err().to_string();
    assert!(problem.contains("are 32x32, expected the picture's 40x32 pixels"), "{problem}");
}

#[test]
fn a_picture_does_not_depend_on_its_batch() {
    let fixture = fixture();
    let case = json!({ "model": "sd1", "nets": ["sd1"], "guess_mode": true });
    let mut pipeline = load("sd1");
    let request = |prompts: &[&str]| TextToImage {
        prompts: prompts.iter().map(|prompt| prompt.to_string()).collect(),
        ..request("guess", &case, &fixture)
    };
    let prompts = ["a red circle", "a blue star"];
    let mut paint = |prompts: &[&str], seed| {
        let mut noise = candle_diffusers_pipelines::seeded_generators(seed, prompts.len());
        pipeline.generate_latents(&request(prompts), &mut noise, &mut go_on).unwrap()
    };
    let together = paint(&prompts, 40);
    for (i, prompt) in prompts.iter().enumerate() {
        let alone = paint(&[prompt], 40 + i as u64);
        let difference = relative_difference(&together.narrow(0, i, 1).unwrap(), &alone);
        assert_eq!(difference, 0.0, "{prompt}");
    }
}
