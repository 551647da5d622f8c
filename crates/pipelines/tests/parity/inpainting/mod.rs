//! Inpainting with the tiny models of `text_to_image` and `stable_diffusion_xl`, and what is done with masks.

use candle_core::{DType, Device, Tensor};
use candle_diffusers_loaders::{LoadOptions, Repository, load_unet};
use candle_diffusers_pipelines::{
    ImageToImage, InitImage, Inpainting, Region, StableDiffusionPipeline, TextToImage, blur, overlay,
};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::{Fixture, relative_difference, values};
use image::{GrayImage, Luma, RgbImage};
use serde_json::{Map, Value, json};

use crate::painted::{
    cases, go_on, out_of_bounds, picture, pictures, prompts, schedule, set_scheduler, strings, with_noise,
    worst_pixel,
};
use crate::stable_diffusion_xl::biases;
use crate::text_to_image::load;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/inpainting");

fn fixture() -> Fixture {
    Fixture::open(format!("{FOLDER}/inpainting.safetensors"))
}

fn pipeline(case: &Value) -> StableDiffusionPipeline {
    let model = case["model"].as_str().unwrap();
    let mut pipeline = match model {
        "xl" => {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/stable_diffusion_xl/base");
            let repository = Repository::folder(folder).unwrap();
            StableDiffusionPipeline::load(&repository, &LoadOptions::default()).unwrap()
        }
        _ => load(model),
    };
    if case["channels"] == 9 {
        let repository = Repository::folder(FOLDER).unwrap();
        let options = LoadOptions::default();
        pipeline.unet = load_unet(&repository, &format!("{model}_unet"), &options).unwrap();
    }
    set_scheduler(&mut pipeline, case);
    pipeline
}

fn request(name: &str, case: &Value, fixture: &Fixture) -> Inpainting {
    let number = |key: &str| case[key].as_u64().map(|number| number as usize);
    let text = TextToImage {
        prompts: prompts(case),
        negative_prompts: strings(case, "negative_prompts"),
        num_images_per_prompt: number("num_images_per_prompt").unwrap_or(1),
        schedule: schedule(case, 5),
        guidance_scale: Some(case["guidance_scale"].as_f64().unwrap_or(4.0)),
        eta: case["eta"].as_f64().unwrap_or(0.0),
        width: number("width"),
        height: number("height"),
        ..Default::default()
    };
    Inpainting {
        text,
        image: InitImage::Pictures(pictures(fixture.get(&format!("{name}.image")))),
        denoising_start: None,
        masks: pictures(fixture.get(&format!("{name}.mask"))),
        strength: case["strength"].as_f64().unwrap(),
        padding_mask_crop: number("padding_mask_crop").map(|padding| padding as u32),
        keep_unmasked: false,
    }
}

