//! `diffuse generate --control`: pictures beside those of the reference library, edges, and what is refused.

use std::fs;

use candle_diffusers_test_support::Fixture;
use image::{DynamicImage, Rgb, RgbImage};
use serde_json::Value;

use crate::program::{Workplace, shapes};

const PROMPT: &str = "a large red circle on a blue background";
const PARITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity");
const SETTINGS: [&str; 8] = ["--steps", "5", "--guidance-scale", "4", "--seed", "0", "--dtype", "f32"];

fn model(name: &str) -> String {
    let folder = if name == "xl" { "stable_diffusion_xl/base" } else { "text_to_image/sd1" };
    format!("{PARITY}/{folder}")
}

fn net(name: &str) -> String {
    format!("{PARITY}/control_net/{name}")
}

fn fixture() -> Fixture {
    Fixture::open(format!("{PARITY}/control_net/control_net.safetensors"))
}

/// Writes a picture of a case to a file.
fn write(workplace: &Workplace, fixture: &Fixture, tensor: &str, name: &str) {
    let dims = fixture.get(tensor).dims().to_vec();
    let bytes = fixture.values(tensor).into_iter().map(|value| value as u8).collect();
    let (height, width) = (dims[1] as u32, dims[2] as u32);
    let picture: DynamicImage = match dims.len() {
        3 => image::GrayImage::from_raw(width, height, bytes).unwrap().into(),
        _ => RgbImage::from_raw(width, height, bytes).unwrap().into(),
    };
    picture.save(workplace.path(name)).unwrap();
}

fn pixels(workplace: &Workplace, name: &str) -> RgbImage {
    image::open(workplace.path(name)).unwrap().to_rgb8()
}

#[test]
fn every_flag_paints_what_the_reference_paints() {
    let (workplace, fixture) = (Workplace::new(), fixture());
    let (sd1, other, xl) = (net("sd1"), net("sd1_other"), net("xl"));
    let first = |net: &str, scale: &str| format!("{net}:control-0.png{scale}");
    let second = |net: &str, scale: &str| format!("{net}:control-1.png{scale}");
    let size = ["--width", "32", "--height", "32"];
    let image = ["--init-image", "image.png"];
    let cases: [(&str, &str, Vec<String>, Vec<&str>); 12] = [
        ("plain", "sd1", vec![first(&sd1, "")], size.to_vec()),
        ("default_size", "sd1", vec![first(&sd1, ":1")], vec![]),
        ("scaled", "sd1", vec![first(&sd1, ":0.6")], [&size[..], &["--scheduler", "euler"]].concat()),
        ("two_nets", "sd1", vec![first(&sd1, ":0.7"), second(&other, ":1.2")], size.to_vec()),
        (
            "one_net_twice",
            "sd1",
            vec![first(&sd1, ":0.5"), second(&sd1, ":-0.5")],
            [
                &size[..],
                &["--control-start", "0", "--control-start", "0.2"],
                &["--control-end", "0.7", "--control-end", "1"],
            ]
            .concat(),
        ),
        ("guess", "sd1", vec![first(&sd1, ":0.8")], [&size[..], &["--guess-mode"]].concat()),
        ("image", "sd1", vec![first(&sd1, "")], [&image[..], &["--strength", "0.8"]].concat()),
        (
            "inpainting",
            "sd1",
            vec![first(&sd1, "")],
            [&image[..], &["--mask", "mask.png", "--no-keep-unmasked"]].concat(),
        ),
        (
            "inpainting_crop",
            "sd1",
            vec![first(&sd1, "")],
            [&image[..], &size, &["--mask", "mask.png", "--padding-mask-crop", "3"]].concat(),
        ),
        ("xl", "xl", vec![first(&xl, "")], size.to_vec()),
        (
            "xl_guess",
            "xl",
            vec![first(&xl, ":0.8")],
            [&size[..], &["--guess-mode", "--control-start", "0.2"]].concat(),
        ),
        (
            "xl_inpainting",
            "xl",
            vec![first(&xl, "")],
            [&image[..], &["--mask", "mask.png", "--no-keep-unmasked"]].concat(),
        ),
    ];
    for (case, model_name, controls, flags) in cases {
        for (tensor, file) in [
            ("control.0", "control-0.png"),
            ("control.1", "control-1.png"),
            ("image", "image.png"),
            ("mask", "mask.png"),
        ] {
            let tensor = format!("{case}.{tensor}");
            if fixture.contains(&tensor) {
                write(&workplace, &fixture, &tensor, file);
            }
        }
        let model = model(model_name);
        let controls: Vec<&str> = controls.iter().flat_map(|control| ["--control", control]).collect();
        workplace
            .succeed([&["generate", PROMPT, "--model", &model], &SETTINGS[..], &controls, &flags].concat());
        let picture = pixels(&workplace, "out.png");
        let expected = fixture.values(&format!("{case}.pictures"));
        assert_eq!(picture.as_raw().len(), expected.len(), "{case}");
        let differences = picture.as_raw().iter().zip(expected).map(|(a, e)| (f64::from(*a) - e).abs());
        let worst = differences.fold(0.0, f64::max);
        assert!(worst <= 2.0, "{case}: a pixel is {worst} of 255 away");
    }
}

