//! `diffuse generate` with a checkpoint in one file.

use std::fs;

use candle_core::DType;
use candle_diffusers_test_support::OriginalCheckpoint;

use crate::program::{Workplace, shapes};

const PICTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity/single_file");
const LISTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../convert/tests/parity/single_file");
const FLAGS: [&str; 9] = ["generate", "a cat", "--steps", "2", "--seed", "1", "--width", "64", "--height"];

/// A small checkpoint that can paint: `sd1` or `sd2`.
pub(crate) fn paints(case: &str) -> OriginalCheckpoint {
    OriginalCheckpoint::read(format!("{PICTURES}/{case}.txt.gz"))
}

/// Any of those that conversion is tested with: small ones of all families, with another vocabulary than CLIP's, and the published
/// models' sizes.
pub(crate) fn listed(case: &str) -> OriginalCheckpoint {
    OriginalCheckpoint::read(format!("{LISTS}/{case}.txt.gz"))
}

fn paint<'a>(model: &'a str, output: &'a str) -> Vec<&'a str> {
    [&FLAGS[..], &["64", "--model", model, "--output", output]].concat()
}

#[test]
fn file_and_folder_paint_the_same_bytes() {
    for (case, dtype) in [("sd1", DType::F32), ("sd1", DType::F16), ("sd2", DType::BF16)] {
        let workplace = Workplace::new();
        paints(case).write_safetensors(workplace.path("model.safetensors"), dtype);
        paints(case).write_ckpt(workplace.path("model.ckpt"), dtype);
        workplace.succeed(["convert", "model.safetensors", "model"]);
        for (model, output) in
            [("model", "folder.png"), ("model.safetensors", "file.png"), ("model.ckpt", "pickle.png")]
        {
            workplace.succeed(paint(model, output));
        }
        // Nothing was converted on the way.
        let names = workplace.names();
        assert_eq!(
            names,
            ["file.png", "folder.png", "model", "model.ckpt", "model.safetensors", "pickle.png"]
        );
        let [folder, file, pickle] =
            ["folder.png", "file.png", "pickle.png"].map(|name| fs::read(workplace.path(name)).unwrap());
        assert!(file == folder && pickle == folder, "{case}, {dtype:?}");
    }
}

#[test]
fn what_was_assumed_is_said_and_can_be_said_otherwise() {
    let workplace = Workplace::new();
    paints("sd2").write_safetensors(workplace.path("model.safetensors"), DType::F16);
    let run = workplace.succeed(paint("model.safetensors", "usual.png"));
    assert!(run.stderr.contains("prediction type v_prediction is assumed"), "{}", run.stderr);
    assert!(run.stderr.ends_with("wrote usual.png\n"), "{}", run.stderr);
    let flags = ["--prediction-type", "epsilon"];
    let run = workplace.succeed([&paint("model.safetensors", "epsilon.png")[..], &flags].concat());
    assert!(run.stderr.contains("prediction type epsilon, as asked for"), "{}", run.stderr);
    assert!(run.stderr.contains("PNDMScheduler"), "{}", run.stderr);
    let [usual, epsilon] = ["usual.png", "epsilon.png"].map(|name| fs::read(workplace.path(name)).unwrap());
    assert!(usual != epsilon);
    // A scheduler of the user's choice has the file's settings.
    let flags = ["--scheduler", "euler"];
    workplace.succeed([&paint("model.safetensors", "euler.png")[..], &flags].concat());
}

#[test]
fn flags_of_files_do_not_go_with_folders() {
    let workplace = Workplace::new();
    let folder = shapes();
    let model = folder.to_str().unwrap();
    for flags in [&["--prediction-type", "epsilon"][..], &["--use-ema"], &["--allow-unknown"]] {
        workplace.refuse([&paint(model, "out.png")[..], flags].concat(), &[flags[0], "one file"]);
    }
    assert_eq!(
        workplace.run([&paint(model, "out.png")[..], &["--prediction-type", "v"]].concat()).status,
        Some(2)
    );
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let workplace = Workplace::new();
    let mut checkpoint = paints("sd1");
    let name = "model.diffusion_model.out.2.bias";
    checkpoint.replaced.insert(name.to_string(), vec![0.0, f32::NAN, 0.0, f32::INFINITY]);
    checkpoint.write_safetensors(workplace.path("model.safetensors"), DType::F32);
    let run = workplace.succeed(paint("model.safetensors", "out.png"));
    let warnings: Vec<&str> = run.stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
    let of_weights = format!("warning: model.safetensors: values that are infinite or not numbers in {name}");
    let of_latents =
        "warning: the latents of picture 1, in f32, are infinite or not numbers, so that it will be black";
    assert_eq!(warnings, [&of_weights, of_latents]);
    let run = workplace.succeed(["convert", "model.safetensors", "folder"]);
    assert!(run.stderr.contains(&format!("warning: values that are infinite or not numbers in {name}")));
}

