//! Model folders: what is found in good ones, and what is said of bad ones.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_diffusers_loaders::{
    Error, LoadOptions, ModelIndex, Repository, check_variant, find_weights, load_component,
};
use serde_json::{Value, json};

const INDEX: &str = r#"{
  "_class_name": "StableDiffusionPipeline",
  "_diffusers_version": "0.42.1",
  "feature_extractor": [null, null],
  "image_encoder": null,
  "requires_safety_checker": false,
  "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
  "scheduler": ["diffusers", "PNDMScheduler"],
  "unet": ["diffusers", "UNet2DConditionModel"]
}"#;

fn write(folder: &Path, path: &str, contents: impl AsRef<[u8]>) {
    let path = folder.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, contents).unwrap();
}

fn write_tensors(folder: &Path, path: &str, tensors: &[(&str, &[usize])]) {
    let zeros = |(name, shape): &(&str, &[usize])| {
        (name.to_string(), Tensor::zeros(*shape, DType::F16, &Device::Cpu).unwrap())
    };
    let tensors: std::collections::HashMap<String, Tensor> = tensors.iter().map(zeros).collect();
    fs::create_dir_all(folder.join(path).parent().unwrap()).unwrap();
    candle_core::safetensors::save(&tensors, folder.join(path)).unwrap();
}

fn index_of(json: &str) -> Result<ModelIndex, Error> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "model_index.json", json);
    ModelIndex::load(&Repository::folder(folder.path()).unwrap())
}

#[track_caller]
fn assert_says<T>(result: Result<T, Error>, parts: &[&str]) {
    let message = result.err().expect("should fail").to_string();
    assert!(!message.contains('\n'), "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn a_model_index_gives_components_and_settings() {
    let index = index_of(INDEX).unwrap();
    assert_eq!(index.class_name, "StableDiffusionPipeline");
    assert_eq!(index.diffusers_version.as_deref(), Some("0.42.1"));
    assert_eq!(index.components.keys().collect::<Vec<_>>(), ["safety_checker", "scheduler", "unet"]);
    assert_eq!(index.component("unet").unwrap().class_name, "UNet2DConditionModel");
    assert_eq!(index.config["requires_safety_checker"], json!(false));
    assert!(!index.config.contains_key("image_encoder"));
    assert_says(index.component("vae"), &["model_index.json has no component vae"]);
}

#[test]
fn missing_folders_and_single_files() {
    let folder = tempfile::tempdir().unwrap();
    assert_says(
        Repository::folder(folder.path().join("nowhere")),
        &["nowhere: there is no such file or folder"],
    );
    write(folder.path(), "model.safetensors", "");
    let file = Repository::folder(folder.path().join("model.safetensors"));
    assert_says(file, &["model.safetensors is a single file", "diffuse convert"]);
}

#[test]
fn a_folder_without_model_index_says_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let load = || ModelIndex::load(&Repository::folder(folder.path()).unwrap());
    assert_says(load(), &["has no model_index.json", "it is empty"]);
    write(folder.path(), "photo.jpg", "");
    assert_says(load(), &["it has photo.jpg"]);
    write(folder.path(), "sd.safetensors", "");
    assert_says(load(), &["sd.safetensors, a single-file checkpoint", "as the model"]);
    write(folder.path(), "config.json", "{}");
    assert_says(load(), &["one component of a pipeline", "give the folder above it"]);
}