/// Red on blue, with a fine pattern in the blue.
fn square() -> RgbImage {
    RgbImage::from_fn(48, 40, |x, y| match (12..36).contains(&x) && (10..30).contains(&y) {
        true => Rgb([250, 30, 20]),
        false => Rgb([10, 10, 90 + 4 * (x % 2) as u8]),
    })
}

#[test]
fn edges_are_found_and_the_picture_says_how_it_was_made() {
    let workplace = Workplace::new();
    let picture = square();
    picture.save(workplace.path("square.png")).unwrap();
    candle_diffusers_pipelines::canny(&picture, 50.0, 100.0)
        .unwrap()
        .save(workplace.path("edges.png"))
        .unwrap();
    let (model, net) = (model("sd1"), net("sd1"));
    let paint = |flags: &[&str]| {
        workplace.succeed([&["generate", PROMPT, "--model", &model], &SETTINGS[..], flags].concat());
        pixels(&workplace, "out.png")
    };
    let (square, edges) = (format!("{net}:square.png:0.5"), format!("{net}:edges.png:0.5"));
    let found = paint(&["--control", &square, "--canny", "50,100"]);
    assert_eq!(found.dimensions(), (48, 40));
    assert!(found == paint(&["--control", &edges]));
    assert!(found != paint(&["--control", &square]));
    let both = ["--control", &square, "--control", &edges, "--canny", "50,100", "--canny", "none"];
    paint(&[&both[..], &["--control-end", "0.6", "--guess-mode"]].concat());
    let run = workplace.succeed(["inspect", "out.png", "--json"]);
    let parameters = &serde_json::from_str::<Value>(&run.stdout).unwrap()["parameters"];
    let expected = "Module: canny, Model: sd1, Weight: 0.5, Threshold A: 50, Threshold B: 100, Guidance Start: 0, Guidance End: 0.6";
    assert_eq!(parameters["ControlNet 0"], expected);
    assert_eq!(
        parameters["ControlNet 1"],
        "Module: none, Model: sd1, Weight: 0.5, Guidance Start: 0, Guidance End: 0.6"
    );
    assert_eq!(parameters["Guess mode"], "true");
}

#[test]
fn a_control_picture_may_be_grey_or_of_16_bits_or_have_transparency() {
    let workplace = Workplace::new();
    let grey = DynamicImage::from(square()).to_luma8();
    let pictures: [(&str, DynamicImage); 4] = [
        ("rgb.png", DynamicImage::from(grey.clone()).to_rgb8().into()),
        ("grey.png", grey.clone().into()),
        ("deep.png", DynamicImage::from(grey.clone()).to_luma16().into()),
        ("clear.png", DynamicImage::from(grey).to_rgba8().into()),
    ];
    let (model, net) = (model("sd1"), net("sd1"));
    let paint = |(name, picture): &(&str, DynamicImage)| {
        picture.save(workplace.path(name)).unwrap();
        let control = format!("{net}:{name}");
        let flags = ["generate", PROMPT, "--model", &model, "--control", &control];
        workplace.succeed([&flags[..], &SETTINGS].concat());
        pixels(&workplace, "out.png")
    };
    let [first, others @ ..] = pictures.each_ref().map(paint);
    assert!(others.iter().all(|other| *other == first));
}

