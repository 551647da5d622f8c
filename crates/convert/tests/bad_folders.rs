//! Folders that are not whole or not what is converted: each is an error that names the file and the field.

#[path = "parity/single_file/case.rs"]
mod case;

use std::fs;
use std::path::Path;

use candle_diffusers_convert::{ConvertOptions, Dtype, convert};
use case::{Case, values};
use serde_json::{Value, json};

/// A whole folder of a small Stable Diffusion 1.
fn folder(place: &Path) -> std::path::PathBuf {
    let case = Case::read("small_sd1");
    let bytes: Vec<_> = case
        .original
        .iter()
        .map(|(name, shape)| (name, shape, values(name, shape.iter().product())))
        .collect();
    let views: Vec<_> = bytes
        .iter()
        .map(|(name, shape, bytes)| {
            let view = safetensors::tensor::TensorView::new(Dtype::F16, shape.to_vec(), bytes);
            (name.as_str(), view.expect("shape and bytes agree"))
        })
        .collect();
    let file = place.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &file).expect("the folder can be written");
    let folder = place.join("folder");
    convert(&file, &folder, &ConvertOptions::default(), &|_| {}).expect("a whole checkpoint");
    folder
}

#[track_caller]
fn assert_refused(change: impl Fn(&Path), expected: &[&str]) {
    let place = tempfile::tempdir().expect("a temporary folder");
    let folder = folder(place.path());
    change(&folder);
    let destination = place.path().join("back.safetensors");
    let refused = convert(&folder, &destination, &ConvertOptions::default(), &|_| {});
    let message = refused.expect_err("should be refused").to_string();
    for expected in expected {
        assert!(message.contains(expected), "{message}");
    }
    assert!(!destination.exists() && !message.contains('\n'), "{message}");
}

fn set(folder: &Path, file: &str, field: &str, value: Value) {
    let path = folder.join(file);
    let text = fs::read(&path).expect("the file is there");
    let mut json: Value = serde_json::from_slice(&text).expect("JSON");
    json[field] = value;
    fs::write(path, json.to_string()).expect("it can be written");
}

#[test]
fn files_that_are_missing_or_no_json() {
    let remove =
        |file: &'static str| move |folder: &Path| fs::remove_file(folder.join(file)).expect("it is there");
    assert_refused(remove("model_index.json"), &["folder", "neither model_index.json nor config.json"]);
    assert_refused(remove("unet/config.json"), &["unet/config.json"]);
    assert_refused(remove("vae/diffusion_pytorch_model.safetensors"), &["vae", "has no weights"]);
    assert_refused(
        |folder| fs::write(folder.join("vae/config.json"), "[]").expect("it can be written"),
        &["vae/config.json", "JSON object"],
    );
    assert_refused(
        |folder| {
            fs::write(folder.join("unet/diffusion_pytorch_model.safetensors"), "x")
                .expect("it can be written")
        },
        &["unet/diffusion_pytorch_model.safetensors", "1 bytes"],
    );
}

#[test]
fn pipelines_and_fields_that_are_not_known() {
    let change = |file: &'static str, field: &'static str, value: Value| {
        move |folder: &Path| set(folder, file, field, value.clone())
    };
    assert_refused(
        change("model_index.json", "_class_name", json!("FluxPipeline")),
        &["FluxPipeline", "is not converted"],
    );
    assert_refused(change("model_index.json", "vae", json!([null, null])), &["has no vae"]);
    let unet = "unet/config.json";
    assert_refused(change(unet, "block_out_channels", json!([])), &[unet, "`block_out_channels` is []"]);
    assert_refused(change(unet, "block_out_channels", json!([32, -1])), &["-1"]);
    assert_refused(change(unet, "layers_per_block", json!(1e30)), &["layers_per_block"]);
    assert_refused(change(unet, "layers_per_block", json!(500)), &["missing"]);
    assert_refused(
        change(unet, "transformer_layers_per_block", json!([[1, 2], 1])),
        &["transformer_layers_per_block"],
    );
    assert_refused(change(unet, "cross_attention_dim", json!(80)), &["unet", "attn2", "80]"]);
    assert_refused(change(unet, "mid_block_type", json!("Odd")), &["mid_block_type", "Odd"]);
    assert_refused(change("vae/config.json", "layers_per_block", json!(9)), &["VAE", "missing"]);
    assert_refused(change("text_encoder/config.json", "num_hidden_layers", json!(2)), &["have no place"]);
}

#[test]
fn absurd_depths_do_not_fill_memory() {
    let absurd = |folder: &Path| {
        set(folder, "unet/config.json", "layers_per_block", json!(500));
        set(folder, "unet/config.json", "transformer_layers_per_block", json!(500));
    };
    assert_refused(absurd, &["UNet", "several thousand layers"]);
}
