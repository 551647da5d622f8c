//! `diffuse inspect`.

use std::fs;
use std::time::{Duration, Instant};

use candle_core::DType;
use serde_json::{Value, json};

use crate::program::{Workplace, copy_of_shapes, shapes};
use crate::single_file::{listed, paints};

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

fn inspect_json(workplace: &Workplace, name: &str) -> Value {
    serde_json::from_str(&workplace.succeed(["inspect", name, "--json"]).stdout).unwrap()
}

#[test]
fn a_pickled_checkpoint() {
    let workplace = Workplace::new();
    paints("sd1").write_ckpt(workplace.path("model.ckpt"), DType::F16);
    insta::assert_snapshot!("checkpoint", workplace.succeed(["inspect", "model.ckpt"]).stdout);
}

#[test]
fn a_checkpoint_of_stable_diffusion_2_as_json() {
    let workplace = Workplace::new();
    paints("sd2").write_safetensors(workplace.path("model.safetensors"), DType::F32);
    let run = workplace.succeed(["inspect", "model.safetensors", "--json"]);
    insta::assert_snapshot!("checkpoint_json", run.stdout);
}

#[test]
fn checkpoints_of_all_families() {
    let workplace = Workplace::new();
    let cases = [
        ("small_sd1", json!(["checkpoint", "sd1", "text-to-image", "epsilon", "StableDiffusionPipeline"])),
        (
            "small_inpainting",
            json!(["checkpoint", "sd1", "inpainting", "epsilon", "StableDiffusionInpaintPipeline"]),
        ),
        (
            "small_sd2",
            json!(["checkpoint", "sd2", "text-to-image", "v_prediction", "StableDiffusionPipeline"]),
        ),
        (
            "small_sdxl",
            json!(["checkpoint", "sdxl", "text-to-image", "epsilon", "StableDiffusionXLPipeline"]),
        ),
        (
            "small_refiner",
            json!([
                "checkpoint",
                "sdxl-refiner",
                "text-to-image",
                "epsilon",
                "StableDiffusionXLImg2ImgPipeline"
            ]),
        ),
        ("small_controlnet", json!(["controlnet", "sd1", null, null, "ControlNetModel"])),
        ("small_vae", json!(["vae", null, null, null, "AutoencoderKL"])),
    ];
    for (case, expected) in cases {
        listed(case).write_safetensors(workplace.path("model.bin"), DType::BF16);
        let report = inspect_json(&workplace, "model.bin");
        let fields = ["kind", "family", "task", "prediction_type", "class_name"];
        assert_eq!(json!(fields.map(|field| &report[field])), expected, "{case}");
        assert_eq!((&report["layout"], &report["ema"]), (&json!("original"), &json!(false)));
        assert!(report["dtypes"]["BF16"].as_u64().unwrap() > 100_000 && report["problem"].is_null());
        // The folder that it converts to is of the same family.
        workplace.succeed(["convert", "model.bin", "folder", "--overwrite"]);
        let folder = inspect_json(&workplace, "folder");
        for field in ["family", "task", "prediction_type", "class_name"] {
            assert_eq!(folder[field], report[field], "{case}: {field}");
        }
    }
}

#[test]
fn averaged_weights_and_metadata_are_shown() {
    let workplace = Workplace::new();
    let thumbnail = format!("data:image/jpeg;base64,{}", "A".repeat(5000));
    let metadata =
        json!({"modelspec.thumbnail": thumbnail, "modelspec.title": "A model", "ss_tags": "x".repeat(999)});
    let tensor =
        |name: &str| (name.to_string(), json!({"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}));
    let mut header: serde_json::Map<String, Value> =
        ["model.diffusion_model.out.2.bias", "model_ema.diffusion_modelout2bias"]
            .map(tensor)
            .into_iter()
            .collect();
    header.insert("__metadata__".into(), metadata);
    let header = Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    fs::write(workplace.path("model.safetensors"), bytes).unwrap();
    let report = inspect_json(&workplace, "model.safetensors");
    assert_eq!((&report["ema"], &report["metadata"]["modelspec.title"]), (&json!(true), &json!("A model")));
    let thumbnail = report["metadata"]["modelspec.thumbnail"].as_str().unwrap();
    assert!(thumbnail.starts_with("data:image/jpeg") && thumbnail.ends_with("(5023 bytes)"), "{thumbnail}");
    assert_eq!(report["metadata"]["ss_tags"].as_str().unwrap().len(), 999);
    let text = workplace.succeed(["inspect", "model.safetensors"]).stdout;
    assert!(text.lines().all(|line| line.len() < 300) && text.contains("(799 more characters)"), "{text}");
}

#[test]
fn what_is_wrong_with_a_checkpoint_is_shown() {
    let workplace = Workplace::new();
    let problem = |checkpoint: candle_diffusers_test_support::OriginalCheckpoint| {
        checkpoint.write_ckpt(workplace.path("model.ckpt"), DType::F16);
        let report = inspect_json(&workplace, "model.ckpt");
        assert_eq!(report["kind"], "checkpoint");
        report["problem"].as_str().unwrap().to_string()
    };
    assert!(problem(listed("small_sd1").without("first_stage_model.")).contains("without vae"));
    let missing = problem(listed("small_sd1").without("model.diffusion_model.out.2."));
    assert!(missing.contains("2 of its 208 tensors are missing"), "{missing}");
}

/// A file of 7 GB answers at once, and within memory that is a small part of it.
#[test]
fn large_files_answer_at_once() {
    let workplace = Workplace::new();
    let (sdxl, sd1) = (listed("sdxl_base"), listed("sd15"));
    sdxl.write_hollow_safetensors(workplace.path("model.safetensors"), DType::F16);
    sd1.write_hollow_ckpt(workplace.path("model.ckpt"), DType::F16);
    for (name, bytes, title) in [
        ("model.safetensors", 6_900_000_000, "Stable Diffusion XL"),
        ("model.ckpt", 2_100_000_000, "Stable Diffusion 1"),
    ] {
        assert!(fs::metadata(workplace.path(name)).unwrap().len() > bytes);
        let start = Instant::now();
        let report = inspect_json(&workplace, name);
        assert!(start.elapsed() < Duration::from_secs(5), "{name}: {:?}", start.elapsed());
        assert_eq!(report["title"], title);
        assert!(report["bytes"].as_u64().unwrap() > bytes && report["problem"].is_null());
        if cfg!(target_os = "linux") {
            // Memory of its own, maps of files not counted, in kilobytes.
            let limited = format!("ulimit -d 150000; exec {} inspect {name}", env!("CARGO_BIN_EXE_diffuse"));
            let mut shell = std::process::Command::new("sh");
            let run = crate::program::finish(shell.args(["-c", &limited]).current_dir(workplace.path("")));
            assert_eq!(run.status, Some(0), "{}", run.stderr);
        }
    }
}
