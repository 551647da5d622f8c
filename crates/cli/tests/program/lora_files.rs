//! `diffuse inspect` and `diffuse convert` of LoRA files.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::program::{Workplace, shapes};

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../convert/tests/parity/lora_layouts")).join(name)
}

/// A workplace with these files of the converter's tests.
fn workplace(names: &[&str]) -> Workplace {
    let workplace = Workplace::new();
    for name in names {
        fs::copy(fixture(name), workplace.path(name)).unwrap();
    }
    workplace
}

#[test]
fn inspect_says_what_a_lora_is() {
    let files =
        ["kohya.safetensors", "kohya_original_xl.safetensors", "diffusers.safetensors", "attn_procs.bin"];
    let workplace = workplace(&files);
    for file in files {
        let text = workplace.succeed(["inspect", file]).stdout;
        insta::assert_snapshot!(format!("lora_{}", file.replace('.', "_")), text);
    }
    let report = workplace.succeed(["inspect", "kohya.safetensors", "--json"]).stdout;
    insta::assert_snapshot!("lora_json", report);
}

#[test]
fn a_lora_goes_to_every_layout_and_back() {
    let workplace = workplace(&["kohya.safetensors"]);
    for (format, name) in
        [("diffusers", "diffusers.safetensors"), ("peft", "peft"), ("kohya", "kohya2.safetensors")]
    {
        workplace.succeed(["convert", "kohya.safetensors", name, "--lora-format", format]);
        let report: Value =
            serde_json::from_str(&workplace.succeed(["inspect", name, "--json"]).stdout).unwrap();
        assert_eq!((&report["kind"], &report["layout"]), (&"lora".into(), &format.into()));
        assert_eq!(report["alpha"], serde_json::json!({"min": 0.5, "max": 8}), "{name}");
        let back = format!("{format}-back.safetensors");
        workplace.succeed(["convert", name, &back, "--lora-format", "kohya"]);
        let report: Value =
            serde_json::from_str(&workplace.succeed(["inspect", &back, "--json"]).stdout).unwrap();
        assert_eq!(report["layers"], 106);
        assert_eq!(report["training"]["name"], "tiny");
    }
}

#[test]
fn what_cannot_be_converted_is_said_in_one_line() {
    let workplace = workplace(&["kohya.safetensors", "cloneofsimo.pt"]);
    let refuse = |arguments: &[&str], words: &[&str]| workplace.refuse(arguments, words);
    refuse(&["convert", "kohya.safetensors", "folder"], &["folder", "--lora-format peft"]);
    refuse(&["convert", "kohya.safetensors", "out.bin"], &["out.bin"]);
    refuse(&["convert", "kohya.safetensors", "kohya.safetensors", "--overwrite"], &["kohya.safetensors"]);
    refuse(
        &["convert", "kohya.safetensors", "out.safetensors", "--lora-format", "peft"],
        &["unet, text_encoder", "folder"],
    );
    let shapes = shapes().join("vae/diffusion_pytorch_model.safetensors");
    let vae = shapes.to_str().unwrap();
    refuse(&["convert", vae, "out.safetensors", "--lora-format", "peft"], &["not a LoRA"]);
    // Weights without names, of a model that is none of the published ones.
    refuse(&["convert", "cloneofsimo.pt", "out.safetensors"], &["54 pairs", "no known model"]);
    assert!(!workplace.path("out.safetensors").exists() && !workplace.path("folder").exists());
}
