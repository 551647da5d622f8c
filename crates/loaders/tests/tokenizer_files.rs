//! Tokenizer files that are missing, damaged or strange.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;

use candle_diffusers_loaders::{ClipTokenizer, Error, Repository};

const VOCAB: &str = r#"{"a":0,"b":1,"a</w>":2,"b</w>":3,"ab</w>":4,"<|startoftext|>":5,"<|endoftext|>":6}"#;
const MERGES: &str = "#version: 0.2\na b</w>\n";

fn load(files: &[(&str, &str)]) -> Result<ClipTokenizer, Error> {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("tokenizer")).unwrap();
    files.iter().for_each(|(name, contents)| {
        fs::write(folder.path().join("tokenizer").join(name), contents).unwrap()
    });
    ClipTokenizer::load(&Repository::folder(folder.path()).unwrap(), "tokenizer")
}

#[track_caller]
fn assert_says(files: &[(&str, &str)], parts: &[&str]) {
    let message = load(files).expect_err("should fail").to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn the_length_is_77_where_no_file_says_it() {
    for config in
        ["{}", r#"{"model_max_length":null}"#, r#"{"model_max_length":1000000000000000019884624838656}"#]
    {
        let tokenizer =
            load(&[("vocab.json", VOCAB), ("merges.txt", MERGES), ("tokenizer_config.json", config)])
                .unwrap();
        assert_eq!(tokenizer.max_length(), 77);
        assert_eq!(tokenizer.encode("ab").unwrap().ids[..4], [5, 4, 6, 6]);
        assert_eq!(
            (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id(), tokenizer.vocab_size()),
            (5, 6, 6, 7)
        );
    }
}

#[test]
fn missing_and_damaged_vocabularies() {
    assert_says(&[], &["tokenizer/vocab.json", "no tokenizer.json either"]);
    assert_says(&[("vocab.json", VOCAB)], &["has no tokenizer/merges.txt"]);
    assert_says(&[("vocab.json", "[]"), ("merges.txt", MERGES)], &["tokenizer/vocab.json: "]);
    assert_says(&[("vocab.json", "{\"a\":-1}"), ("merges.txt", MERGES)], &["tokenizer/vocab.json: "]);
    assert_says(
        &[("vocab.json", VOCAB), ("merges.txt", "a b c\n")],
        &["merges.txt: line 1 is not a pair: \"a b c\""],
    );
    assert_says(&[("vocab.json", VOCAB), ("merges.txt", "a c\n")], &["tokenizer/vocab.json: "]);
    assert_says(&[("tokenizer.json", "{}")], &["tokenizer.json: there is no model"]);
    assert_says(&[("tokenizer.json", r#"{"model":{"type":"WordPiece"}}"#)], &["WordPiece"]);
    assert_says(
        &[("tokenizer.json", r#"{"model":{"vocab":{},"merges":[1]}}"#)],
        &["model.merges: 1 is not a pair"],
    );
    assert_says(&[("tokenizer.json", "{")], &["tokenizer.json: EOF"]);
}

#[test]
fn strange_settings() {
    let with = |config| [("vocab.json", VOCAB), ("merges.txt", MERGES), ("tokenizer_config.json", config)];
    assert_says(&with(r#"{"model_max_length":1}"#), &["tokenizer_config.json: model_max_length", "not 1"]);
    assert_says(&with(r#"{"model_max_length":"x"}"#), &["model_max_length", "\"x\""]);
    assert_says(&with(r#"{"padding_side":"left"}"#), &["padding_side", "left"]);
    assert_says(&with(r#"{"pad_token":3}"#), &["pad_token should be text"]);
    assert_says(&with(r#"{"pad_token":{}}"#), &["pad_token has no content"]);
    assert_says(&with(r#"{"added_tokens_decoder":{"x":"y"}}"#), &["\"x\" is not an id"]);
    assert_says(&with(r#"{"pad_token":""}"#), &["pad_token \"\" is not in the vocabulary"]);
}

#[test]
fn an_old_tokenizer_json_has_merges_as_text() {
    let json = format!(r#"{{"model":{{"type":"BPE","vocab":{VOCAB},"merges":["a b</w>"]}}}}"#);
    assert_eq!(load(&[("tokenizer.json", &json)]).unwrap().encode("AB").unwrap().ids[..3], [5, 4, 6]);
}
