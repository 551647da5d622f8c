//! `diffuse lora merge`, `extract` and `resize`: what they write paints what it should.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::DType;
use serde_json::Value;

use crate::program::Workplace;
use crate::single_file::paints;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity");
const LAYOUTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../convert/tests/parity/lora_layouts");
const KINDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../loaders/tests/parity/lora");

fn model(name: &str) -> String {
    format!("{TINY}/text_to_image/{name}")
}

/// A LoRA for the tiny model that paints.
fn lora(name: &str) -> String {
    Path::new(TINY).join("lora").join(name).display().to_string()
}

/// The picture's bytes with these LoRAs.
fn paint(workplace: &Workplace, model: &str, loras: &[&str]) -> Vec<u8> {
    let mut arguments =
        vec!["generate", "a large red circle on a blue background", "--steps", "5", "--seed", "0"];
    arguments.extend(["--guidance-scale", "4", "--width", "32", "--height", "32", "--model", model]);
    for lora in loras {
        arguments.extend(["--lora", lora]);
    }
    workplace.succeed(&arguments);
    image::open(workplace.path("out.png")).unwrap().to_rgb8().into_raw()
}

/// The largest difference of any two pixels, of 255.
fn difference(one: &[u8], other: &[u8]) -> u8 {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).map(|(one, other)| one.abs_diff(*other)).max().unwrap()
}

fn inspect(workplace: &Workplace, file: &str) -> Value {
    serde_json::from_str(&workplace.succeed(["inspect", file, "--json"]).stdout).unwrap()
}

#[test]
fn a_merged_lora_paints_what_both_paint() {
    let workplace = Workplace::new();
    let (first, second) = (format!("{}:0.6", lora("kohya.safetensors")), format!("{}:-0.3", lora("peft")));
    let both = paint(&workplace, &model("sd1"), &[&first, &second]);
    assert!(difference(&both, &paint(&workplace, &model("sd1"), &[&first])) > 2);
    for (name, flags) in [
        ("merged.safetensors", &[][..]),
        ("diffusers.safetensors", &["--lora-format", "diffusers"]),
        ("peft", &["--lora-format", "peft"]),
        ("rank.safetensors", &["--rank", "500"]),
        ("half.safetensors", &["--dtype", "f16"]),
    ] {
        let run = workplace.succeed([&["lora", "merge", &first, &second, name][..], flags].concat());
        assert!(run.stderr.ends_with(&format!("wrote {name}\n")), "{}", run.stderr);
        assert_eq!(run.stdout, "");
        let merged = paint(&workplace, &model("sd1"), &[name]);
        assert!(difference(&merged, &both) <= 1, "{name}: {}", difference(&merged, &both));
    }
    // Ranks of 2 and 3 add up.
    let report = inspect(&workplace, "merged.safetensors");
    assert_eq!((&report["layout"], &report["rank"]["max"]), (&"kohya".into(), &5.into()));
    let run = workplace.succeed(["lora", "merge", &first, &second, "small.safetensors", "--rank", "1"]);
    assert!(run.stderr.contains("rank 1 keeps "), "{}", run.stderr);
    assert_eq!(inspect(&workplace, "small.safetensors")["rank"], 1);
}

/// A copy of the checkpoint with every matrix that a LoRA changes changed a little.
fn write_tuned(from: &Path, to: &Path) {
    let mut bytes = fs::read(from).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..header]).unwrap();
    let is_changed = |name: &str, entry: &Value| {
        let axes = entry["shape"].as_array().unwrap().len();
        let is_layer = name.starts_with("model.diffusion_model.") || name.contains("encoder.layers.");
        is_layer && axes > 1 && name.ends_with(".weight")
    };
    let mut state = 1u64;
    for (name, entry) in tensors.iter().filter(|(name, _)| *name != "__metadata__") {
        if !is_changed(name, entry) || name.starts_with("first_stage_model.") {
            continue;
        }
        assert_eq!(entry["dtype"], "F32");
        let offset = |index: usize| header + entry["data_offsets"][index].as_u64().unwrap() as usize;
        for word in bytes[offset(0)..offset(1)].chunks_exact_mut(4) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let change = ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.3;
            let value = f32::from_le_bytes((&*word).try_into().unwrap()) + change;
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
    fs::write(to, bytes).unwrap();
}

