//! `diffuse generate` with Stable Diffusion XL and its refiner: pictures beside those of the reference library, and what is refused.

use std::path::PathBuf;

use candle_diffusers_test_support::Fixture;
use serde_json::{Value, json};

use crate::program::{Workplace, copy_folder, shapes};

/// Of 255; see "What never bends".
const PIXEL_BOUND: f64 = 2.0;
const PROMPT: &str = "a large red circle on a blue background";

/// The parity fixtures of the pipelines: tiny models and the reference's pictures.
fn fixtures() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity/stable_diffusion_xl"))
}

fn model(name: &str) -> String {
    fixtures().join(name).display().to_string()
}

/// Paints with the tiny base, and says how far the worst pixel is from the reference's picture of this case.
#[track_caller]
fn check(workplace: &Workplace, case: &str, flags: &[&str]) {
    let (base, size) = (model("base"), ["--width", "32", "--height", "32"]);
    let common = ["generate", PROMPT, "--model", &base, "--seed", "0", "--dtype", "f32"];
    let size = if flags.contains(&"--init-image") { &[][..] } else { &size };
    workplace.succeed([&common[..], size, flags].concat());
    let picture = image::open(workplace.path("out.png")).unwrap().to_rgb8();
    let fixture = Fixture::open(fixtures().join("stable_diffusion_xl.safetensors"));
    let expected = fixture.values(&format!("{case}.pictures"));
    assert_eq!(picture.as_raw().len(), expected.len(), "{case}");
    let differences = picture.as_raw().iter().zip(expected).map(|(a, e)| (f64::from(*a) - e).abs());
    let worst = differences.fold(0.0, f64::max);
    assert!(worst <= PIXEL_BOUND, "{case}: a pixel is {worst} of 255 away");
}

#[test]
fn every_flag_paints_what_the_reference_paints() {
    let workplace = Workplace::new();
    let sizes =
        ["--original-size", "768x512", "--crops-coords-top-left", "16,100", "--target-size", "960x1024"];
    let negative_sizes = [
        "--original-size",
        "1024x1024",
        "--negative-original-size",
        "48x64",
        "--negative-crops-coords-top-left",
        "8,9",
        "--negative-target-size",
        "1001x1000",
    ];
    let lora = model("lora.safetensors");
    let cases: [(&str, &[&str]); 9] = [
        ("euler", &[]),
        ("dpmpp_2m_karras", &["--scheduler", "dpmpp-2m-karras"]),
        ("second_prompt", &["--prompt-2", "oil on canvas"]),
        ("empty_negative_prompt", &["--negative-prompt", ""]),
        ("guidance_off", &["--guidance-scale", "1", "--negative-prompt", "blurry"]),
        ("rescaled_guidance", &["--guidance-scale", "9", "--guidance-rescale", "0.7"]),
        ("sizes", &sizes),
        ("negative_sizes", &negative_sizes),
        ("lora", &["--lora", &lora, "--negative-prompt", "blurry"]),
    ];
    for (case, flags) in cases {
        check(&workplace, case, &[&["--steps", "4"], flags].concat());
    }
}

#[test]
fn a_refined_picture_is_the_references_and_carries_what_it_was_made_with() {
    let workplace = Workplace::new();
    let refiner = model("refiner");
    let refined = ["--refiner", &refiner, "--steps", "10"];
    check(&workplace, "refined_euler", &refined);
    check(&workplace, "refined_euler", &[&refined[..], &["--low-memory"]].concat());
    let with_flags =
        ["--refiner", &refiner, "--denoising-split", "0.7", "--steps", "7", "--scheduler", "dpmpp-2m"];
    check(&workplace, "refined_dpmpp_2m", &with_flags);
    let run = workplace.succeed(["inspect", "out.png", "--json"]);
    let parameters = serde_json::from_str::<Value>(&run.stdout).unwrap()["parameters"].take();
    let expected = json!({
        "prompt": PROMPT, "Steps": "7", "Sampler": "DPM++ 2M", "CFG scale": "5", "Seed": "0", "Size": "32x32", "Model": "base",
        "Refiner": "refiner", "Refiner switch at": "0.7", "Version": "diffuse 0.1.0",
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&parameters[key], value, "{key}: {parameters}");
    }
}

#[test]
fn low_memory_changes_no_bit_of_any_picture() {
    let workplace = Workplace::new();
    let (base, refiner) = (model("base"), model("refiner"));
    let common = ["generate", "--model", &base, "--refiner", &refiner, "--steps", "5", "--seed", "3"];
    let flags = ["--num-images", "2", "--scheduler", "euler-ancestral", "--prompt", "a red circle"];
    workplace.succeed([&common[..], &flags, &["--output", "both.png"]].concat());
    workplace.succeed([&common[..], &flags, &["--output", "low.png", "--low-memory"]].concat());
    assert_eq!(workplace.names(), ["both-0.png", "both-1.png", "low-0.png", "low-1.png"]);
    for index in ["0", "1"] {
        let [both, low] = ["both", "low"]
            .map(|name| std::fs::read(workplace.path(&format!("{name}-{index}.png"))).unwrap());
        assert!(both == low, "picture {index}");
    }
}

