//! Tokens that are added to tokenizers as repositories have them: their ids, and those of texts with them.

use std::collections::BTreeMap;

use candle_diffusers_loaders::ClipTokenizer;
use serde::Deserialize;

use crate::clip_tokenizer::{load, read_json};

/// Tokenizer names to what the reference says.
type Expected = BTreeMap<String, Case>;

#[derive(Deserialize)]
struct Case {
    known: usize,
    added: BTreeMap<String, u32>,
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    text: String,
    ids: Vec<u32>,
    tokens: Vec<String>,
}

fn expected() -> Expected {
    let text = include_str!("added_tokens.json");
    serde_json::from_str(text).unwrap()
}

fn load_case(name: &str) -> ClipTokenizer {
    let cases: BTreeMap<String, serde_json::Value> = read_json("cases.json");
    load(&cases[name])
}

fn check(name: &str, tokenizer: &ClipTokenizer, case: &Case) {
    for Prompt { text, ids, tokens } in &case.prompts {
        assert_eq!(&tokenizer.encode_pieces(text).unwrap(), ids, "{name}: {text:?}");
        assert_eq!(&tokenizer.tokenize(text).unwrap(), tokens, "{name}: {text:?}");
    }
}

/// In the order of their ids.
fn tokens(case: &Case) -> Vec<&str> {
    let mut tokens: Vec<(&str, u32)> = case.added.iter().map(|(token, id)| (token.as_str(), *id)).collect();
    tokens.sort_by_key(|(_, id)| *id);
    tokens.into_iter().map(|(token, _)| token).collect()
}

#[test]
fn ids_are_those_of_transformers() {
    for (name, case) in &expected() {
        let mut tokenizer = load_case(name);
        assert_eq!(tokenizer.vocab_size(), case.known, "{name}");
        let tokens = tokens(case);
        // One by one and several at once.
        let (single, rest) = tokens.split_at(4);
        for token in single {
            assert_eq!(tokenizer.add_tokens(&[token]).unwrap(), [case.added[*token]], "{name}: {token}");
        }
        let ids: Vec<u32> = rest.iter().map(|token| case.added[*token]).collect();
        assert_eq!(tokenizer.add_tokens(rest).unwrap(), ids, "{name}");
        assert_eq!(tokenizer.loaded_tokens(), tokens);
        check(name, &tokenizer, case);
    }
}

#[test]
fn tokens_can_be_taken_away_again() {
    let expected = expected();
    let (name, case) = ("sd1", &expected["sd1"]);
    let pristine = load_case(name);
    let mut tokenizer = pristine.clone();
    let others = ["<before>", "<between>", "<after>"];
    let tokens = tokens(case);
    let (first, second) = tokens.split_at(7);
    tokenizer.add_tokens(&others[..1]).unwrap();
    tokenizer.add_tokens(first).unwrap();
    tokenizer.add_tokens(&others[1..2]).unwrap();
    tokenizer.add_tokens(second).unwrap();
    tokenizer.add_tokens(&others[2..]).unwrap();
    let ids = others.map(|token| tokenizer.token_to_id(token).unwrap());
    assert_eq!(tokenizer.remove_tokens(&others).unwrap(), ids);
    assert_eq!(tokenizer.loaded_tokens(), tokens);
    check(name, &tokenizer, case);
    tokenizer.remove_tokens(&tokens).unwrap();
    assert_eq!(tokenizer.vocab_size(), pristine.vocab_size());
    for Prompt { text, .. } in &case.prompts {
        assert_eq!(tokenizer.encode(text).unwrap(), pristine.encode(text).unwrap(), "{text:?}");
    }
}

#[test]
fn tokens_that_clash_are_refused_and_change_nothing() {
    let mut tokenizer = load_case("added");
    tokenizer.add_tokens(&["<Dog>"]).unwrap();
    let before = tokenizer.encode("<dog> <new> cat").unwrap();
    let cases: [(&[&str], &str); 7] = [
        (&["<Dog>"], "\"<Dog>\" is in the tokenizer's vocabulary already"),
        (&["cat"], "\"cat\" is in the tokenizer's vocabulary already"),
        (&["<cat-toy>"], "\"<cat-toy>\" is in"),
        (&["<new>", "<DOG>"], "\"<DOG>\" differs from the token \"<Dog>\" only in case"),
        (&["<new>", "<NEW>"], "\"<NEW>\" differs from the token \"<new>\" only in case"),
        (&["<new>", "<new>"], "\"<new>\" is in"),
        (&["<new>", " \n"], "empty"),
    ];
    for (tokens, message) in cases {
        let error = tokenizer.add_tokens(tokens).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains("vocab.json"), "{error}");
        assert_eq!(tokenizer.encode("<dog> <new> cat").unwrap(), before);
    }
    for token in ["<new>", "cat", "<cat-toy>", "<|endoftext|>"] {
        let error = tokenizer.remove_tokens(&["<Dog>", token]).unwrap_err().to_string();
        assert!(error.contains(token), "{error}");
    }
    assert_eq!(tokenizer.loaded_tokens(), ["<Dog>"]);
}
