//! `diffuse generate` with models that edit pictures by instructions, or were trained for inpainting: pictures beside those of the
//! reference library, and what is refused.

use candle_diffusers_test_support::Fixture;
use image::{GrayImage, RgbImage};
use serde_json::Value;

use crate::program::{PARITY, Workplace, make_model};

const PROMPT: &str = "a large red circle on a blue background";
const SETTINGS: [&str; 8] = ["--steps", "5", "--guidance-scale", "4", "--seed", "0", "--dtype", "f32"];

/// The picture or mask of a case in a file, and the pixels that the reference paints.
fn write_inputs(workplace: &Workplace, test: &str, case: &str) -> Vec<f64> {
    let fixture = Fixture::open(format!("{PARITY}/{test}/{test}.safetensors"));
    let bytes = |name: &str| {
        let dims = fixture.get(name).dims().to_vec();
        let bytes = fixture.values(name).into_iter().map(|value| value as u8).collect();
        (dims[2] as u32, dims[1] as u32, bytes)
    };
    let (width, height, pixels) = bytes(&format!("{case}.image"));
    RgbImage::from_raw(width, height, pixels).unwrap().save(workplace.path("image.png")).unwrap();
    let mask = format!("{case}.mask");
    if fixture.contains(&mask) {
        let (width, height, pixels) = bytes(&mask);
        GrayImage::from_raw(width, height, pixels).unwrap().save(workplace.path("mask.png")).unwrap();
    }
    fixture.values(&format!("{case}.pictures"))
}

#[track_caller]
fn check(workplace: &Workplace, case: &str, expected: &[f64], flags: &[&str]) {
    workplace.succeed([&["generate", PROMPT, "--init-image", "image.png"], &SETTINGS[..], flags].concat());
    let picture = image::open(workplace.path("out.png")).unwrap().to_rgb8();
    assert_eq!(picture.as_raw().len(), expected.len(), "{case}");
    let differences = picture.as_raw().iter().zip(expected).map(|(a, e)| (f64::from(*a) - e).abs());
    let worst = differences.fold(0.0, f64::max);
    assert!(worst <= 2.0, "{case}: a pixel is {worst} of 255 away");
}

#[test]
fn pictures_are_edited_as_by_the_reference() {
    let workplace = Workplace::new();
    let (sd1, xl) = ("StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInstructPix2PixPipeline");
    make_model(&workplace, "sd1", "text_to_image/sd1", "instruct_pix2pix/sd1_unet", sd1);
    make_model(&workplace, "xl", "stable_diffusion_xl/base", "instruct_pix2pix/xl_unet", xl);
    let cases: [(&str, &[&str]); 5] = [
        ("plain", &["--model", "sd1"]),
        ("euler", &["--model", "sd1", "--scheduler", "euler", "--image-guidance-scale", "1.2"]),
        ("picture_not_followed", &["--model", "sd1", "--image-guidance-scale", "0.9"]),
        ("xl", &["--model", "xl"]),
        ("xl_size", &["--model", "xl", "--width", "40", "--height", "24", "--scheduler", "euler-ancestral"]),
    ];
    for (case, flags) in cases {
        let expected = write_inputs(&workplace, "instruct_pix2pix", case);
        check(&workplace, case, &expected, flags);
    }
    workplace.succeed(["generate", PROMPT, "--model", "sd1", "--init-image", "image.png", "--steps", "1"]);
    check(&workplace, "xl", &write_inputs(&workplace, "instruct_pix2pix", "xl"), &["--model", "xl"]);
    let run = workplace.succeed(["inspect", "out.png", "--json"]);
    let parameters = &serde_json::from_str::<Value>(&run.stdout).unwrap()["parameters"];
    assert_eq!(parameters["Image CFG scale"], "1.5");
    assert!(parameters["Denoising strength"].is_null());
}

#[test]
fn models_trained_for_inpainting_paint_as_the_reference_does() {
    let workplace = Workplace::new();
    let (sd1, xl) = ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline");
    make_model(&workplace, "sd1", "text_to_image/sd1", "inpainting/sd1_unet", sd1);
    make_model(&workplace, "xl", "stable_diffusion_xl/base", "inpainting/xl_unet", xl);
    let mask = ["--mask", "mask.png", "--no-keep-unmasked"];
    let cases: [(&str, &[&str]); 3] = [
        ("trained", &["--model", "sd1"]),
        ("trained_half", &["--model", "sd1", "--strength", "0.5", "--scheduler", "euler"]),
        ("xl_trained", &["--model", "xl", "--strength", "1"]),
    ];
    for (case, flags) in cases {
        let expected = write_inputs(&workplace, "inpainting", case);
        check(&workplace, case, &expected, &[flags, &mask].concat());
    }
}

#[test]
fn what_does_not_go_with_the_model_is_refused() {
    let workplace = Workplace::new();
    make_model(
        &workplace,
        "editing",
        "text_to_image/sd1",
        "instruct_pix2pix/sd1_unet",
        "StableDiffusionInstructPix2PixPipeline",
    );
    make_model(
        &workplace,
        "inpainting",
        "text_to_image/sd1",
        "inpainting/sd1_unet",
        "StableDiffusionInpaintPipeline",
    );
    RgbImage::new(32, 32).save(workplace.path("in.png")).unwrap();
    GrayImage::new(32, 32).save(workplace.path("mask.png")).unwrap();
    let refuse = |model: &str, flags: &[&str], culprits: &[&str]| {
        workplace.refuse([&["generate", PROMPT, "--model", model], flags].concat(), culprits);
    };
    let image = ["--init-image", "in.png"];
    let and = |flags: &[&'static str]| [&image[..], flags].concat();
    refuse("editing", &[], &["editing edits pictures", "--init-image"]);
    refuse("editing", &and(&["--mask", "mask.png"]), &["--mask", "editing edits whole pictures"]);
    refuse("editing", &and(&["--strength", "0.5"]), &["--strength", "editing edits pictures"]);
    let net = format!("{PARITY}/control_net/sd1:in.png");
    let control = [&image[..], &["--control", &net]].concat();
    refuse("editing", &control, &["--control", "editing edits pictures"]);
    refuse("editing", &and(&["--image-guidance-scale", "inf"]), &["--image-guidance-scale is inf", "finite"]);
    refuse("inpainting", &[], &["inpainting was trained to paint into pictures", "--init-image", "--mask"]);
    refuse("inpainting", &image, &["inpainting was trained to paint into pictures", "--mask"]);
    let plain = format!("{PARITY}/text_to_image/sd1");
    refuse(&plain, &and(&["--image-guidance-scale", "2"]), &["--image-guidance-scale", "sd1 does not"]);
    let xl = "StableDiffusionXLPipeline";
    make_model(&workplace, "xl-editing", "stable_diffusion_xl/base", "instruct_pix2pix/xl_unet", xl);
    make_model(&workplace, "xl-inpainting", "stable_diffusion_xl/base", "inpainting/xl_unet", xl);
    let base = format!("{PARITY}/stable_diffusion_xl/base");
    refuse(&base, &["--refiner", "xl-editing"], &["xl-editing", "cannot refine", "editing by instructions"]);
    refuse(&base, &["--refiner", "xl-inpainting"], &["xl-inpainting", "cannot refine", "inpainting"]);
    let run = workplace.run(["generate", PROMPT, "--model", "editing", "--image-guidance-scale", "2"]);
    assert_eq!(run.status, Some(2), "{}", run.stderr);
}
