//! `diffuse generate --init-image`.

use std::fs;

use image::{DynamicImage, GrayAlphaImage, ImageBuffer, Luma, Rgb, RgbImage, RgbaImage};
use serde_json::Value;

use crate::program::Workplace;
use crate::shapes::colour;

const STAR: &str = "a large white star in the center on a blue background";
const RED: &str = "a large white star in the center on a red background";
const FLAGS: [&str; 8] = ["--steps", "20", "--guidance-scale", "4", "--seed", "3", "--dtype", "f32"];

fn pixels(workplace: &Workplace, name: &str) -> RgbImage {
    image::open(workplace.path(name)).unwrap().to_rgb8()
}

/// The mean difference of two pictures' bytes.
fn difference(one: &RgbImage, other: &RgbImage) -> f64 {
    let differences = one.as_raw().iter().zip(other.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b)));
    differences.sum::<f64>() / one.as_raw().len() as f64
}

#[test]
fn a_blue_background_is_painted_red() {
    let workplace = Workplace::new();
    workplace.succeed([&["generate", STAR, "--output", "star.png"][..], &FLAGS].concat());
    let star = pixels(&workplace, "star.png");
    assert_eq!((colour(&star, 28, 28, 7), colour(&star, 0, 0, 5)), ("white", "blue"));

    let paint = |strength: &str| {
        let flags = ["generate", RED, "--init-image", "star.png", "--strength", strength];
        workplace.succeed([&flags[..], &FLAGS].concat());
        pixels(&workplace, "out.png")
    };
    let red = paint("0.9");
    assert_eq!((colour(&red, 28, 28, 7), colour(&red, 0, 0, 5)), ("white", "red"));
    // With little strength it stays what it was.
    let same = paint("0.1");
    assert_eq!(colour(&same, 0, 0, 5), "blue");
    assert!(difference(&same, &star) < 0.25 * difference(&red, &star));

    let run = workplace.succeed(["inspect", "out.png", "--json"]);
    let inspected: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(inspected["parameters"]["Denoising strength"], "0.1");
}

#[test]
fn the_default_strength_is_four_fifths() {
    let workplace = Workplace::new();
    RgbImage::from_pixel(64, 64, Rgb([200, 30, 30])).save(workplace.path("red.png")).unwrap();
    let paint = |flags: &[&str]| {
        workplace.succeed(
            [&["generate", STAR, "--init-image", "red.png", "--seed", "1", "--steps", "5"], flags].concat(),
        );
        pixels(&workplace, "out.png")
    };
    let default = paint(&[]);
    assert!(default == paint(&["--strength", "0.8"]));
    assert!(default != paint(&["--strength", "0.6"]));
}

#[test]
fn pictures_of_any_kind_and_size_are_read() {
    let workplace = Workplace::new();
    let grey = ImageBuffer::from_fn(50, 39, |x, y| Luma([(x * 5 + y) as u8]));
    let rgb: RgbImage = DynamicImage::from(grey.clone()).to_rgb8();
    let wide = ImageBuffer::from_fn(50, 39, |x, y| Luma([u16::from((x * 5 + y) as u8) * 257]));
    let transparent = RgbaImage::from_fn(50, 39, |x, y| {
        let Rgb([r, g, b]) = *rgb.get_pixel(x, y);
        image::Rgba([r, g, b, (x * 3) as u8])
    });
    let grey_alpha = GrayAlphaImage::from_fn(50, 39, |x, y| image::LumaA([grey.get_pixel(x, y).0[0], 9]));
    rgb.save(workplace.path("rgb.png")).unwrap();
    grey.save(workplace.path("grey.png")).unwrap();
    wide.save(workplace.path("wide.png")).unwrap();
    transparent.save(workplace.path("transparent.png")).unwrap();
    grey_alpha.save(workplace.path("grey-alpha.png")).unwrap();
    rgb.save(workplace.path("rgb.webp")).unwrap();
    // What it is, its content says.
    fs::copy(workplace.path("rgb.webp"), workplace.path("webp.png")).unwrap();
    let paint = |name: &str, flags: &[&str]| {
        let fixed =
            ["generate", STAR, "--init-image", name, "--seed", "1", "--steps", "4", "--strength", "0.5"];
        workplace.succeed([&fixed[..], flags].concat());
        pixels(&workplace, "out.png")
    };
    let expected = paint("rgb.png", &[]);
    // The next lower multiples of the model's factor, as in diffusers.
    assert_eq!(expected.dimensions(), (48, 36));
    for name in ["grey.png", "wide.png", "transparent.png", "grey-alpha.png", "rgb.webp", "webp.png"] {
        assert!(paint(name, &[]) == expected, "{name}");
    }
    assert_eq!(paint("rgb.png", &["--width", "64", "--height", "32"]).dimensions(), (64, 32));
}

#[test]
fn what_cannot_be_painted_from_is_refused() {
    let workplace = Workplace::new();
    RgbImage::new(64, 64).save(workplace.path("black.png")).unwrap();
    RgbImage::new(3, 64).save(workplace.path("narrow.png")).unwrap();
    fs::write(workplace.path("words.png"), "no picture").unwrap();
    let whole = fs::read(workplace.path("black.png")).unwrap();
    fs::write(workplace.path("cut.png"), &whole[..whole.len() / 2]).unwrap();
    let refuse = |flags: &[&str], culprits: &[&str]| {
        workplace.refuse([&["generate", STAR], flags].concat(), culprits);
    };
    refuse(&["--init-image", "missing.png"], &["missing.png", "cannot be read"]);
    refuse(&["--init-image", "."], &["."]);
    refuse(&["--init-image", "words.png"], &["words.png", "no PNG, JPEG or WebP"]);
    fs::copy(workplace.path("words.png"), workplace.path("words.txt")).unwrap();
    refuse(&["--init-image", "words.txt"], &["words.txt: is no PNG, JPEG or WebP picture; convert it"]);
    refuse(&["--init-image", "black.png", "--steps", "1"], &["--strength is 0.8", "1 steps"]);
    refuse(&["--init-image", "cut.png"], &["cut.png"]);
    refuse(&["--init-image", "narrow.png"], &["image", "smaller than 4x4"]);
    let with = |flag: [&'static str; 2]| [&["--init-image", "black.png"][..], &flag].concat();
    refuse(&with(["--strength", "1.5"]), &["--strength is 1.5", "0 to 1"]);
    refuse(&with(["--strength", "-1"]), &["--strength is -1", "0 to 1"]);
    refuse(&with(["--strength", "nan"]), &["--strength is NaN"]);
    refuse(&with(["--strength", "0.01"]), &["--strength is 0.01", "50 steps", "0.02"]);
    refuse(&with(["--width", "66"]), &["width", "66", "multiple of 4"]);
    let run = workplace.run(["generate", STAR, "--strength", "0.5"]);
    assert_eq!(run.status, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("--init-image"), "{}", run.stderr);
}
