//! `diffuse generate --lora`.

use std::fs;
use std::path::{Path, PathBuf};

use candle_diffusers_test_support::{Fixture, values};
use serde_json::Value;

use crate::program::{Workplace, finish};

const PROMPT: &str = "a large red circle on a blue background";
const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity");

fn lora(name: &str) -> PathBuf {
    Path::new(TINY).join("lora").join(name)
}

fn model() -> String {
    format!("{TINY}/text_to_image/sd1")
}

/// Paints what the pipelines' fixture has, with these LoRAs.
fn generate(loras: &[&str]) -> Vec<String> {
    let model = model();
    let flags = [
        "--steps",
        "5",
        "--seed",
        "0",
        "--guidance-scale",
        "4",
        "--width",
        "32",
        "--height",
        "32",
        "--model",
    ];
    let mut arguments: Vec<String> =
        ["generate", PROMPT].iter().chain(&flags).map(|flag| flag.to_string()).collect();
    arguments.push(model);
    for lora in loras {
        arguments.extend(["--lora".to_string(), lora.to_string()]);
    }
    arguments
}

/// The largest difference of any two pixels, of 255.
fn difference(workplace: &Workplace, name: &str) -> f64 {
    let pixels = image::open(workplace.path("out.png")).unwrap().to_rgb8().into_raw();
    let expected = values(Fixture::open(lora("lora.safetensors")).get(name));
    assert_eq!(pixels.len(), expected.len());
    pixels.iter().zip(&expected).map(|(one, other)| (f64::from(*one) - other).abs()).fold(0.0, f64::max)
}

#[test]
fn a_picture_with_loras_is_the_one_that_the_definition_gives() {
    let workplace = Workplace::new();
    let path = |name: &str| lora(name).display().to_string();
    let run = workplace.succeed(generate(&[&path("kohya.safetensors")]));
    assert_eq!(run.stderr, "wrote out.png\n");
    assert!(difference(&workplace, "kohya") <= 2.0);

    let (first, second) =
        (format!("{}:0.6", path("diffusers.safetensors")), format!("{}:-0.3", path("peft")));
    workplace.succeed(generate(&[&first, &second]));
    assert!(difference(&workplace, "two") <= 2.0);
    let report = workplace.succeed(["inspect", "out.png", "--json"]).stdout;
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["parameters"]["prompt"], format!("{PROMPT} <lora:diffusers:0.6> <lora:peft:-0.3>"));

    workplace.succeed(generate(&[&format!("{}:0", path("kohya.safetensors"))]));
    assert!(difference(&workplace, "without") <= 2.0);
}

#[test]
fn names_with_colons_are_files() {
    let workplace = Workplace::new();
    fs::copy(lora("kohya.safetensors"), workplace.path("ink:2")).unwrap();
    workplace.succeed(generate(&["ink:2"]));
    assert!(difference(&workplace, "kohya") <= 2.0);
}

#[test]
fn loras_that_cannot_be_used() {
    let workplace = Workplace::new();
    let bytes = fs::read(lora("kohya.safetensors")).unwrap();
    fs::write(workplace.path("damaged.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    fs::write(workplace.path("text.safetensors"), "a cat").unwrap();
    fs::copy(lora("kohya.safetensors"), workplace.path("whole.safetensors")).unwrap();
    let xl = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../convert/tests/parity/lora_layouts/kohya_original_xl.safetensors"
    );
    fs::copy(xl, workplace.path("xl.safetensors")).unwrap();
    let vae = format!("{}/vae/diffusion_pytorch_model.safetensors", model());
    fs::copy(vae, workplace.path("vae.safetensors")).unwrap();
    for (lora, culprits) in [
        ("missing.safetensors", &["--lora", "missing.safetensors", "no such file"][..]),
        ("missing.safetensors:0.5", &["--lora", "missing.safetensors", "no such file"]),
        ("whole.safetensors:much", &["whole.safetensors", "\"much\"", "number"]),
        ("whole.safetensors:inf", &["whole.safetensors", "\"inf\"", "number"]),
        ("damaged.safetensors", &["damaged.safetensors"]),
        ("text.safetensors", &["text.safetensors"]),
        ("vae.safetensors", &["vae.safetensors", "not a LoRA"]),
        ("xl.safetensors", &["xl.safetensors", "looks like a LoRA for Stable Diffusion XL"]),
    ] {
        workplace.refuse(generate(&[lora]), culprits);
    }
}

#[test]
fn keys_that_match_nothing_need_a_flag() {
    let workplace = Workplace::new();
    // A file with one layer that the model has, and some of another depth.
    let mut tensors =
        candle_core::safetensors::load(lora("kohya.safetensors"), &candle_core::Device::Cpu).unwrap();
    let deep: Vec<(String, candle_core::Tensor)> = tensors
        .iter()
        .filter(|(name, _)| name.starts_with("lora_te_"))
        .map(|(name, tensor)| (name.replace("_layers_", "_layers_1"), tensor.clone()))
        .collect();
    tensors.extend(deep);
    candle_core::safetensors::save(&tensors, workplace.path("deep.safetensors")).unwrap();
    workplace.refuse(
        generate(&["deep.safetensors"]),
        &["(3)", "lora_te_text_model_encoder_layers_1", "--allow-unmatched"],
    );
    let mut arguments = generate(&["deep.safetensors"]);
    arguments.push("--allow-unmatched".to_string());
    let run = finish(&mut workplace.command(&arguments));
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains("warning: deep.safetensors: 3 keys match no layer"), "{}", run.stderr);
    assert!(difference(&workplace, "kohya") <= 2.0);
}
