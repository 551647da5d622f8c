//! `diffuse inspect`.

use std::fs;

use serde_json::{Value, json};

use crate::program::{Workplace, copy_of_shapes, shapes};

#[test]
fn a_model_folder() {
    let workplace = Workplace::new();
    copy_of_shapes(&workplace);
    insta::assert_snapshot!("folder", workplace.succeed(["inspect", "model"]).stdout);
    insta::assert_snapshot!("folder_json", workplace.succeed(["inspect", "model", "--json"]).stdout);
}

#[test]
fn one_component() {
    let workplace = Workplace::new();
    let unet = shapes().join("unet");
    insta::assert_snapshot!("component", workplace.succeed(["inspect".as_ref(), unet.as_os_str()]).stdout);
}

#[test]
fn a_tensor_file() {
    let workplace = Workplace::new();
    let vae = shapes().join("vae/diffusion_pytorch_model.safetensors");
    insta::assert_snapshot!("tensor_file", workplace.succeed(["inspect".as_ref(), vae.as_os_str()]).stdout);
}

#[test]
fn kinds_are_told_by_the_names_of_tensors() {
    let kinds = [
        ("unet.down_blocks.0.attn.to_q.lora_A.weight", "lora"),
        ("lora_unet_mid_block.lora_up.weight", "lora"),
        ("emb_params", "embedding"),
        ("model.diffusion_model.input_blocks.0.0.weight", "checkpoint"),
        ("down_blocks.0.resnets.0.conv1.weight", "unet"),
        ("control_model.input_hint_block.0.weight", "controlnet"),
        ("anything", "tensors"),
    ];
    let workplace = Workplace::new();
    for (tensor, kind) in kinds {
        let header = json!({tensor: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"a": "b"}});
        let header = header.to_string();
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 4]].concat();
        // What it is, is told by what is in it, whatever it is called.
        for name in ["file.safetensors", "file"] {
            fs::write(workplace.path(name), &bytes).unwrap();
            let run = workplace.succeed(["inspect", name, "--json"]);
            let report: Value = serde_json::from_str(&run.stdout).unwrap();
            let expected = json!({
                "kind": kind, "parameters": 1, "bytes": 4, "tensors": 1, "dtypes": {"F32": 1}, "metadata": {"a": "b"},
            });
            for (field, value) in expected.as_object().unwrap() {
                assert_eq!(report[field], *value, "{tensor}: {field}");
            }
        }
    }
}

#[test]
fn what_cannot_be_inspected_is_named() {
    let workplace = Workplace::new();
    fs::create_dir(workplace.path("empty")).unwrap();
    fs::write(workplace.path("text.txt"), "hello").unwrap();
    fs::write(workplace.path("model.ckpt"), "PK").unwrap();
    fs::write(workplace.path("cut.png"), b"\x89PNG\r\n\x1a\n\0\0").unwrap();
    fs::write(workplace.path("cut.safetensors"), [9, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    for name in ["missing", "empty", "text.txt", "model.ckpt", "cut.png", "cut.safetensors"] {
        workplace.refuse(["inspect", name], &[name]);
    }
}

#[test]
fn a_damaged_picture_is_named() {
    let workplace = Workplace::new();
    workplace
        .succeed(["generate", "a star", "--steps", "1", "--seed", "1", "--width", "32", "--height", "32"]);
    let bytes = fs::read(workplace.path("out.png")).unwrap();
    for length in (8..bytes.len() - 1).step_by(97) {
        fs::write(workplace.path("cut.png"), &bytes[..length]).unwrap();
        workplace.refuse(["inspect", "cut.png"], &["cut.png"]);
    }
}