#[test]
fn an_extracted_lora_paints_what_the_tuned_model_paints() {
    let workplace = Workplace::new();
    paints("sd1").write_safetensors(workplace.path("base.safetensors"), DType::F32);
    workplace.succeed(["convert", "base.safetensors", "base"]);
    write_tuned(&workplace.path("base.safetensors"), &workplace.path("tuned.safetensors"));
    let tuned = paint(&workplace, "tuned.safetensors", &[]);
    assert!(difference(&tuned, &paint(&workplace, "base", &[])) > 20);
    for (name, format) in
        [("kohya.safetensors", "kohya"), ("diffusers.safetensors", "diffusers"), ("peft", "peft")]
    {
        let run = workplace.succeed([
            "lora",
            "extract",
            "base",
            "tuned.safetensors",
            name,
            "--rank",
            "500",
            "--lora-format",
            format,
        ]);
        assert!(run.stderr.contains("rank 500 keeps 100.0% of the change"), "{}", run.stderr);
        let painted = paint(&workplace, "base", &[name]);
        assert!(difference(&painted, &tuned) <= 2, "{name}: {}", difference(&painted, &tuned));
    }
    workplace.succeed([
        "lora",
        "extract",
        "base.safetensors",
        "tuned.safetensors",
        "small.safetensors",
        "--rank",
        "3",
        "--conv-rank",
        "2",
    ]);
    assert_eq!(inspect(&workplace, "small.safetensors")["rank"], serde_json::json!({"min": 2, "max": 3}));
}

#[test]
fn a_resized_lora_has_the_rank() {
    let workplace = Workplace::new();
    let kohya = lora("kohya.safetensors");
    workplace.succeed(["lora", "resize", &kohya, "one.safetensors", "--rank", "1"]);
    assert_eq!(inspect(&workplace, "one.safetensors")["rank"], 1);
    // A higher rank would be the same change.
    workplace.succeed(["lora", "resize", &kohya, "same.safetensors", "--rank", "8"]);
    assert_eq!(inspect(&workplace, "same.safetensors")["rank"], 2);
    let [before, after] = [&kohya, "same.safetensors"].map(|file| paint(&workplace, &model("sd1"), &[file]));
    assert!(difference(&before, &after) <= 1);
    for kind in ["loha", "lokr", "dora", "locon_mid"] {
        let name = format!("{kind}.safetensors");
        workplace.succeed(["lora", "resize", &format!("{KINDS}/{name}"), &name, "--rank", "2"]);
        assert_eq!(inspect(&workplace, &name)["rank"], 2, "{kind}");
    }
    // In its own place: all of it is read before.
    workplace.succeed([
        "lora",
        "resize",
        "same.safetensors",
        "same.safetensors",
        "--rank",
        "1",
        "--overwrite",
    ]);
    assert_eq!(inspect(&workplace, "same.safetensors")["rank"], 1);
}

