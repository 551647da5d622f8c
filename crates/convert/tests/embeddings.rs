//! Embedding files that are none, or cannot be used: each is one clear line that names the file; and what the widths of those that
//! can tell.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use candle_diffusers_convert::{
    Checkpoint, ConvertOptions, Dtype, EmbeddingFile, EmbeddingFormat, Family, Source, TensorFile,
    WriteOptions, convert,
};
use serde_json::{Map, Value, json};

/// A safetensors file of these tensors.
fn file(tensors: &[(&str, &[usize], Dtype)], metadata: Value, value: u8) -> Vec<u8> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape, dtype) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let entry = json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [start, end]});
        header.insert(name.to_string(), entry);
    }
    header.insert("__metadata__".to_string(), metadata);
    let header = Value::Object(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    [&length, header.as_bytes(), &vec![value; end]].concat()
}

fn source(tensors: &[(&str, &[usize], Dtype)], metadata: Value) -> Checkpoint {
    let bytes = file(tensors, metadata, 0);
    Checkpoint::from_file(TensorFile::from_bytes("folder/style.safetensors", bytes).unwrap())
}

fn read(tensors: &[(&str, &[usize], Dtype)]) -> EmbeddingFile {
    EmbeddingFile::read(&source(tensors, json!({}))).unwrap()
}