#[track_caller]
fn refuse(checkpoint: &OriginalCheckpoint, culprits: &[&str]) {
    let workplace = Workplace::new();
    for name in ["model.safetensors", "model.ckpt"] {
        match name {
            "model.ckpt" => checkpoint.write_ckpt(workplace.path(name), DType::F16),
            _ => checkpoint.write_safetensors(workplace.path(name), DType::F16),
        }
        workplace.refuse(["generate", "a cat", "--model", name], &[culprits, &[name]].concat());
    }
}

#[test]
fn checkpoints_that_are_not_whole() {
    let first = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
    let attention = first.trim_end_matches("to_k.weight");
    refuse(
        &listed("small_sd1").without(attention),
        &["UNet", "5 of its 208 tensors are missing", "to_q.weight"],
    );
    let vae = "first_stage_model.";
    refuse(
        &listed("small_sd2").without(vae),
        &["Stable Diffusion 2 without vae", "first_stage_model.encoder"],
    );
    refuse(&listed("small_sd1").without("cond_stage_model."), &["without text_encoder"]);
    let mut mixed = listed("small_sd1");
    mixed.shapes.extend(listed("small_sd2").without("model.").without(vae).shapes);
    refuse(&mixed, &["mixes models", "of Stable Diffusion 1", "of Stable Diffusion 2"]);
    let mut reshaped = listed("small_sd1");
    reshaped.shapes.insert("model.diffusion_model.out.2.weight".into(), vec![4, 32, 3, 5]);
    refuse(&reshaped, &["out.2.weight", "[4, 32, 3, 5]", "[4, 32, 3, 3]"]);
    let mut unknown = listed("small_sd1");
    unknown.shapes.insert("model.diffusion_model.motion.weight".into(), vec![3]);
    refuse(&unknown, &["1 tensors have no place", "model.diffusion_model.motion.weight"]);
}

#[test]
fn files_that_are_no_whole_model() {
    let named = |names: &[&str]| OriginalCheckpoint {
        shapes: names.iter().map(|name| (name.to_string(), vec![4, 4])).collect(),
        replaced: Default::default(),
    };
    refuse(&listed("small_vae"), &["is a VAE alone", "diffuse convert"]);
    refuse(&listed("small_controlnet"), &["is a ControlNet alone"]);
    refuse(
        &listed("small_sd2").without("first_stage_model.").without("cond_stage_model."),
        &["is a UNet alone"],
    );
    refuse(&listed("small_inpainting"), &["trained to paint into pictures", "--init-image", "--mask"]);
    refuse(
        &named(&["lora_unet_conv_in.lora_down.weight", "lora_unet_conv_in.lora_up.weight"]),
        &["LoRA", "--lora"],
    );
    refuse(&named(&["emb_params"]), &["textual inversion", "--embedding"]);
    refuse(&named(&["weight"]), &["is not a checkpoint that is known"]);
}

#[test]
fn files_that_are_damaged() {
    let workplace = Workplace::new();
    let refuse = |name: &str, bytes: &[u8], culprit: &str| {
        fs::write(workplace.path(name), bytes).unwrap();
        workplace.refuse(["generate", "a cat", "--model", name], &[name, culprit]);
        workplace.refuse(["inspect", name], &[name]);
    };
    listed("small_sd1").write_safetensors(workplace.path("whole.safetensors"), DType::F16);
    listed("small_sd1").write_ckpt(workplace.path("whole.ckpt"), DType::F16);
    for ending in ["safetensors", "ckpt"] {
        let whole = fs::read(workplace.path(&format!("whole.{ending}"))).unwrap();
        for length in [1, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
            refuse(&format!("cut.{ending}"), &whole[..length], "");
        }
    }
    refuse("empty.safetensors", b"", "empty");
    refuse("empty.ckpt", b"", "empty");
    refuse("page.safetensors", b"<html>not found</html>", "not a safetensors file");
    // As torch wrote before 1.6: its number, the protocol, the system, and then the pickle that is hostile.
    let torch = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    let hostile = b"\x80\x02cposix\nsystem\nX\x02\0\0\0ls\x85R.";
    refuse("hostile.ckpt", &[&torch[..], hostile].concat(), "imports system from posix");
    workplace.refuse(
        ["generate", "a cat", "--model", "nowhere.safetensors"],
        &["nowhere.safetensors", "no such file"],
    );
}
