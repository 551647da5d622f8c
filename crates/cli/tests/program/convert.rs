//! `diffuse convert`.

use std::fs;
use std::path::Path;

use candle_core::{DType, Device};

use crate::program::{Workplace, shapes};

#[test]
fn a_folder_becomes_a_file_and_a_folder_again() {
    let workplace = Workplace::new();
    let shapes = shapes();
    let model = shapes.to_str().unwrap();
    let run = workplace.succeed(["convert", model, "one.safetensors"]);
    assert!(run.stderr.ends_with("wrote one.safetensors\n"), "{}", run.stderr);
    workplace.succeed(["convert", "one.safetensors", "back"]);
    assert_eq!(workplace.names(), ["back", "one.safetensors"]);
    for weights in ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"] {
        let path = format!("{weights}.safetensors");
        let tensors = |folder: &Path| {
            let bytes = fs::read(folder.join(&path)).unwrap();
            let file = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
            let mut tensors: Vec<(String, Vec<u32>)> = file
                .into_iter()
                .map(|(name, tensor)| {
                    let name = name.trim_start_matches("text_model.").to_string();
                    let values = tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap();
                    let bits = values.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits);
                    (name, bits.collect())
                })
                .collect();
            tensors.sort();
            tensors
        };
        assert!(tensors(&workplace.path("back")) == tensors(&shapes), "{path}");
    }
}

#[test]
fn a_variant_is_in_the_names_of_weight_files_and_read_by_its_name() {
    let workplace = Workplace::new();
    let shapes = shapes();
    let flags = ["--dtype", "f16", "--variant", "fp16"];
    workplace.succeed(["convert", shapes.to_str().unwrap(), "half"].iter().chain(&flags));
    assert!(workplace.path("half/unet/diffusion_pytorch_model.fp16.safetensors").is_file());
    let paint = ["generate", "a red circle", "--model", "half", "--steps", "2", "--seed", "1"];
    workplace.succeed(paint.iter().chain(&["--variant", "fp16"]));
    workplace.refuse(paint.iter().chain(&["--variant", "ema"]), &["half", "ema"]);
    workplace.succeed(["convert", "half", "one.safetensors", "--variant", "fp16"]);
}

#[test]
fn an_existing_destination_is_replaced_only_when_asked() {
    let workplace = Workplace::new();
    let shapes = shapes();
    let model = shapes.to_str().unwrap();
    fs::write(workplace.path("one.safetensors"), "precious").unwrap();
    workplace.refuse(["convert", model, "one.safetensors"], &["one.safetensors", "overwrite it"]);
    assert_eq!(fs::read(workplace.path("one.safetensors")).unwrap(), b"precious");
    workplace.succeed(["convert", model, "one.safetensors", "--overwrite", "--dtype", "bf16"]);
    assert!(fs::metadata(workplace.path("one.safetensors")).unwrap().len() > 10_000_000);
}

#[test]
fn what_cannot_be_converted_is_named() {
    let workplace = Workplace::new();
    workplace.refuse(["convert", "nowhere.safetensors", "out"], &["nowhere.safetensors"]);
    fs::write(workplace.path("bad.safetensors"), "no checkpoint at all").unwrap();
    workplace.refuse(["convert", "bad.safetensors", "out"], &["bad.safetensors"]);
    fs::write(workplace.path("bad.ckpt"), b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.").unwrap();
    workplace.refuse(["convert", "bad.ckpt", "out"], &["bad.ckpt"]);
    assert_eq!(workplace.run(["convert", "bad.ckpt"]).status, Some(2));
    assert_eq!(workplace.run(["convert", "a", "b", "--max-shard-size", "big"]).status, Some(2));
}

#[test]
fn what_shapes_do_not_tell_is_set_by_flags() {
    let workplace = Workplace::new();
    let shapes = shapes();
    let model = shapes.to_str().unwrap();
    let flags = ["--scheduler", "dpmpp-2m-karras", "--prediction-type", "v_prediction"];
    workplace.succeed(["convert", model, "folder"].iter().chain(&flags));
    workplace.succeed(["convert", model, "one.safetensors"].iter().chain(&flags));
    workplace.succeed(["convert", "one.safetensors", "again", "--attention-heads", "2"]);
    let json = |path: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(workplace.path(path)).unwrap()).unwrap()
    };
    for folder in ["folder", "again"] {
        let scheduler = json(&format!("{folder}/scheduler/scheduler_config.json"));
        assert_eq!(scheduler["_class_name"], "DPMSolverMultistepScheduler");
        assert_eq!(scheduler["use_karras_sigmas"], true);
        assert_eq!(scheduler["prediction_type"], "v_prediction");
        assert_eq!(scheduler["beta_schedule"], "scaled_linear");
        let index = json(&format!("{folder}/model_index.json"));
        assert_eq!(index["scheduler"], serde_json::json!(["diffusers", "DPMSolverMultistepScheduler"]));
    }
    assert_eq!(json("again/unet/config.json")["attention_head_dim"], 2);
    workplace.refuse(
        ["convert", "one.safetensors", "bad", "--attention-head-dim", "7"],
        &["one.safetensors", "heads of width 7"],
    );
    workplace.refuse(["convert", model, "bad", "--attention-heads", "0"], &["0 attention heads"]);
    let both = ["convert", model, "bad", "--attention-heads", "1", "--attention-head-dim", "8"];
    assert_eq!(workplace.run(both).status, Some(2));
    assert_eq!(workplace.run(["convert", model, "bad", "--scheduler", "odd"]).status, Some(2));
}