#[test]
fn a_single_file_is_the_folder_it_was_converted_from() {
    let workplace = Workplace::new();
    square().save(workplace.path("square.png")).unwrap();
    let (model, folder) = (model("sd1"), net("sd1"));
    workplace.succeed(["convert", &folder, "net.safetensors"]);
    let paint = |net: &str, heads: &[&str]| {
        let control = format!("{net}:square.png");
        let flags = ["generate", PROMPT, "--model", &model, "--control", &control];
        workplace.succeed([&flags[..], &SETTINGS, heads].concat());
        pixels(&workplace, "out.png")
    };
    let expected = paint(&folder, &[]);
    assert!(expected == paint("net.safetensors", &["--attention-heads", "2"]));
    assert!(expected != paint("net.safetensors", &["--attention-heads", "4"]));
    // As many heads where layers are 8 wide, but more where they are 16.
    assert!(expected != paint("net.safetensors", &["--attention-head-dim", "4"]));
}

#[test]
fn what_cannot_be_painted_is_refused() {
    let workplace = Workplace::new();
    square().save(workplace.path("square.png")).unwrap();
    RgbImage::new(3, 8).save(workplace.path("small.png")).unwrap();
    fs::write(workplace.path("text.png"), "no picture").unwrap();
    let (sd1, xl) = (model("sd1"), model("xl"));
    let (sd1_net, xl_net) = (format!("{}:square.png", net("sd1")), format!("{}:square.png", net("xl")));
    let refuse = |model: &str, flags: &[&str], culprits: &[&str]| {
        workplace.refuse([&["generate", PROMPT, "--model", model, "--steps", "2"], flags].concat(), culprits);
    };
    refuse(
        &xl,
        &["--control", &sd1_net],
        &["control_net/sd1", "for Stable Diffusion 1 or 2", "Stable Diffusion XL"],
    );
    refuse(
        &sd1,
        &["--control", &xl_net],
        &["control_net/xl", "for Stable Diffusion XL", "Stable Diffusion 1 or 2"],
    );
    let shapes = shapes().display().to_string();
    refuse(&shapes, &["--control", &sd1_net], &["control_net/sd1", "another family"]);
    let unet = format!("{sd1}/unet:square.png");
    refuse(
        &sd1,
        &["--control", &unet],
        &["text_to_image/sd1/unet", "UNet2DConditionModel", "ControlNetModel"],
    );
    refuse(
        &sd1,
        &["--control", &format!("{sd1}:square.png")],
        &["text_to_image/sd1", "whole model", "ControlNet"],
    );
    refuse(&sd1, &["--control", "missing:square.png"], &["missing", "no such file or folder"]);
    refuse(&sd1, &["--control", "owner/net:square.png"], &["owner/net", "no such file or folder"]);
    refuse(&sd1, &["--control", &net("sd1")], &["--control", "the picture is missing"]);
    refuse(
        &sd1,
        &["--control", &format!("{}:missing.png", net("sd1"))],
        &["--control", "no picture missing.png"],
    );
    refuse(&sd1, &["--control", &format!("{sd1_net}:strong")], &["--control", "\"strong\" is no number"]);
    refuse(&sd1, &["--control", &format!("{}:text.png", net("sd1"))], &["text.png", "PNG, JPEG or WebP"]);
    refuse(&sd1, &["--control", &format!("{}:small.png", net("sd1"))], &["width", "is 0", "multiple of 4"]);
    let two = ["--control", &sd1_net, "--control", &sd1_net];
    let three_starts =
        [&two[..], &["--control-start", "0", "--control-start", "0", "--control-start", "0"]].concat();
    refuse(&sd1, &three_starts, &["--control-start is given 3 times", "2 times"]);
    refuse(&sd1, &["--control", &sd1_net, "--control-start", "1"], &["--control-start is 1"]);
    refuse(&sd1, &["--control", &sd1_net, "--control-end", "NaN"], &["--control-end is NaN"]);
    let backwards = ["--control", &sd1_net, "--control-start", "0.5", "--control-end", "0.5"];
    refuse(&sd1, &backwards, &["--control-end is 0.5", "--control-start"]);
    for flags in [&["--guess-mode"][..], &["--canny", "1,2"], &["--control", &sd1_net, "--canny", "2,1"]] {
        let run = workplace.run([&["generate", PROMPT, "--model", &sd1], flags].concat());
        assert_eq!(run.status, Some(2), "{}", run.stderr);
    }
}
