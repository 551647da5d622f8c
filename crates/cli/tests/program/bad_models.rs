//! Model folders that are damaged or not what they should be: status 1, one line that names the file, tensor or field.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::program::{Workplace, copy_of_shapes};

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// Runs `generate` with a copy of the small model that `damage` has changed; `inspect` must not panic on it either.
#[track_caller]
fn refuse(damage: impl FnOnce(&Path), culprits: &[&str]) {
    let workplace = Workplace::new();
    let model = copy_of_shapes(&workplace);
    damage(&model);
    workplace.refuse(["generate", "a red circle", "--model", "model"], culprits);
    let inspected = workplace.run(["inspect", "model"]);
    assert!(matches!(inspected.status, Some(0 | 1)), "{}", inspected.stderr);
}

fn edit_json(path: PathBuf, edit: impl FnOnce(&mut Map<String, Value>)) {
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(json.as_object_mut().unwrap());
    fs::write(path, json.to_string()).unwrap();
}

/// Changes the header of a safetensors file and leaves its bytes.
fn edit_header(path: PathBuf, edit: impl FnOnce(&mut Map<String, Value>)) {
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(header.as_object_mut().unwrap());
    let header = header.to_string();
    let data = &bytes[8 + length..];
    fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()).unwrap();
}

#[test]
fn no_folder() {
    for name in ["missing", "./missing/model", "/missing/model", "not/on/the/hub"] {
        Workplace::new().refuse(["generate", "a red circle", "--model", name], &[name]);
    }
    Workplace::new().refuse(["generate", "a red circle", "--model", ""], &["--model"]);
    Workplace::new().refuse(["generate", "a red circle", "--model", "nobody/nothing"], &["nobody/nothing"]);
}

#[test]
fn no_model_index() {
    refuse(
        |model| fs::remove_file(model.join("model_index.json")).unwrap(),
        &["model has no model_index.json"],
    );
    refuse(|model| fs::write(model.join("model_index.json"), "{").unwrap(), &["model/model_index.json"]);
}

#[test]
fn unknown_classes() {
    let set = |field: &'static str, value: Value| {
        move |model: &Path| {
            edit_json(model.join("model_index.json"), |index| drop(index.insert(field.into(), value)));
        }
    };
    refuse(set("_class_name", json!("FluxPipeline")), &["model/model_index.json", "FluxPipeline"]);
    refuse(set("_class_name", json!(7)), &["model/model_index.json", "_class_name", "7"]);
    refuse(set("unet", json!(["diffusers", "UNet3D"])), &["model/model_index.json", "unet", "UNet3D"]);
    refuse(set("vae", json!(["diffusers", "AutoencoderTiny"])), &["vae", "AutoencoderTiny"]);
    refuse(set("text_encoder", Value::Null), &["model/model_index.json", "text_encoder"]);
    refuse(set("scheduler", json!(["diffusers", "MagicScheduler"])), &["MagicScheduler"]);
}

#[test]
fn damaged_weights() {
    let write = |bytes: &'static [u8]| move |model: &Path| fs::write(model.join(UNET), bytes).unwrap();
    let name = format!("model/{UNET}");
    refuse(write(b""), &[&name, "empty"]);
    refuse(write(b"abc"), &[&name]);
    refuse(write(b"this is no safetensors file, it is garbage"), &[&name]);
    refuse(write(b"\x10\0\0\0\0\0\0\0{this is not JSON"), &[&name]);
    // A header that goes past the file's end, and one longer than any file.
    refuse(write(b"\xff\xff\0\0\0\0\0\0{}"), &[&name, "65535"]);
    refuse(write(b"\xff\xff\xff\xff\xff\xff\xff\xff{}"), &[&name, "18446744073709551615"]);
    refuse(
        |model| {
            let bytes = fs::read(model.join(UNET)).unwrap();
            fs::write(model.join(UNET), &bytes[..bytes.len() / 2]).unwrap();
        },
        &[&name],
    );
    refuse(|model| fs::remove_file(model.join(UNET)).unwrap(), &["model/unet"]);
}

#[test]
fn tensors_that_do_not_fit_the_config() {
    let header = |edit: fn(&mut Map<String, Value>)| move |model: &Path| edit_header(model.join(UNET), edit);
    let name = format!("model/{UNET}");
    let rename = header(|header| {
        let tensor = header.remove("conv_in.weight").unwrap();
        header.insert("conv_inn.weight".into(), tensor);
    });
    refuse(rename, &[&name, "conv_in.weight", "[48, 4, 3, 3]"]);
    let reshape = header(|header| header["conv_in.weight"]["shape"] = json!([4, 48, 3, 3]));
    refuse(reshape, &[&name, "conv_in.weight", "[48, 4, 3, 3]", "[4, 48, 3, 3]"]);
    let add = header(|header| {
        let ends = header.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64());
        let end = ends.max().unwrap();
        let tensor = json!({"dtype": "F16", "shape": [0], "data_offsets": [end, end]});
        header.insert("surplus.weight".into(), tensor);
    });
    refuse(add, &[&name, "surplus.weight"]);
}

#[test]
fn an_index_that_leads_out_of_the_folder() {
    for shard in ["../../elsewhere.safetensors", "/etc/passwd"] {
        let split = |model: &Path| {
            fs::remove_file(model.join(UNET)).unwrap();
            let index = json!({"weight_map": {"conv_in.weight": shard}});
            fs::write(model.join(format!("{UNET}.index.json")), index.to_string()).unwrap();
        };
        refuse(split, &["model/unet/diffusion_pytorch_model.safetensors.index.json", shard]);
    }
}

#[test]
fn config_fields_that_are_not_supported() {
    let set = |component: &'static str, field: &'static str, value: Value| {
        move |model: &Path| {
            let edit = |config: &mut Map<String, Value>| drop(config.insert(field.into(), value));
            edit_json(model.join(component).join("config.json"), edit);
        }
    };
    refuse(set("unet", "encoder_hid_dim_type", json!("image_proj")), &["unet", "encoder_hid_dim_type"]);
    refuse(set("unet", "dual_cross_attention", json!(true)), &["unet", "dual_cross_attention"]);
    refuse(set("unet", "block_out_channels", json!([0, 0, 0])), &["unet", "block_out_channels"]);
    refuse(set("unet", "attention_head_dim", json!("four")), &["unet", "attention_head_dim"]);
    refuse(set("vae", "act_fn", json!("banana")), &["vae", "act_fn"]);
    refuse(set("text_encoder", "num_attention_heads", json!(0)), &["text_encoder", "num_attention_heads"]);
    refuse(set("text_encoder", "hidden_act", json!("relu6")), &["text_encoder", "hidden_act"]);
}

#[test]
fn missing_and_damaged_small_files() {
    for file in ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"] {
        refuse(|model| fs::remove_file(model.join(file)).unwrap(), &[file]);
        refuse(|model| fs::write(model.join(file), "[1, 2").unwrap(), &[file]);
    }
    refuse(|model| fs::remove_dir_all(model.join("tokenizer")).unwrap(), &["model", "tokenizer"]);
    refuse(
        |model| fs::write(model.join("tokenizer/tokenizer.json"), "{}").unwrap(),
        &["tokenizer/tokenizer.json"],
    );
}
