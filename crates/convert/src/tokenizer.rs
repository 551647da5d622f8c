//! The files of CLIP's tokenizer, with OpenAI's vocabulary, which all the families share.

use std::io::Read;

use flate2::read::GzDecoder;
use serde_json::json;

/// OpenAI's byte pair merges, as open_clip_torch distributes them; the licence lies beside the file.
const MERGES: &[u8] = include_bytes!("../assets/bpe_simple_vocab_16e6.txt.gz");

/// How many of the merges CLIP uses (openai/CLIP, `simple_tokenizer.py`).
const MERGES_USED: usize = CLIP_TOKENS - 2 * 256 - 2;

/// How many tokens the vocabulary has.
pub(crate) const CLIP_TOKENS: usize = 49408;

/// The names and contents of a tokenizer's files; prompts are filled up with `pad_token`.
pub(crate) fn tokenizer_files(pad_token: &str) -> Vec<(&'static str, Vec<u8>)> {
    let (vocabulary, merges) = vocabulary_and_merges();
    let token = |content: &str| json!({"content": content, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false});
    let special = json!({
        "bos_token": token("<|startoftext|>"),
        "eos_token": token("<|endoftext|>"),
        "pad_token": pad_token,
        "unk_token": token("<|endoftext|>"),
    });
    let typed = |content: &str| {
        let mut token = token(content);
        token["__type"] = json!("AddedToken");
        token
    };
    let config = json!({
        "add_prefix_space": false,
        "bos_token": typed("<|startoftext|>"),
        "do_lower_case": true,
        "eos_token": typed("<|endoftext|>"),
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": pad_token,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": typed("<|endoftext|>"),
    });
    vec![
        ("merges.txt", merges.into_bytes()),
        ("special_tokens_map.json", pretty(&special)),
        ("tokenizer_config.json", pretty(&config)),
        ("vocab.json", vocabulary.into_bytes()),
    ]
}

/// JSON as people read it, with a line's end after it.
pub(crate) fn pretty(value: &serde_json::Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// `vocab.json` and `merges.txt`.
fn vocabulary_and_merges() -> (String, String) {
    let mut text = String::new();
    // The bytes are part of the program: reading them cannot fail, and a test reads all.
    GzDecoder::new(MERGES).read_to_string(&mut text).ok();
    let merges: Vec<&str> = text.split('\n').skip(1).take(MERGES_USED).collect();
    // The characters that stand for the 256 bytes: those that can be printed, then others in their place.
    let printable = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let characters: Vec<char> = printable.chain((256..).filter_map(char::from_u32)).take(256).collect();
    let mut tokens: Vec<String> = characters.iter().map(char::to_string).collect();
    tokens.extend(characters.iter().map(|character| format!("{character}</w>")));
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    tokens.extend(["<|startoftext|>".to_string(), "<|endoftext|>".to_string()]);
    let entries: Vec<String> =
        tokens.iter().enumerate().map(|(id, token)| format!("{}: {id}", json!(token))).collect();
    (format!("{{{}}}\n", entries.join(", ")), format!("#version: 0.2\n{}\n", merges.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vocabulary_is_that_of_clip() {
        let (vocabulary, merges) = vocabulary_and_merges();
        let vocabulary: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&vocabulary).unwrap();
        assert_eq!(vocabulary.len(), CLIP_TOKENS);
        // Ids that transformers gives, from openai/clip-vit-large-patch14.
        for (token, id) in [("!", 0), ("cat</w>", 2368), ("<|startoftext|>", 49406), ("<|endoftext|>", 49407)]
        {
            assert_eq!(vocabulary[token], id, "{token}");
        }
        assert_eq!(merges.lines().count(), 1 + MERGES_USED);
    }
}
