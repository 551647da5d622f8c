//! Prompts of every kind through tokenizers as repositories have them: the ids and the text that is cut off.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_diffusers_loaders::{ClipTokenizer, Repository};
use candle_diffusers_test_support::Fixture;
use flate2::read::GzDecoder;
use serde_json::Value;

fn here(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/clip_tokenizer")).join(name)
}

pub(crate) fn read_json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&fs::read(here(name)).unwrap()).unwrap()
}

/// vocab.json and merges.txt of the real CLIP, from its list of merges (openai/CLIP, simple_tokenizer.py).
fn write_clip_vocabulary(folder: &Path) {
    let mut lines = String::new();
    let merges = concat!(env!("CARGO_MANIFEST_DIR"), "/../convert/assets/bpe_simple_vocab_16e6.txt.gz");
    let file = fs::File::open(merges).unwrap();
    GzDecoder::new(file).read_to_string(&mut lines).unwrap();
    let merges: Vec<&str> = lines.split('\n').skip(1).take(49152 - 256 - 2).collect();
    let printable = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let characters: Vec<char> = printable.chain((256..).filter_map(char::from_u32)).take(256).collect();
    let mut tokens: Vec<String> = characters.iter().map(char::to_string).collect();
    tokens.extend(characters.iter().map(|c| format!("{c}</w>")));
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    tokens.extend(["<|startoftext|>".to_string(), "<|endoftext|>".to_string()]);
    assert_eq!(tokens.len(), 49408);
    let vocab: HashMap<String, usize> =
        tokens.into_iter().enumerate().map(|(id, token)| (token, id)).collect();
    fs::write(folder.join("vocab.json"), serde_json::to_vec(&vocab).unwrap()).unwrap();
    fs::write(folder.join("merges.txt"), format!("#version: 0.2\n{}\n", merges.join("\n"))).unwrap();
}

pub(crate) fn load(case: &Value) -> ClipTokenizer {
    let folder = tempfile::tempdir().unwrap();
    match case["vocabulary"].as_str().unwrap() {
        "clip" => write_clip_vocabulary(folder.path()),
        other => fs::read_dir(here(other)).unwrap().map(Result::unwrap).for_each(|file| {
            fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }),
    }
    for (file, contents) in case["files"].as_object().unwrap() {
        match contents {
            Value::Null => fs::remove_file(folder.path().join(file)).unwrap(),
            contents => fs::write(folder.path().join(file), contents.to_string()).unwrap(),
        }
    }
    ClipTokenizer::load(&Repository::folder(folder.path()).unwrap(), "").unwrap()
}

#[test]
fn ids_and_removed_texts_are_those_of_transformers() {
    let fixture = Fixture::open(here("clip_tokenizer.safetensors"));
    let prompts: Vec<String> = read_json("prompts.json");
    let cases: HashMap<String, Value> = read_json("cases.json");
    let removed: HashMap<String, HashMap<String, String>> = read_json("removed.json");
    assert_eq!(cases.len(), fixture.names().len());
    for (name, case) in &cases {
        let tokenizer = load(case);
        let expected = fixture.values(name);
        assert_eq!(expected.len(), prompts.len() * tokenizer.max_length(), "{name}");
        for (i, (prompt, expected)) in prompts.iter().zip(expected.chunks(tokenizer.max_length())).enumerate()
        {
            let encoded = tokenizer.encode(prompt).unwrap();
            let expected: Vec<u32> = expected.iter().map(|id| *id as u32).collect();
            assert_eq!(encoded.ids, expected, "{name}, prompt {i}: {prompt:?}");
            let expected = removed[name].get(&i.to_string());
            assert_eq!(encoded.removed.as_ref(), expected, "{name}, prompt {i}: {prompt:?}");
        }
    }
}

#[test]
fn a_hundred_kilobytes_are_cut_and_quickly() {
    let cases: HashMap<String, Value> = read_json("cases.json");
    let tokenizer = load(&cases["sd1"]);
    for prompt in
        ["a photo of a cat, ".repeat(6_000), "a".repeat(100_000), "ab!1 ".repeat(20_000), "字".repeat(34_000)]
    {
        let start = Instant::now();
        let encoded = tokenizer.encode(&prompt).unwrap();
        assert_eq!(encoded.ids.len(), 77);
        assert!(encoded.removed.unwrap().len() > 10_000);
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
}
