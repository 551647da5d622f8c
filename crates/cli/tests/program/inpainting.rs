//! `diffuse generate --init-image --mask` and `--outpaint`.

use candle_diffusers_test_support::Fixture;
use image::{GrayImage, Luma, Rgb, RgbImage};
use serde_json::Value;

use crate::program::Workplace;
use crate::shapes::colour;

const STAR: &str = "a large white star in the center on a blue background";
const BLUE: Rgb<u8> = Rgb([40, 80, 220]);
const FLAGS: [&str; 8] = ["--steps", "20", "--guidance-scale", "4", "--seed", "3", "--dtype", "f32"];

fn pixels(workplace: &Workplace, name: &str) -> RgbImage {
    image::open(workplace.path(name)).unwrap().to_rgb8()
}

/// White in the middle 44 by 44 pixels.
fn middle(x: u32, y: u32) -> bool {
    (10..54).contains(&x) && (10..54).contains(&y)
}

fn workplace() -> Workplace {
    let workplace = Workplace::new();
    // With something that no model paints, to know it again.
    let blue = RgbImage::from_fn(64, 64, |x, y| if (x + y) % 16 == 0 { Rgb([45, 85, 215]) } else { BLUE });
    blue.save(workplace.path("blue.png")).unwrap();
    let mask = GrayImage::from_fn(64, 64, |x, y| Luma([if middle(x, y) { 255 } else { 0 }]));
    mask.save(workplace.path("mask.png")).unwrap();
    workplace
}

#[test]
fn a_star_comes_where_the_mask_is() {
    let workplace = workplace();
    let paint = |flags: &[&str]| {
        let fixed = ["generate", STAR, "--init-image", "blue.png", "--mask", "mask.png"];
        workplace.succeed([&fixed[..], &FLAGS, flags].concat());
        pixels(&workplace, "out.png")
    };
    let (blue, star) = (pixels(&workplace, "blue.png"), paint(&[]));
    assert_eq!(colour(&star, 28, 28, 7), "white");
    let differs = |picture: &RgbImage, inside: bool| {
        let places = (0..64).flat_map(|y| (0..64).map(move |x| (x, y)));
        places
            .filter(|(x, y)| middle(*x, *y) == inside && picture.get_pixel(*x, *y) != blue.get_pixel(*x, *y))
            .count()
    };
    assert_eq!(differs(&star, false), 0);
    assert!(differs(&star, true) > 1000);
    // All of it through the model: the colour stays, but not the pixels.
    let through = paint(&["--no-keep-unmasked"]);
    assert!(differs(&through, false) > 1000);
    assert_eq!(colour(&through, 0, 0, 5), "blue");
    assert!(star == paint(&["--no-keep-unmasked", "--keep-unmasked"]));
    assert!(star == paint(&["--strength", "1"]) && star != paint(&["--strength", "0.5"]));
    // A soft mask begins within and reaches out of the hard one.
    paint(&["--mask-blur", "3e9"]);
    let soft = paint(&["--mask-blur", "3"]);
    assert!(differs(&soft, false) > 0 && soft.get_pixel(0, 0) == blue.get_pixel(0, 0));

    let run = workplace.succeed(["inspect", "out.png", "--json"]);
    let inspected: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(inspected["parameters"]["Denoising strength"], "1");
}

#[test]
fn a_small_part_is_painted_in_full_size() {
    let workplace = workplace();
    RgbImage::from_pixel(150, 90, BLUE).save(workplace.path("wide.png")).unwrap();
    let mask = GrayImage::from_fn(150, 90, |x, y| {
        Luma([if (100..130).contains(&x) && (20..50).contains(&y) { 255 } else { 0 }])
    });
    mask.save(workplace.path("corner.png")).unwrap();
    let flags = ["--init-image", "wide.png", "--mask", "corner.png", "--padding-mask-crop", "8"];
    workplace.succeed([&["generate", STAR][..], &flags, &FLAGS].concat());
    let painted = pixels(&workplace, "out.png");
    assert_eq!(painted.dimensions(), (150, 90));
    assert_eq!(colour(&painted, 111, 31, 7), "white");
    assert!((0..90).all(|y| (0..100).all(|x| *painted.get_pixel(x, y) == BLUE)));
}