#[test]
fn pictures_equal_the_reference() {
    let fixture = fixture();
    let mut wrong = Vec::new();
    for (name, case) in &cases(FOLDER) {
        let mut pipeline = pipeline(case);
        let request = request(name, case, &fixture);
        let output = with_noise(case, |noise| pipeline.inpaint(&request, noise, &mut go_on)).unwrap();
        // The reference tells no latents of what is painted in a part and put back.
        let latents = request.padding_mask_crop.is_none().then(|| {
            with_noise(case, |noise| pipeline.inpaint_latents(&request, noise, &mut go_on)).unwrap()
        });
        wrong.extend(out_of_bounds(name, latents.as_ref(), &output.images, &fixture));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_refiner_goes_on_where_the_base_has_stopped() {
    let fixture = fixture();
    for scheduler in ["EulerDiscreteScheduler", "DDIMScheduler"] {
        let name = format!("refined.{scheduler}");
        let case = json!({ "model": "xl", "scheduler": scheduler, "strength": 0.9999 });
        let mut noise = TorchGenerator::new(0);
        let mut base = pipeline(&case);
        let mut request = request(&name, &case, &fixture);
        request.text.denoising_end = Some(0.6);
        let begun = base.inpaint_latents(&request, &mut noise, &mut go_on).unwrap();
        let difference = relative_difference(&begun, fixture.get(&format!("{name}.begun")));
        assert!(difference < 1e-4, "{name}: {difference:.1e}");

        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/stable_diffusion_xl/refiner");
        let repository = Repository::folder(folder).unwrap();
        let mut refiner = StableDiffusionPipeline::load(&repository, &LoadOptions::default()).unwrap();
        refiner.set_scheduler(scheduler, &Map::new()).unwrap();
        request.text.denoising_end = None;
        let request = Inpainting { image: InitImage::Latents(begun), denoising_start: Some(0.6), ..request };
        let output = refiner.inpaint(&request, &mut noise, &mut go_on).unwrap();
        let pixels = worst_pixel(&output.images, fixture.get(&format!("{name}.pictures")));
        println!("{name}: latents {difference:.1e}, pixels {pixels} of 255");
        assert!(pixels <= 2.0, "{name}: {pixels}");
    }
}

#[test]
fn one_load_paints_from_texts_from_pictures_and_in_parts() {
    let case = json!({ "model": "sd1", "scheduler": "DDIMScheduler", "strength": 0.9 });
    let fixture = fixture();
    let request = Inpainting {
        image: InitImage::Pictures(vec![RgbImage::from_pixel(32, 32, image::Rgb([40, 90, 200]))]),
        masks: vec![GrayImage::from_fn(32, 32, |x, _| Luma([if x < 16 { 255 } else { 0 }]))],
        ..request("pndm", &case, &fixture)
    };
    let from_picture = ImageToImage {
        text: request.text.clone(),
        image: request.image.clone(),
        strength: 0.6,
        denoising_start: None,
    };
    type Paint<'a> = &'a dyn Fn(&mut StableDiffusionPipeline) -> Vec<RgbImage>;
    let noise = || TorchGenerator::new(4);
    let ways: [Paint; 3] = [
        &|pipeline| pipeline.generate(&request.text, &mut noise(), &mut go_on).unwrap().images,
        &|pipeline| pipeline.image_to_image(&from_picture, &mut noise(), &mut go_on).unwrap().images,
        &|pipeline| pipeline.inpaint(&request, &mut noise(), &mut go_on).unwrap().images,
    ];
    let mut one = pipeline(&case);
    for (index, paint) in ways.into_iter().enumerate().cycle().take(6) {
        assert!(paint(&mut one) == paint(&mut pipeline(&case)), "way {index}");
    }
}

#[test]
fn models_are_shared_without_a_copy() {
    let one = load("sd1");
    let (unet, vae) = (one.unet.clone(), one.vae.clone());
    assert!(biases(&unet) == biases(&one.unet) && biases(&vae) == biases(&one.vae));
    assert!(!biases(&unet).is_empty() && biases(&unet) != biases(&load("sd1").unet));
}

#[test]
fn masks_are_blurred_as_by_pillow_to_the_last_bit() {
    let fixture = fixture();
    for index in 0..6 {
        let radius = values(fixture.get(&format!("blur.{index}.radius")))[0] as f32;
        let [from, to]: [GrayImage; 2] =
            ["from", "to"].map(|end| picture(fixture.get(&format!("blur.{index}.{end}"))));
        assert!(blur(&from, radius) == to, "{index}: radius {radius}");
    }
    let mask = GrayImage::from_pixel(3, 3, Luma([9]));
    for radius in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(blur(&mask, radius) == mask);
    }
}

#[test]
fn regions_are_cut_and_laid_over_as_by_diffusers() {
    let fixture = fixture();
    for index in 0..6 {
        let get = |name: &str| fixture.get(&format!("region.{index}.{name}"));
        let numbers: Vec<u32> = values(get("numbers")).into_iter().map(|number| number as u32).collect();
        let [width, height, padding, x, y, right, bottom] = numbers[..] else { panic!("{numbers:?}") };
        let region = Region::around(&picture(get("mask")), width, height, padding).unwrap();
        assert_eq!(region, Region { x, y, width: right - x, height: bottom - y }, "{index}");
        let [original, painted, expected]: [RgbImage; 3] =
            ["original", "painted", "over"].map(|name| picture(get(name)));
        let found = overlay(&original, &picture(get("soft")), &painted, Some(region)).unwrap();
        assert!(found == expected, "{index}");
    }
    let problem = Region::around(&GrayImage::new(4, 4), 8, 8, 1).unwrap_err().to_string();
    assert!(problem.contains("black all over"), "{problem}");
}

#[test]
fn what_the_mask_leaves_out_comes_back_exactly() {
    let fixture = fixture();
    let case = json!({ "model": "sd1", "strength": 1.0 });
    let mut pipeline = pipeline(&case);
    let plain = request("other_size", &case, &fixture);
    let mask = GrayImage::from_fn(45, 38, |x, _| Luma([if x < 20 { 0 } else { 255 }]));
    let request = Inpainting { masks: vec![mask], keep_unmasked: true, ..plain };
    let mut paint = |request: &Inpainting| {
        let output = pipeline.inpaint(request, &mut TorchGenerator::new(0), &mut go_on).unwrap();
        output.images.into_iter().next().unwrap()
    };
    let InitImage::Pictures(originals) = &request.image else { panic!("latents") };
    let (original, painted) = (&originals[0], paint(&request));
    assert_eq!(painted.dimensions(), original.dimensions());
    let differs = |x: u32| (0..38).any(|y| painted.get_pixel(x, y) != original.get_pixel(x, y));
    assert!(!(0..20).any(differs) && (20..45).all(differs));
}

#[test]
fn what_cannot_be_painted_is_told_before_the_work() {
    let fixture = fixture();
    let case = json!({ "model": "sd1", "strength": 1.0 });
    let mut pipeline = pipeline(&case);
    let request = request("pndm", &case, &fixture);
    let mask = |width, height| GrayImage::from_pixel(width, height, Luma([255]));
    let latents =
        |shape: &[usize]| InitImage::Latents(Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap());
    let problems = [
        (Inpainting { strength: -0.1, ..request.clone() }, "strength: is -0.1, expected 0 to 1"),
        (Inpainting { strength: 0.1, ..request.clone() }, "strength: is 0.1, which of 5 steps leaves none"),
        (Inpainting { image: InitImage::Pictures(vec![]), ..request.clone() }, "image: are 0, expected 1"),
        (
            Inpainting { image: latents(&[1, 3, 8, 8]), ..request.clone() },
            "image: is latents [1, 3, 8, 8], expected (pictures, 4, height, width)",
        ),
        (
            Inpainting { image: latents(&[1, 4, 8, 8]), keep_unmasked: true, ..request.clone() },
            "need the picture, but the image is latents",
        ),
        (
            Inpainting { masks: vec![mask(32, 32); 2], ..request.clone() },
            "masks: are 2, expected 1, or one for each of the 1 to paint",
        ),
        (
            Inpainting { masks: vec![mask(16, 32)], keep_unmasked: true, ..request.clone() },
            "masks: are 16x32, expected the picture's 32x32 pixels",
        ),
        (
            Inpainting { masks: vec![GrayImage::new(32, 32)], padding_mask_crop: Some(4), ..request.clone() },
            "mask: is black all over",
        ),
        (Inpainting { masks: vec![mask(0, 0)], ..request.clone() }, "are 0 pixels wide or high"),
    ];
    let mut trained = self::pipeline(&json!({ "model": "sd1", "channels": 9 }));
    let problem = trained.generate(&request.text, &mut TorchGenerator::new(0), &mut go_on).unwrap_err();
    assert!(problem.to_string().contains("unet: takes 9 channels, expected 4"), "{problem}");
    for (request, expected) in problems {
        let problem =
            pipeline.inpaint(&request, &mut TorchGenerator::new(0), &mut go_on).unwrap_err().to_string();
        assert!(problem.contains(expected), "{problem}");
    }
}
