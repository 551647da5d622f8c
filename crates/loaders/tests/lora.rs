//! LoRA files that do not fit, and names and weights that cannot be used.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use candle_diffusers_loaders::lora::{LoraAdapters, LoraModels, UnmatchedKeys};
use candle_diffusers_models::layers::{Layer, LayerAdapter, Layers};
use candle_diffusers_models::{UNet2DConditionConfig, UNet2DConditionModel};
use candle_diffusers_test_support::values;
use candle_nn::VarBuilder;
use serde_json::json;
use tempfile::TempDir;

const TO_K: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k";
const TO_Q: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";

/// A tiny UNet for text of the width of a family.
fn unet(text_width: usize) -> UNet2DConditionModel {
    let config = json!({
        "sample_size": 8, "block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 1,
        "cross_attention_dim": text_width, "attention_head_dim": 2,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    });
    let config = UNet2DConditionConfig::from_json(&config).unwrap();
    UNet2DConditionModel::new(&config, VarBuilder::zeros(DType::F32, &Device::Cpu)).unwrap()
}

fn models(unet: &UNet2DConditionModel) -> LoraModels<'_> {
    LoraModels { unet: Some(unet), ..Default::default() }
}

fn weight(unet: &UNet2DConditionModel, name: &str) -> Vec<f64> {
    values(&layer(unet, name).weight())
}

fn layer(unet: &UNet2DConditionModel, name: &str) -> Layer {
    unet.layers().into_iter().find(|(other, _)| other == name).unwrap().1
}

/// A folder for LoRA files.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A file in diffusers' layout with a product of rank 1 for each layer `(name, in, out)`.
    fn write(&self, file: &str, layers: &[(&str, usize, usize)]) -> PathBuf {
        self.write_with(file, layers, 1.0)
    }

    fn write_with(&self, file: &str, layers: &[(&str, usize, usize)], value: f32) -> PathBuf {
        let mut tensors = HashMap::new();
        for (name, input, output) in layers {
            let tensor = |shape: (usize, usize)| Tensor::full(value, shape, &Device::Cpu).unwrap();
            tensors.insert(format!("{name}.lora_A.weight"), tensor((1, *input)));
            tensors.insert(format!("{name}.lora_B.weight"), tensor((*output, 1)));
        }
        let path = self.0.path().join(file);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        path
    }
}

fn error(unet: &UNet2DConditionModel, path: &PathBuf, unmatched: UnmatchedKeys) -> String {
    let mut adapters = LoraAdapters::new();
    let error = adapters.load(&models(unet), "x", path, unmatched).unwrap_err().to_string();
    assert_eq!(adapters.list().count(), 0);
    assert!(error.contains(&path.display().to_string()), "{error}");
    error
}

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// What is logged while `work` runs.
fn warnings(work: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, work);
    String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let (unet, files) = (unet(768), Files::new());
    error(&unet, &files.0.path().join("missing.safetensors"), UnmatchedKeys::Refuse);
    let path = files.write("damaged.safetensors", &[(&format!("unet.{TO_Q}"), 8, 8)]);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
    error(&unet, &path, UnmatchedKeys::Refuse);
    std::fs::write(&path, "no tensors").unwrap();
    error(&unet, &path, UnmatchedKeys::Refuse);
    let no_lora = files.0.path().join("no_lora.safetensors");
    let tensors = HashMap::from([("decoder.conv_in.weight", Tensor::new(&[1f32], &Device::Cpu).unwrap())]);
    candle_core::safetensors::save(&tensors, &no_lora).unwrap();
    assert_has(&error(&unet, &no_lora, UnmatchedKeys::Skip), &["not a LoRA", "decoder.conv_in.weight"]);
}

#[test]
fn a_lora_for_another_family_says_which_it_looks_like() {
    let (unet, files) = (unet(768), Files::new());
    let path = files.write(
        "xl.safetensors",
        &[(&format!("unet.{TO_K}"), 2048, 640), ("unet.add_embedding.linear_1", 2816, 1280)],
    );
    let expected = [
        "looks like a LoRA for Stable Diffusion XL, and this is Stable Diffusion 1",
        "2 of its 2 layers do not fit",
        "attn2.to_k.lora_A.weight",
    ];
    for unmatched in [UnmatchedKeys::Refuse, UnmatchedKeys::Skip] {
        assert_has(&error(&unet, &path, unmatched), &expected);
    }
    let text = files.write(
        "te.safetensors",
        &[("text_encoder_2.text_model.encoder.layers.3.self_attn.q_proj", 1280, 1280)],
    );
    assert_has(&error(&unet, &text, UnmatchedKeys::Refuse), &["Stable Diffusion XL"]);
}