#[test]
fn a_picture_grows() {
    let workplace = workplace();
    let flags = ["--init-image", "blue.png", "--outpaint", "6,0,14,3", "--steps", "10"];
    workplace.succeed([&["generate", STAR][..], &flags].concat());
    let (grown, blue) = (pixels(&workplace, "out.png"), pixels(&workplace, "blue.png"));
    // No multiple of the model's factor: what is new is painted a little smaller.
    assert_eq!(grown.dimensions(), (84, 67));
    assert!(blue.enumerate_pixels().all(|(x, y, pixel)| grown.get_pixel(x + 6, y) == pixel));
    workplace.succeed([&["generate", STAR][..], &flags, &["--width", "64", "--height", "32"]].concat());
    assert_eq!(pixels(&workplace, "out.png").dimensions(), (64, 32));
}

#[test]
fn each_of_several_pictures_is_that_of_its_seed() {
    let workplace = workplace();
    let flags =
        ["--init-image", "blue.png", "--mask", "mask.png", "--steps", "4", "--scheduler", "euler-ancestral"];
    let generate = |more: &[&str]| workplace.succeed([&["generate", STAR][..], &flags, more].concat());
    generate(&["--seed", "7", "--num-images", "2"]);
    generate(&["--seed", "8"]);
    assert!(pixels(&workplace, "out-1.png") == pixels(&workplace, "out.png"));
}

#[test]
fn a_base_and_its_refiner_paint_what_the_reference_paints() {
    let parity = concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity");
    let fixture = Fixture::open(format!("{parity}/inpainting/inpainting.safetensors"));
    let bytes = |name: &str| -> Vec<u8> {
        let values = fixture.values(&format!("refined.EulerDiscreteScheduler.{name}"));
        values.into_iter().map(|value| value as u8).collect()
    };
    let workplace = Workplace::new();
    let picture = RgbImage::from_raw(32, 32, bytes("image")).unwrap();
    picture.save(workplace.path("in.png")).unwrap();
    GrayImage::from_raw(32, 32, bytes("mask")).unwrap().save(workplace.path("mask.png")).unwrap();
    let [base, refiner] = ["base", "refiner"].map(|model| format!("{parity}/stable_diffusion_xl/{model}"));
    let flags = ["--init-image", "in.png", "--mask", "mask.png", "--model", &base, "--refiner", &refiner];
    let settings = ["--denoising-split", "0.6", "--steps", "5", "--guidance-scale", "4", "--seed", "0"];
    let paint = |more: &[&str]| {
        let prompt = ["generate", "a large red circle on a blue background", "--dtype", "f32"];
        let scheduler = ["--scheduler", "euler"];
        workplace.succeed([&prompt[..], &flags, &settings, &scheduler, more].concat());
        pixels(&workplace, "out.png")
    };
    let whole = paint(&["--no-keep-unmasked"]);
    let worst = whole.as_raw().iter().zip(bytes("pictures")).map(|(a, b)| a.abs_diff(b)).max();
    assert!(worst <= Some(2), "{worst:?} of 255");
    assert!(whole == paint(&["--no-keep-unmasked", "--low-memory"]));
    let kept = paint(&[]);
    let mask = image::open(workplace.path("mask.png")).unwrap().to_luma8();
    let black = mask.enumerate_pixels().filter(|(_, _, pixel)| pixel.0[0] == 0);
    assert!(black.clone().count() > 100);
    assert!(black.clone().all(|(x, y, _)| kept.get_pixel(x, y) == picture.get_pixel(x, y)));
    workplace.refuse(
        [&["generate", STAR][..], &flags, &["--padding-mask-crop", "2"]].concat(),
        &["--padding-mask-crop", "--refiner"],
    );
}

/// The usual strength of 0.9999 takes away one step; where the base has only that, it is 1.
#[test]
fn two_steps_are_one_for_the_base_and_one_for_its_refiner() {
    let workplace = workplace();
    let parity = concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity/stable_diffusion_xl");
    let [base, refiner] = ["base", "refiner"].map(|model| format!("{parity}/{model}"));
    let paint = |flags: &[&str]| {
        let models = ["--model", &base, "--refiner", &refiner, "--denoising-split", "0.5", "--seed", "1"];
        let pictures = ["--init-image", "blue.png", "--mask", "mask.png"];
        workplace.succeed([&["generate", STAR][..], &models, &pictures, flags].concat());
        let run = workplace.succeed(["inspect", "out.png", "--json"]);
        let inspected: Value = serde_json::from_str(&run.stdout).unwrap();
        (pixels(&workplace, "out.png"), inspected["parameters"]["Denoising strength"].clone())
    };
    let usual = paint(&["--steps", "2"]);
    assert_eq!(usual.1, "1");
    assert!(usual == paint(&["--steps", "2", "--strength", "1"]));
    assert_eq!(paint(&["--steps", "20"]).1, "0.9999");
}