#[test]
fn embeddings_reach_base_and_refiner() {
    let workplace = Workplace::new();
    let (base, refiner) = (model("base"), model("refiner"));
    let embedding = format!("{}:<cat>", model("embedding.safetensors"));
    for low_memory in [&[][..], &["--low-memory"]] {
        let flags = ["generate", "a <cat>", "--model", &base, "--refiner", &refiner, "--steps", "5"];
        workplace.succeed([&flags[..], &["--seed", "1", "--embedding", &embedding], low_memory].concat());
    }
}

#[test]
fn the_second_negative_prompt_changes_the_picture() {
    let workplace = Workplace::new();
    let base = model("base");
    let paint = |flags: &[&str]| {
        let common = ["generate", PROMPT, "--model", &base, "--negative-prompt", "blurry", "--steps", "3"];
        workplace.succeed([&common[..], &["--seed", "1"], flags].concat());
        image::open(workplace.path("out.png")).unwrap().to_rgb8()
    };
    let usual = paint(&[]);
    assert!(usual == paint(&["--negative-prompt-2", "blurry"]));
    assert!(usual != paint(&["--negative-prompt-2", "a square on canvas"]));
}

#[test]
fn a_refiner_alone_paints_from_a_picture() {
    let workplace = Workplace::new();
    let refiner = model("refiner");
    image::RgbImage::from_pixel(40, 32, image::Rgb([200, 30, 30])).save(workplace.path("red.png")).unwrap();
    let flags = ["generate", "a star", "--model", &refiner, "--init-image", "red.png", "--steps", "5"];
    let scores = ["--aesthetic-score", "8.5", "--negative-aesthetic-score", "1"];
    workplace.succeed([&flags[..], &scores, &["--seed", "1"]].concat());
    let picture = image::open(workplace.path("out.png")).unwrap().to_rgb8();
    assert_eq!(picture.dimensions(), (40, 32));
    let run = workplace.succeed(["inspect", "out.png"]);
    assert!(run.stdout.contains("8.5"), "{}", run.stdout);
}

#[test]
fn what_cannot_be_is_told_in_one_line() {
    let workplace = Workplace::new();
    let (base, refiner, sd1) = (model("base"), model("refiner"), shapes().display().to_string());
    let refuse = |flags: &[&str], culprits: &[&str]| {
        workplace.refuse([&["generate", "a star", "--steps", "5"][..], flags].concat(), culprits);
    };
    refuse(&["--prompt-2", "b"], &["--prompt-2", "two text encoders"]);
    refuse(&["--model", &sd1, "--negative-prompt-2", "b"], &["--negative-prompt-2", &sd1]);
    refuse(&["--original-size", "8x8"], &["--original-size", "Stable Diffusion XL"]);
    refuse(&["--aesthetic-score", "6"], &["--aesthetic-score", "Stable Diffusion XL"]);
    refuse(&["--model", &base, "--aesthetic-score", "nan"], &["--aesthetic-score", "NaN"]);
    refuse(&["--model", &refiner], &[&refiner, "refiner", "--init-image"]);
    refuse(&["--model", &base, "--refiner", &sd1], &[&sd1, "StableDiffusionPipeline", "Stable Diffusion XL"]);
    refuse(&["--refiner", &refiner], &[&refiner, "StableDiffusionPipeline"]);
    refuse(&["--model", &base, "--refiner", "nowhere"], &["nowhere"]);
    refuse(&["--model", &base, "--refiner", ""], &["--refiner is empty"]);
    for split in ["0", "1", "1.5", "-0.5", "nan"] {
        let flags = ["--model", &base, "--refiner", &refiner, "--denoising-split", split];
        refuse(&flags, &["--denoising-split", "more than 0 and less than 1"]);
    }
    // Of so few steps one of both models is left none.
    refuse(
        &["--model", &base, "--refiner", &refiner, "--denoising-split", "0.01"],
        &["--denoising-split is 0.01", "5 steps", "leaves base none"],
    );
    for low_memory in [&[][..], &["--low-memory"]] {
        let flags = ["--model", &base, "--refiner", &refiner, "--denoising-split", "0.9999"];
        refuse(
            &[&flags[..], low_memory].concat(),
            &["--denoising-split is 0.9999", "5 steps", "leaves refiner none"],
        );
    }
    image::RgbImage::new(32, 32).save(workplace.path("in.png")).unwrap();
    let weak = ["--model", &base, "--refiner", &refiner, "--init-image", "in.png", "--strength", "0.2"];
    refuse(&weak, &["--denoising-split is 0.8", "leaves base none", "strength of 0.2"]);
    // The refiner is loaded when the base has painted, which prints the seed: not so far here.
    copy_folder(&fixtures().join("refiner"), &workplace.path("torn"));
    let weights = workplace.path("torn/unet/diffusion_pytorch_model.safetensors");
    std::fs::write(&weights, &std::fs::read(&weights).unwrap()[..1000]).unwrap();
    let torn = ["--model", &base, "--refiner", "torn", "--low-memory"];
    refuse(&torn, &["torn/unet/diffusion_pytorch_model.safetensors"]);
    let wrong = [
        &["--original-size", "8"][..],
        &["--target-size", "8,8"],
        &["--crops-coords-top-left", "8x8"],
        &["--denoising-split", "0.5"],
        &["--low-memory"],
    ];
    for flags in wrong {
        let run = workplace.run([&["generate", "a star", "--model", &base][..], flags].concat());
        assert_eq!(run.status, Some(2), "{flags:?}: {}", run.stderr);
    }
}