#[test]
fn a_model_index_that_is_none_or_unknown() {
    assert_says(index_of("{"), &["model_index.json: EOF", "line 1"]);
    assert_says(index_of("[]"), &["model_index.json: "]);
    assert_says(index_of("{}"), &["model_index.json: there is no _class_name"]);
    assert_says(index_of(r#"{"_class_name":["a","b"]}"#), &["_class_name should be a string"]);
    let unknown = index_of(r#"{"_class_name":"FluxPipeline"}"#);
    assert_says(unknown, &["unknown _class_name FluxPipeline", "StableDiffusionXLPipeline"]);
    let component =
        index_of(r#"{"_class_name":"StableDiffusionPipeline","vae":["diffusers","AutoencoderTiny"]}"#);
    assert_says(component, &["vae is a diffusers.AutoencoderTiny", "AutoencoderKL"]);
}

#[test]
fn weights_are_found_by_each_of_their_names() {
    for (files, variant, expected) in [
        (&["diffusion_pytorch_model.safetensors"][..], None, "diffusion_pytorch_model.safetensors"),
        (&["model.safetensors", "model.fp16.safetensors"], None, "model.safetensors"),
        (&["model.safetensors", "model.fp16.safetensors"], Some("fp16"), "model.fp16.safetensors"),
        (&["model.safetensors"], Some("fp16"), "model.safetensors"),
        (
            &["diffusion_pytorch_model.safetensors.index.fp16.json", "diffusion_pytorch_model.safetensors"],
            Some("fp16"),
            "diffusion_pytorch_model.safetensors.index.fp16.json",
        ),
        (
            &["diffusion_pytorch_model.safetensors.fp16.index.json"],
            Some("fp16"),
            "diffusion_pytorch_model.safetensors.fp16.index.json",
        ),
        (
            &["model.safetensors.index.json", "model-00001-of-00001.safetensors"],
            None,
            "model.safetensors.index.json",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|file| write(folder.path(), &format!("unet/{file}"), ""));
        let repository = Repository::folder(folder.path()).unwrap();
        assert_eq!(find_weights(&repository, "unet", variant).unwrap(), format!("unet/{expected}"));
    }
}

#[test]
fn missing_weights_say_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let repository = Repository::folder(folder.path()).unwrap();
    let find = |variant| find_weights(&repository, "unet", variant);
    assert_says(find(None), &["unet has no diffusion_pytorch_model.safetensors", "missing or empty"]);
    write(folder.path(), "unet/diffusion_pytorch_model.bin", "");
    assert_says(find(None), &["it has diffusion_pytorch_model.bin, a pickle", "diffuse convert"]);
    write(folder.path(), "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "");
    assert_says(find(None), &["it has only the variant fp16"]);
    assert_says(find(Some("../fp16")), &["the variant \"../fp16\""]);
    assert_says(find_weights(&repository, "text_encoder", None), &["text_encoder has no model.safetensors"]);
    let index = index_of(INDEX).unwrap();
    assert_says(check_variant(&repository, &index, "bf16"), &["no weights of the variant bf16"]);
    write(folder.path(), "unet/diffusion_pytorch_model.bf16.safetensors", "");
    check_variant(&repository, &index, "bf16").unwrap();
}

fn build(config: &Value, builder: candle_nn::VarBuilder<'static>) -> Result<Tensor, candle_core::Error> {
    let width = config["width"].as_u64().ok_or(candle_core::Error::Msg("no width".into()))?;
    builder.get(width as usize, "weight")
}

fn load(folder: &Path) -> Result<Tensor, Error> {
    load_component(&Repository::folder(folder).unwrap(), "unet", &LoadOptions::default(), build)
}

#[test]
fn a_component_is_built_or_its_mistake_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert_says(load(folder), &["has no unet/config.json"]);
    write(folder, "unet/config.json", "{\"width\": 3");
    assert_says(load(folder), &["unet/config.json: EOF"]);
    write(folder, "unet/config.json", "{}");
    assert_says(load(folder), &["unet has no diffusion_pytorch_model.safetensors"]);
    let weights = "unet/diffusion_pytorch_model.safetensors";
    write_tensors(folder, weights, &[("weight", &[3])]);
    assert_says(load(folder), &["unet/config.json: no width"]);
    write(folder, "unet/config.json", "{\"width\": 3}");
    assert_eq!(load(folder).unwrap().dtype(), DType::F32);

    write(folder, "unet/config.json", "{\"width\": 4}");
    assert_says(
        load(folder),
        &["tensor weight has the shape [3]", "[4]", "config.json do not belong together"],
    );
    write_tensors(folder, weights, &[("bias", &[4])]);
    assert_says(load(folder), &["has no tensor weight", "[4]"]);
    write_tensors(folder, weights, &[("weight", &[4]), ("bias", &[4])]);
    assert_says(load(folder), &["has tensors that the model does not use (1): bias"]);
    write(folder, weights, "");
    assert_says(load(folder), &["diffusion_pytorch_model.safetensors is empty"]);
    write(folder, weights, "<html>no such page</html>");
    assert_says(load(folder), &["is not a safetensors file"]);
}

#[test]
fn sharded_weights_load_and_cannot_lead_outside() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder, "unet/config.json", "{\"width\": 3}");
    write_tensors(folder, "unet/diffusion_pytorch_model-00001-of-00002.safetensors", &[("weight", &[3])]);
    write_tensors(folder, "secret.safetensors", &[("weight", &[3])]);
    let index = "unet/diffusion_pytorch_model.safetensors.index.json";
    let shard = |name: &str| json!({"weight_map": {"weight": name}}).to_string();
    write(folder, index, shard("diffusion_pytorch_model-00001-of-00002.safetensors"));
    load(folder).unwrap();
    write(folder, index, shard("../secret.safetensors"));
    assert_says(load(folder), &["index.json", "../secret.safetensors", "weight", "plain file name"]);
    write(folder, index, shard("missing.safetensors"));
    assert_says(load(folder), &["index.json names the shard missing.safetensors"]);
}

#[test]
fn files_in_memory_are_a_repository() {
    static FILES: &[(&str, &[u8])] = &[
        ("model_index.json", INDEX.as_bytes()),
        ("unet/config.json", b"{}"),
        ("unet/model.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
    ];
    let repository = Repository::embedded("the embedded model", FILES);
    assert_eq!(repository.list(""), ["model_index.json", "unet"]);
    assert_eq!(repository.list("unet"), ["config.json", "model.safetensors"]);
    assert!(repository.exists("unet/config.json") && !repository.exists("unet"));
    ModelIndex::load(&repository).unwrap();
    assert!(repository.open_checkpoint("unet/model.safetensors").unwrap().is_empty());
    assert_says(repository.read("vae/config.json"), &["the embedded model has no vae/config.json"]);
}

#[cfg(unix)]
#[test]
fn names_that_are_not_utf8_are_no_obstacle() {
    use std::os::unix::ffi::OsStrExt;
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join(std::ffi::OsStr::from_bytes(b"mod\xffel"));
    write(&folder, "model_index.json", INDEX);
    fs::write(folder.join(std::ffi::OsStr::from_bytes(b"\xfe.bin")), "").unwrap();
    let repository = Repository::folder(&folder).unwrap();
    ModelIndex::load(&repository).unwrap();
    assert_says(find_weights(&repository, "unet", None), &["mod\u{fffd}el/unet has no"]);
    assert_says(
        Repository::folder(parent.path().join(std::ffi::OsStr::from_bytes(b"\xff"))),
        &["no such file or folder"],
    );
}

#[test]
fn damaged_weights_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let weights = "unet/diffusion_pytorch_model.safetensors";
    write(folder, "unet/config.json", "{\"width\": 3}");
    write_tensors(folder, weights, &[("weight", &[3])]);
    let whole = fs::read(folder.join(weights)).unwrap();
    for length in 0..whole.len() {
        write(folder, weights, &whole[..length]);
        assert_says(load(folder), &["diffusion_pytorch_model.safetensors"]);
    }
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            write(folder, weights, bytes);
            // A flipped bit in the values is not noticed; everything else is an error.
            load(folder).err();
        }
    }
}

#[cfg(unix)]
#[test]
fn files_without_an_end_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let repository = Repository::folder(folder.path()).unwrap();
    std::os::unix::fs::symlink("/dev/zero", folder.path().join("config.json")).unwrap();
    assert_says(repository.read("config.json"), &["config.json", "not a regular file"]);
    assert_says(repository.read_json::<Value>("config.json"), &["config.json", "not a regular file"]);
    fs::create_dir(folder.path().join("unet")).unwrap();
    assert_says(repository.read("unet"), &["unet", "is a directory"]);
    let huge = fs::File::create(folder.path().join("huge.json")).unwrap();
    huge.set_len(1 << 40).unwrap();
    assert_says(repository.read("huge.json"), &["huge.json", "larger than"]);
}
