//! Embeddings in a tokenizer and a text encoder, and out of them again; what does not fit is named.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_diffusers_loaders::{
    ClipTokenizer, LoadOptions, Repository, TextEncoderPlace, TextualInversion, TokenVectors,
    load_text_encoder, load_textual_inversion, unload_textual_inversion,
};
use candle_diffusers_models::{ClipTextConfig, ClipTextModel};
use candle_diffusers_test_support::values;
use candle_nn::VarBuilder;

use TextEncoderPlace::{First, Second};

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn layouts(name: &str) -> PathBuf {
    crates().join("convert/tests/parity/embedding_layouts").join(name)
}

/// The tiny model of the pipelines' tests; its text encoder is 16 wide.
fn model() -> (ClipTokenizer, ClipTextModel) {
    let folder = crates().join("pipelines/tests/parity/text_to_image/sd1");
    let repository = Repository::folder(folder).unwrap();
    let tokenizer = ClipTokenizer::load(&repository, "tokenizer").unwrap();
    (tokenizer, load_text_encoder(&repository, "text_encoder", &LoadOptions::default()).unwrap())
}

/// A text encoder of zeros.
fn empty_text_encoder(vocab_size: usize, width: usize) -> ClipTextModel {
    let json = serde_json::json!({
        "vocab_size": vocab_size, "hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 24, "hidden_act": "gelu",
    });
    let config = ClipTextConfig::from_json(&json).unwrap();
    ClipTextModel::new(&config, VarBuilder::zeros(DType::F32, &Device::Cpu)).unwrap()
}

fn embedding(token: &str, vectors: usize, width: usize) -> TextualInversion {
    let vectors = Tensor::ones((vectors, width), DType::F32, &Device::Cpu).unwrap();
    TextualInversion {
        file: "style.pt".into(),
        token: token.into(),
        text_encoder: Some(TokenVectors { tensor: "emb_params".into(), vectors }),
        text_encoder_2: None,
    }
}

fn encode(tokenizer: &ClipTokenizer, text_encoder: &ClipTextModel, prompt: &str) -> Vec<f64> {
    let ids = Tensor::new(tokenizer.encode(prompt).unwrap().ids, &Device::Cpu).unwrap();
    values(&text_encoder.forward(&ids.unsqueeze(0).unwrap()).unwrap().last_hidden_state)
}

#[test]
fn unloading_leaves_what_was_there() {
    let (mut tokenizer, mut text_encoder) = model();
    let prompt = "a <dog> and bad-hands on a <cat-toy>";
    let before = encode(&tokenizer, &text_encoder, prompt);
    let size = text_encoder.vocab_size();
    let mut load = |name: &str| {
        let read = TextualInversion::read(layouts(name), None).unwrap();
        load_textual_inversion(&mut tokenizer, &mut text_encoder, &read, First).unwrap();
    };
    load("webui.pt");
    load("diffusers.safetensors");
    load("concept");
    let loaded = [
        "bad-hands",
        "bad-hands_1",
        "bad-hands_2",
        "bad-hands_3",
        "<dog>",
        "<dog>_1",
        "<dog>_2",
        "<cat-toy>",
    ];
    assert_eq!(tokenizer.loaded_tokens(), loaded);
    assert_eq!((text_encoder.vocab_size(), tokenizer.vocab_size()), (size + 8, size + 8));
    let with = encode(&tokenizer, &text_encoder, prompt);
    assert_ne!(with, before);

    // The others move up and stay what they are.
    let (mut without, mut encoder) = (tokenizer.clone(), text_encoder.clone());
    unload_textual_inversion(&mut without, &mut encoder, &["bad-hands"]).unwrap();
    assert_eq!(without.loaded_tokens(), &loaded[4..]);
    let others = "a <dog> <dog>_1 <dog>_2 <cat-toy>";
    assert_eq!(encode(&without, &encoder, others), encode(&tokenizer, &text_encoder, others));

    let error =
        unload_textual_inversion(&mut tokenizer, &mut text_encoder, &["<dog>", "<bird>"]).unwrap_err();
    assert!(error.to_string().contains("\"<bird>\"; loaded are bad-hands"), "{error}");
    assert_eq!(tokenizer.loaded_tokens(), loaded);
    unload_textual_inversion(&mut tokenizer, &mut text_encoder, &["<cat-toy>", "<dog>"]).unwrap();
    unload_textual_inversion(&mut tokenizer, &mut text_encoder, &[""; 0]).unwrap();
    assert_eq!(encode(&tokenizer, &text_encoder, prompt), before);
    assert_eq!(text_encoder.vocab_size(), size);
    let error = unload_textual_inversion(&mut tokenizer, &mut text_encoder, &["<dog>"]).unwrap_err();
    assert!(error.to_string().contains("none is loaded"), "{error}");
}