/// A workplace with a LoRA, half of one, and something else.
fn with_bad_files() -> Workplace {
    let workplace = Workplace::new();
    let bytes = fs::read(lora("kohya.safetensors")).unwrap();
    fs::write(workplace.path("whole.safetensors"), &bytes).unwrap();
    fs::write(workplace.path("cut.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    fs::write(workplace.path("text.safetensors"), "a cat").unwrap();
    let vae = PathBuf::from(model("sd1")).join("vae/diffusion_pytorch_model.safetensors");
    fs::copy(vae, workplace.path("vae.safetensors")).unwrap();
    for (from, to) in
        [("kohya.safetensors", "sd1.safetensors"), ("kohya_original_xl.safetensors", "xl.safetensors")]
    {
        fs::copy(Path::new(LAYOUTS).join(from), workplace.path(to)).unwrap();
    }
    workplace
}

#[test]
fn files_that_are_no_loras() {
    let workplace = with_bad_files();
    for (file, culprits) in [
        ("missing.safetensors", &["missing.safetensors", "No such file"][..]),
        ("cut.safetensors", &["cut.safetensors"]),
        ("text.safetensors", &["text.safetensors", "5 bytes"]),
        ("vae.safetensors", &["vae.safetensors", "not a LoRA"]),
    ] {
        workplace.refuse(["lora", "resize", file, "out.safetensors", "--rank", "1"], culprits);
        workplace.refuse(["lora", "merge", "whole.safetensors", file, "out.safetensors"], culprits);
    }
    let refuse = |files: &[&str], culprits: &[&str]| {
        workplace.refuse([&["lora", "merge"], files, &["out.safetensors"]].concat(), culprits);
    };
    refuse(&["whole.safetensors:much"], &["whole.safetensors", "\"much\"", "no number"]);
    refuse(&["whole.safetensors:inf"], &["whole.safetensors", "\"inf\"", "no number"]);
    refuse(
        &["sd1.safetensors", "xl.safetensors"],
        &["sd1.safetensors", "Stable Diffusion 1", "xl.safetensors", "Stable Diffusion XL"],
    );
    let kind = |name: &str| format!("{KINDS}/{name}.safetensors");
    refuse(&[&kind("loha")], &["loha.safetensors", "LoHa", "--rank"]);
    refuse(&[&kind("dora")], &["dora.safetensors", "lengths of DoRA"]);
    let full = kind("loha");
    workplace.refuse(
        ["lora", "merge", "whole.safetensors", &full, "out.safetensors", "--rank", "2"],
        &["loha.safetensors", "different models"],
    );
}

#[test]
fn models_that_give_no_lora() {
    let workplace = with_bad_files();
    let (sd1, sd2) = (model("sd1"), model("sd2"));
    let [unet, text, vae] = ["unet", "text_encoder", "vae"].map(|part| format!("{sd1}/{part}"));
    for (base, tuned, culprits) in [
        (&*sd1, &*sd1, &["the same weights", "nothing to extract"][..]),
        (&sd1, &sd2, &["not built alike", "unet."]),
        (&unet, &text, &["has unet and", "has text_encoder"]),
        (&sd1, "missing", &["missing", "No such file"]),
        ("cut.safetensors", &sd1, &["cut.safetensors"]),
        ("whole.safetensors", &sd1, &["whole.safetensors is a LoRA"]),
        (&vae, &vae, &["vae is a VAE"]),
    ] {
        workplace.refuse(["lora", "extract", base, tuned, "out.safetensors", "--rank", "2"], culprits);
    }
}

#[test]
fn destinations_that_cannot_be() {
    let workplace = with_bad_files();
    fs::write(workplace.path("there.safetensors"), "precious").unwrap();
    let (sd1, sd2) = (model("sd1"), model("sd2"));
    for command in [
        &["merge", "whole.safetensors"][..],
        &["resize", "whole.safetensors", "--rank", "1"],
        // Before any work is done: these two could not be extracted from either.
        &["extract", &sd1, &sd2, "--rank", "1"],
    ] {
        let (words, flags) =
            command.split_at(command.iter().position(|word| *word == "--rank").unwrap_or(command.len()));
        let refuse = |destination: &str, culprits: &[&str]| {
            workplace.refuse([&["lora"], words, &[destination], flags].concat(), culprits);
        };
        refuse("there.safetensors", &["there.safetensors", "exists already"]);
        refuse("nowhere/out.safetensors", &["nowhere/out.safetensors", "no folder nowhere"]);
        refuse("folder", &["folder", "one .safetensors file"]);
        refuse("out.ckpt", &["out.ckpt", ".safetensors"]);
    }
    assert_eq!(fs::read(workplace.path("there.safetensors")).unwrap(), b"precious");
    workplace.succeed(["lora", "merge", "whole.safetensors", "there.safetensors", "--overwrite"]);
    assert_eq!(inspect(&workplace, "there.safetensors")["kind"], "lora");
}

#[test]
fn command_lines_that_are_wrong() {
    let workplace = with_bad_files();
    for arguments in [
        &["resize", "whole.safetensors", "out.safetensors", "--rank", "0"][..],
        &["resize", "whole.safetensors", "out.safetensors", "--rank", "many"],
        &["resize", "whole.safetensors", "out.safetensors"],
        &["merge", "whole.safetensors", "out.safetensors", "--rank", "-1"],
        &["merge", "whole.safetensors"],
        &["extract", "a", "b", "c.safetensors"],
        &["extract", "a", "b", "c.safetensors", "--rank", "4", "--conv-rank", "0"],
        &["merge", "whole.safetensors", "out.safetensors", "--lora-format", "odd"],
        &["shrink"],
    ] {
        let run = workplace.run([&["lora"], arguments].concat());
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{arguments:?}: {}", run.stderr);
        assert!(run.stderr.starts_with("error: ") || run.stderr.contains("Usage: "), "{}", run.stderr);
    }
    assert!(!workplace.path("out.safetensors").exists());
}