#[test]
fn a_mask_may_be_of_any_kind_and_a_black_one_is_told_of() {
    let workplace = workplace();
    let mask = image::open(workplace.path("mask.png")).unwrap();
    mask.to_luma16().save(workplace.path("deep.png")).unwrap();
    mask.to_rgba8().save(workplace.path("clear.png")).unwrap();
    // Turned by a quarter, with a tag that says so; white is not in the middle, so that it matters.
    let half = |x: u32, y: u32| middle(x, y) && y < 32;
    let upright = GrayImage::from_fn(64, 64, |x, y| Luma([if half(x, y) { 255 } else { 0 }]));
    upright.save(workplace.path("upright.png")).unwrap();
    write_turned(&workplace, "turned.png", &image::imageops::rotate270(&upright));
    let paint = |mask: &str| {
        let flags = ["--init-image", "blue.png", "--mask", mask, "--steps", "3", "--seed", "1"];
        let run = workplace.succeed([&["generate", STAR][..], &flags].concat());
        (pixels(&workplace, "out.png"), run.stderr)
    };
    let expected = paint("mask.png");
    assert_eq!(expected.1, "wrote out.png\n");
    assert!(expected == paint("deep.png") && expected == paint("clear.png"));
    let upright = paint("upright.png");
    assert!(upright == paint("turned.png") && upright.0 != expected.0);
    // Its shape is in its transparency, which is left out.
    let shape =
        image::RgbaImage::from_fn(64, 64, |x, y| image::Rgba([0, 0, 0, 255 * u8::from(middle(x, y))]));
    shape.save(workplace.path("shape.png")).unwrap();
    let (unchanged, warning) = paint("shape.png");
    assert!(unchanged == pixels(&workplace, "blue.png"));
    assert!(warning.starts_with("warning: shape.png: is black all over"), "{warning}");
}

/// A PNG with an EXIF orientation of 6: to be turned by a quarter to the right.
fn write_turned(workplace: &Workplace, name: &str, picture: &GrayImage) {
    let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([6, 0, 0, 0, 0, 0, 0, 0]);
    let mut info = png::Info::with_size(picture.width(), picture.height());
    info.color_type = png::ColorType::Grayscale;
    info.exif_metadata = Some(exif.into());
    let file = std::fs::File::create(workplace.path(name)).unwrap();
    let mut writer = png::Encoder::with_info(file, info).unwrap().write_header().unwrap();
    writer.write_image_data(picture.as_raw()).unwrap();
}

#[test]
fn what_cannot_be_painted_is_refused() {
    let workplace = workplace();
    RgbImage::new(64, 32).save(workplace.path("flat.png")).unwrap();
    GrayImage::new(64, 64).save(workplace.path("black.png")).unwrap();
    let refuse = |flags: &[&str], culprits: &[&str]| {
        workplace.refuse([&["generate", STAR, "--init-image", "blue.png"], flags].concat(), culprits);
    };
    refuse(&["--mask", "missing.png"], &["missing.png", "cannot be read"]);
    refuse(&["--mask", "flat.png"], &["flat.png: is 64x32", "64x64", "blue.png"]);
    refuse(&["--mask", "black.png", "--padding-mask-crop", "4"], &["mask", "black all over"]);
    refuse(&["--mask", "mask.png", "--strength", "2"], &["--strength is 2", "0 to 1"]);
    refuse(&["--mask", "mask.png", "--strength", "0.01"], &["--strength is 0.01", "50 steps"]);
    refuse(&["--mask", "mask.png", "--mask-blur", "-1"], &["--mask-blur is -1"]);
    refuse(&["--outpaint", "60000,60000,0,0"], &["--outpaint", "268435456 in all"]);
    refuse(&["--outpaint", "65500,0,0,0"], &["--outpaint", "65536 pixels a side"]);
    refuse(&["--mask", "mask.png", "--width", "30"], &["width", "30", "multiple of 4"]);
    refuse(&["--no-keep-unmasked"], &["--no-keep-unmasked", "--mask"]);
    for flags in [&["--mask", "mask.png"][..], &["--init-image", "blue.png", "--outpaint", "1,2,3"]] {
        let run = workplace.run([&["generate", STAR][..], flags].concat());
        assert_eq!(run.status, Some(2), "{}", run.stderr);
    }
}
