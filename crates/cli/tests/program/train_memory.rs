//! `diffuse train` with less memory: gradient checkpointing and mixed precision.

use std::fs;

use image::{Rgb, RgbImage};

use crate::program::{Workplace, shapes};

const RECIPES: [&[&str]; 5] = [
    &["text-to-image-lora", "--train_text_encoder", "--lora_dropout", "0.2"],
    &["text-to-image", "--use_8bit_adam", "--train_text_encoder"],
    &["instruct-pix2pix"],
    &["controlnet"],
    &["textual-inversion", "--placeholder_token", "<shade>", "--initializer_token", "red"],
];

fn workplace() -> Workplace {
    let workplace = Workplace::new();
    let data = workplace.path("data");
    fs::create_dir(&data).unwrap();
    let mut rows = String::new();
    for index in 0..2u8 {
        let name = format!("{index}.png");
        RgbImage::from_pixel(64, 64, Rgb([90, 80 * index, 200])).save(data.join(&name)).unwrap();
        rows += &format!(
            "{{\"file_name\": \"{name}\", \"text\": \"a <shade>\", \"edit_prompt\": \"darker\", \"input_image\": \"{name}\", \"edited_image\": \"{name}\", \
             \"conditioning_image\": \"{name}\"}}\n"
        );
    }
    fs::write(data.join("metadata.jsonl"), rows).unwrap();
    workplace
}

/// The losses of two steps.
fn losses(workplace: &Workplace, recipe: &[&str], flags: &[&str]) -> Vec<f64> {
    let model = shapes().display().to_string();
    let fixed =
        ["--pretrained_model_name_or_path", &model, "--train_data_dir", "data", "--output_dir", "out"];
    let steps = ["--max_train_steps", "2", "--learning_rate", "1e-3"];
    workplace.succeed([&["train"], recipe, &fixed, &steps, flags].concat());
    let log = fs::read_to_string(workplace.path("out/log.jsonl")).unwrap();
    fs::remove_dir_all(workplace.path("out")).unwrap();
    let loss =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap();
    log.lines().map(loss).collect()
}

#[test]
fn blocks_are_computed_again_and_losses_stay() {
    let workplace = workplace();
    for recipe in RECIPES {
        let kept = losses(&workplace, recipe, &[]);
        let again = losses(&workplace, recipe, &["--gradient_checkpointing"]);
        assert_eq!(kept.len(), 2);
        for (kept, again) in kept.iter().zip(&again) {
            assert!((kept / again - 1.0).abs() < 1e-4, "{recipe:?}: {kept} and {again}");
        }
    }
}

#[test]
fn models_compute_in_bfloat16_and_train_in_float32() {
    let workplace = workplace();
    for recipe in RECIPES {
        let (single, half) =
            (losses(&workplace, recipe, &[]), losses(&workplace, recipe, &["--mixed_precision", "bf16"]));
        for (single, half) in single.iter().zip(&half) {
            let difference = (single / half - 1.0).abs();
            assert!(difference > 0.0 && difference < 0.05, "{recipe:?}: {single} and {half}");
        }
    }
    let recipe = ["train", "text-to-image", "--train_data_dir", "data", "--output_dir", "out"];
    let model = shapes().display().to_string();
    let flags =
        ["--pretrained_model_name_or_path", &model, "--max_train_steps", "1", "--mixed_precision", "bf16"];
    workplace.succeed([&recipe[..], &flags].concat());
    let inspected = workplace.succeed(["inspect", "out/model/unet", "--json"]).stdout;
    assert!(inspected.contains("F32") || inspected.contains("float32"), "{inspected}");
}

#[test]
fn a_model_without_a_text_computes_in_bfloat16() {
    let workplace = workplace();
    let config =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity/unconditional/ddpm/unet/config.json");
    let losses = |more: &[&str]| {
        let fixed = ["train", "unconditional", "--train_data_dir", "data", "--output_dir", "out"];
        let flags = ["--model_config_name_or_path", config, "--max_train_steps", "2"];
        workplace.succeed([&fixed[..], &flags, more].concat());
        fs::read_to_string(workplace.path("out/log.jsonl")).unwrap()
    };
    assert!(losses(&[]) != losses(&["--mixed_precision", "bf16"]));
}