#[track_caller]
fn assert_refused(tensors: &[(&str, &[usize], Dtype)], metadata: Value, expected: &str) {
    let error = EmbeddingFile::read(&source(tensors, metadata)).unwrap_err().to_string();
    assert!(error.starts_with("folder/style.safetensors") && error.contains(expected), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn widths_tell_the_family() {
    let family = |tensors: &[(&str, &[usize], Dtype)]| read(tensors).family();
    assert_eq!(family(&[("<cat>", &[4, 768], Dtype::F32)]), Some(Family::StableDiffusion1));
    assert_eq!(family(&[("emb_params", &[1024], Dtype::F16)]), Some(Family::StableDiffusion2));
    assert_eq!(family(&[("<cat>", &[1280], Dtype::F16)]), Some(Family::StableDiffusionXl));
    assert_eq!(family(&[("<cat>", &[2, 16], Dtype::F16)]), None);
    let both: &[(&str, &[usize], Dtype)] =
        &[("clip_l", &[2, 768], Dtype::F32), ("clip_g", &[2, 1280], Dtype::F32)];
    assert_eq!(family(both), Some(Family::StableDiffusionXl));
}

#[test]
fn tokens_are_from_the_file_or_from_its_name() {
    let token = |tensors: &[(&str, &[usize], Dtype)], metadata: Value| {
        EmbeddingFile::read(&source(tensors, metadata)).unwrap().embeddings[0].token.clone()
    };
    assert_eq!(token(&[("my.style", &[768], Dtype::F32)], json!({})), "my.style");
    assert_eq!(token(&[("emb_params", &[768], Dtype::F32)], json!({})), "style");
    assert_eq!(token(&[("emb_params", &[768], Dtype::F32)], json!({"name": "<x>"})), "<x>");
    assert_eq!(token(&[("string_to_param.*", &[768], Dtype::F32)], json!({})), "style");
    assert_eq!(token(&[("string_to_param.sks", &[768], Dtype::F32)], json!({})), "sks");
    let several: &[(&str, &[usize], Dtype)] =
        &[("string_to_param.a", &[8], Dtype::F32), ("string_to_param.b", &[8], Dtype::F32)];
    assert_eq!(token(several, json!({"name": "both"})), "a");
}

#[test]
fn what_looks_like_one() {
    let looks = |tensors: &[(&str, &[usize], Dtype)]| {
        EmbeddingFile::looks_like_one(&source(tensors, json!({})).inventory())
    };
    let float = Dtype::F32;
    assert!(looks(&[("<cat>", &[8], float)]));
    assert!(looks(&[("cat", &[2, 1024], float), ("dog", &[1, 1024], float)]));
    assert!(looks(&[("clip_g", &[2, 1280], float)]));
    assert!(looks(&[("emb_params", &[2, 3, 4], float)]), "what is wrong with it is told when it is read");
    assert!(!looks(&[]));
    assert!(looks(&[("plain", &[4, 16], float)]));
    assert!(looks(&[("tensor", &[4, 768], float)]) && !looks(&[("tensor", &[4, 16], float)]));
    assert!(!looks(&[("weight", &[4, 768], float)]));
    assert!(!looks(&[("matrix", &[1000, 16], float)]));
    assert!(!looks(&[("betas", &[1000], float)]));
    assert!(!looks(&[("cat", &[2, 1024], Dtype::I64)]));
    assert!(!looks(&[("text_model.final_layer_norm.weight", &[768], float)]));
    assert!(!looks(&[("clip_l.text_model.final_layer_norm.weight", &[768], float)]));
    assert!(!looks(&[("<cat>", &[768], float), ("a.weight", &[768], float)]));
}

#[test]
fn files_that_are_no_embeddings() {
    let float = Dtype::F32;
    assert_refused(&[], json!({}), "is not a textual inversion embedding: it has no tensors");
    let lora: &[(&str, &[usize], Dtype)] = &[("lora_unet_mid.lora_up.weight", &[4, 4], float)];
    assert_refused(lora, json!({}), "it looks like a LoRA");
    let model: &[(&str, &[usize], Dtype)] = &[("a.bias", &[4], float), ("a.weight", &[4, 4], float)];
    assert_refused(model, json!({}), "its 2 tensors are those of a model, the first: a.bias, a.weight");
}

#[test]
fn tensors_that_are_no_vectors() {
    let float = Dtype::F32;
    for shape in [&[][..], &[0], &[0, 768], &[2, 0], &[1, 2, 768]] {
        assert_refused(&[("<cat>", shape, float)], json!({}), "tensor <cat> has the shape");
        assert_refused(&[("emb_params", shape, float)], json!({}), "expected (vectors, width)");
    }
    assert_refused(&[("<cat>", &[1025, 1], float)], json!({}), "1025 vectors, at most 1024");
    assert_refused(&[("<cat>", &[2, 4], Dtype::I64)], json!({}), "I64, but vectors are floating-point");
    let xl: &[(&str, &[usize], Dtype)] =
        &[("clip_l", &[2, 768], float), ("clip_g", &[2, 1280], float), ("t5xxl", &[2, 4096], float)];
    assert_refused(xl, json!({}), "tensor t5xxl stands beside clip_l and clip_g");
    let params: &[(&str, &[usize], Dtype)] = &[("emb_params", &[2, 768], float), ("more", &[1], float)];
    assert_refused(params, json!({}), "tensor more stands beside emb_params");
}

#[test]
fn tokens_that_are_none() {
    let float = Dtype::F32;
    assert_refused(&[("  ", &[4], float)], json!({}), "the token \"  \" is empty");
    assert_refused(&[("a\nb", &[4], float)], json!({}), "has control characters");
    assert_refused(&[("emb_params", &[4], float)], json!({"name": "x".repeat(1025)}), "is too long");
}

fn options(embedding_format: EmbeddingFormat, dtype: Option<Dtype>) -> ConvertOptions {
    let write = WriteOptions { dtype, ..WriteOptions::default() };
    ConvertOptions { embedding_format: Some(embedding_format), write, ..ConvertOptions::default() }
}

#[test]
fn what_has_no_place_is_refused_and_nothing_written() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let two: &[(&str, &[usize], Dtype)] = &[("<a>", &[8], Dtype::F32), ("<b>", &[8], Dtype::F32)];
    fs::write(at("two.safetensors"), file(two, json!({}), 0)).unwrap();
    fs::write(at("solid.safetensors"), file(&[("<a>", &[1, 2, 8], Dtype::F32)], json!({}), 0)).unwrap();
    let refuse = |source: &str, destination: &str, format: EmbeddingFormat, expected: &str| {
        let error = convert(&at(source), &at(destination), &options(format, None), &|_| {}).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!at(destination).exists());
    };
    refuse("two.safetensors", "out.safetensors", EmbeddingFormat::WebUi, "holds 2 embeddings");
    refuse("two.safetensors", "out", EmbeddingFormat::WebUi, "ends with .safetensors");
    refuse("two.safetensors", "out.pt", EmbeddingFormat::WebUi, ".pt file is not written");
    let lora: &[(&str, &[usize], Dtype)] = &[
        ("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight", &[4, 4], Dtype::F32),
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", &[4, 4], Dtype::F32),
    ];
    fs::write(at("lora.safetensors"), file(lora, json!({}), 0)).unwrap();
    refuse("lora.safetensors", "out.safetensors", EmbeddingFormat::WebUi, "is not a textual inversion");
    refuse("solid.safetensors", "out.safetensors", EmbeddingFormat::Diffusers, "[1, 2, 8]");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn element_types_change_and_values_that_are_no_numbers_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // All bits set is a NaN.
    fs::write(at("nan.safetensors"), file(&[("<a>", &[2, 8], Dtype::F32)], json!({}), 0xff)).unwrap();
    let run = |to: &Path, dtype| {
        convert(&at("nan.safetensors"), to, &options(EmbeddingFormat::WebUi, dtype), &|_| {}).unwrap()
    };
    let report = run(&at("out.safetensors"), Some(Dtype::F16));
    let lines = report.lines().join("\n");
    assert!(lines.contains("infinite or not numbers in emb_params"), "{lines}");
    let out = TensorFile::open(at("out.safetensors")).unwrap();
    let tensor = out.get("emb_params").unwrap();
    assert_eq!((tensor.shape.as_slice(), tensor.dtype), ([2, 8].as_slice(), Dtype::F16));
    assert_eq!(out.metadata()["name"], "<a>");
    let report = run(&at("same.safetensors"), None);
    assert_eq!(report.not_finite, ["<a>"]);
}

#[test]
fn a_short_header_is_not_taken_for_a_pickle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("short.safetensors");
    let tensors: &[(&str, &[usize], Dtype)] = &[("<a>", &[1, 8], Dtype::F32)];
    let mut note = String::new();
    // With a header of 128 bytes the file begins as a pickle does.
    while file(tensors, json!({"note": note}), 0).len() - 8 - 32 < 128 {
        note.push('x');
    }
    let bytes = file(tensors, json!({"note": note}), 0);
    assert_eq!(bytes[..2], [0x80, 0]);
    fs::write(&path, bytes).unwrap();
    let (read, _) = EmbeddingFile::open(&path).unwrap();
    assert_eq!(read.embeddings[0].token, "<a>");
}