#[test]
fn a_layer_of_another_shape_is_named_with_both_shapes() {
    let (unet, files) = (unet(12), Files::new());
    let layers = [(&*format!("unet.{TO_Q}"), 8, 8), (&format!("unet.{TO_K}"), 13, 8)];
    let text = error(&unet, &files.write("wide.safetensors", &layers), UnmatchedKeys::Skip);
    assert_has(&text, &["[8, 13]", "[8, 12]", &format!("unet.{TO_K}"), "1 of 2 layers"]);
    // A matrix for a kernel of 3x3.
    let text = error(&unet, &files.write("flat.safetensors", &[("unet.conv_in", 4, 8)]), UnmatchedKeys::Skip);
    assert_has(&text, &["unet.conv_in", "[8, 4, 3, 3]"]);
}

#[test]
fn keys_that_match_nothing_are_counted_and_may_be_left_out() {
    let (unet, files) = (unet(768), Files::new());
    let many: Vec<String> =
        (0..7).map(|i| format!("unet.down_blocks.{}.attentions.0.proj_in", i + 5)).collect();
    let mut layers: Vec<(&str, usize, usize)> = many.iter().map(|name| (name.as_str(), 8, 8)).collect();
    let ours = format!("unet.{TO_Q}");
    layers.push((&ours, 8, 8));
    let path = files.write("more.safetensors", &layers);
    let text = error(&unet, &path, UnmatchedKeys::Refuse);
    assert_has(
        &text,
        &["match no layer of the model (7)", "down_blocks.5.attentions.0.proj_in.lora_A.weight", ", ..."],
    );

    let mut adapters = LoraAdapters::new();
    let warned = warnings(|| adapters.load(&models(&unet), "x", &path, UnmatchedKeys::Skip).unwrap());
    assert_has(&warned, &["7 keys match no layer", "down_blocks.5"]);
    adapters.set_adapters(&[("x", 0.5)]).unwrap();
    adapters.fuse().unwrap();
    assert!(weight(&unet, TO_Q).iter().all(|value| *value == 0.5));
    assert!(weight(&unet, TO_K).iter().all(|value| *value == 0.0));

    let nothing = files.write("nothing.safetensors", &layers[..7]);
    assert_has(&error(&unet, &nothing, UnmatchedKeys::Skip), &["changes no layer", "none of its 7 keys"]);
}

#[test]
fn values_that_are_no_numbers_are_a_warning_with_the_tensor() {
    let (unet, files) = (unet(768), Files::new());
    let path = files.write_with("nan.safetensors", &[(&format!("unet.{TO_Q}"), 8, 8)], f32::NAN);
    let mut adapters = LoraAdapters::new();
    let warned = warnings(|| adapters.load(&models(&unet), "x", &path, UnmatchedKeys::Refuse).unwrap());
    assert_has(&warned, &["WARN", "nan.safetensors", "2 tensor(s)", &format!("unet.{TO_Q}.lora_A.weight")]);
}

#[test]
fn names_and_weights_are_checked_before_anything_changes() {
    let (unet, files) = (unet(768), Files::new());
    let path = files.write("a.safetensors", &[(&format!("unet.{TO_Q}"), 8, 8)]);
    let mut adapters = LoraAdapters::new();
    let none = adapters.set_adapters(&[("a", 1.0)]).unwrap_err().to_string();
    assert_has(&none, &["no LoRA called \"a\"", "none is"]);
    adapters.load(&models(&unet), "a", &path, UnmatchedKeys::Refuse).unwrap();
    let taken = adapters.load(&models(&unet), "a", &path, UnmatchedKeys::Refuse).unwrap_err();
    assert_has(&taken.to_string(), &["\"a\" is loaded already"]);
    adapters.set_adapters(&[("a", 1.0)]).unwrap();
    for (active, message) in [
        (vec![("a", 0.5), ("b", 1.0)], "loaded are a"),
        (vec![("a", 0.5), ("a", 1.0)], "named twice"),
        (vec![("a", f64::NAN)], "expected a finite number"),
        (vec![("a", f64::INFINITY)], "expected a finite number"),
    ] {
        assert_has(&adapters.set_adapters(&active).unwrap_err().to_string(), &[message]);
        assert_eq!(adapters.list().next().unwrap().strength, Some(1.0));
    }
    assert!(adapters.unload("b").is_err());
}

#[derive(Debug)]
struct Other;

impl LayerAdapter for Other {
    fn forward(&self, _: &Layer, _: &Tensor, output: Tensor) -> candle_diffusers_models::Result<Tensor> {
        Ok(output)
    }
}

#[test]
fn what_others_have_put_on_a_layer_is_left_there() {
    let (unet, files) = (unet(768), Files::new());
    let path = files.write("a.safetensors", &[(&format!("unet.{TO_Q}"), 8, 8)]);
    layer(&unet, TO_Q).set_adapter(Some(Arc::new(Other)));
    let mut adapters = LoraAdapters::new();
    let error = adapters.load(&models(&unet), "a", &path, UnmatchedKeys::Refuse).unwrap_err().to_string();
    assert_has(&error, &[&format!("unet.{TO_Q}"), "adapted already"]);
    assert!(layer(&unet, TO_Q).adapter().is_some());
    adapters.unload_all();
    assert!(layer(&unet, TO_Q).adapter().is_some());
}