#[test]
fn both_text_encoders_of_sdxl_get_theirs() {
    for name in ["sdxl.safetensors", "sdxl.pt"] {
        let (mut tokenizer, mut text_encoder) = model();
        let mut tokenizer_2 = tokenizer.clone();
        let mut text_encoder_2 = empty_text_encoder(tokenizer.vocab_size(), 24);
        let read = TextualInversion::read(layouts(name), Some("<xl>")).unwrap();
        load_textual_inversion(&mut tokenizer, &mut text_encoder, &read, First).unwrap();
        load_textual_inversion(&mut tokenizer_2, &mut text_encoder_2, &read, Second).unwrap();
        assert_eq!(tokenizer.loaded_tokens(), ["<xl>", "<xl>_1"]);
        assert_eq!(tokenizer_2.loaded_tokens(), ["<xl>", "<xl>_1"]);
        // With the other's vectors it would not have gone.
        let error = load_textual_inversion(&mut tokenizer_2, &mut text_encoder_2, &read, First).unwrap_err();
        assert!(error.to_string().contains("width 16, but the text encoder takes 24"), "{error}");
    }
    let (mut tokenizer, mut text_encoder) = model();
    let single = [embedding("<x>", 1, 16)];
    let error = load_textual_inversion(&mut tokenizer, &mut text_encoder, &single, Second).unwrap_err();
    assert!(
        error.to_string().contains("style.pt: the embedding \"<x>\" has no vectors for the text_encoder_2")
    );
}

#[test]
fn what_does_not_fit_is_named_and_changes_nothing() {
    let (mut tokenizer, mut text_encoder) = model();
    load_textual_inversion(&mut tokenizer, &mut text_encoder, &[embedding("<old>", 3, 16)], First).unwrap();
    let before = encode(&tokenizer, &text_encoder, "<old> <new>");
    let cases = [
        (
            embedding("<new>", 1, 1024),
            "(tensor emb_params) have the width 1024, but the text encoder takes 16",
        ),
        (
            embedding("<new>", 1, 1024),
            "looks like one for Stable Diffusion 2, the text encoder like that of a",
        ),
        (embedding("<new>", 1, 768), "one for Stable Diffusion 1,"),
        (embedding("<new>", 1, 1280), "one for the second text encoder of Stable Diffusion XL,"),
        (embedding("<old>", 1, 16), "\"<old>\" cannot be added: \"<old>\" is in the tokenizer's vocabulary"),
        (embedding("<OLD>", 1, 16), "differs from the token \"<old>\" only in case"),
        (embedding("<old>_1", 1, 16), "is in the tokenizer's vocabulary"),
        (embedding("<old>_3", 1, 16), "would be taken for one of the vectors of the token \"<old>\""),
        (embedding("a", 1, 16), "is in the tokenizer's vocabulary already; give the embedding another token"),
        (embedding("<|endoftext|>", 1, 16), "is in the tokenizer's vocabulary"),
        (embedding("", 1, 16), "empty"),
    ];
    for (bad, message) in cases {
        // Nor is the good one before it loaded.
        let both = [embedding("<good>", 2, 16), bad];
        let error = load_textual_inversion(&mut tokenizer, &mut text_encoder, &both, First).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("style.pt: ") && error.contains(message), "{error}");
        assert_eq!(tokenizer.loaded_tokens(), ["<old>", "<old>_1", "<old>_2"]);
        assert_eq!(encode(&tokenizer, &text_encoder, "<old> <new>"), before);
    }
    let twice = [embedding("<twice>", 1, 16), embedding("<twice>", 1, 16)];
    assert!(load_textual_inversion(&mut tokenizer, &mut text_encoder, &twice, First).is_err());
    // A single one that would become the first vector of another.
    load_textual_inversion(&mut tokenizer, &mut text_encoder, &[embedding("<x>_1", 1, 16)], First).unwrap();
    let error = load_textual_inversion(&mut tokenizer, &mut text_encoder, &[embedding("<x>", 1, 16)], First)
        .unwrap_err();
    assert!(error.to_string().contains("the token \"<x>_1\" is there"), "{error}");
}

#[test]
fn tokenizer_and_text_encoder_have_to_belong_together() {
    let (mut tokenizer, _) = model();
    let known = tokenizer.vocab_size();
    let mut short = empty_text_encoder(known - 1, 16);
    let error =
        load_textual_inversion(&mut tokenizer, &mut short, &[embedding("<x>", 1, 16)], First).unwrap_err();
    let error = format!("{error}: {:?}", std::error::Error::source(&error));
    assert!(error.contains("style.pt") && error.contains("the tokenizer is of another model"), "{error}");
    assert!(tokenizer.loaded_tokens().is_empty());
    // A table that is padded has its surplus hidden.
    let mut long = empty_text_encoder(known + 100, 16);
    load_textual_inversion(&mut tokenizer, &mut long, &[embedding("<x>", 2, 16)], First).unwrap();
    assert_eq!(long.vocab_size(), known + 2);
}

#[test]
fn one_token_is_not_for_several_embeddings() {
    let read = |name: &str, token| TextualInversion::read(layouts(name), token);
    assert_eq!(read("webui.pt", Some("<hands>")).unwrap()[0].token, "<hands>");
    assert_eq!(read("several.safetensors", None).unwrap().len(), 2);
    let error = read("several.safetensors", Some("<x>")).unwrap_err().to_string();
    assert!(error.contains("several.safetensors has 2 embeddings (<s0>, <s1>)"), "{error}");
    assert!(read("nowhere.pt", None).unwrap_err().to_string().contains("nowhere.pt"));
}
