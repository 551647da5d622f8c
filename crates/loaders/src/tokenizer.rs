use serde_json::{Map, Value};
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{Lowercase, NFC, Sequence as Normalizers};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use crate::tokenizer_added::Loaded;
use crate::tokenizer_config::TokenizerConfig;
use crate::weights::join;
use crate::{Error, Repository, Result};

/// What ends a word in the vocabulary.
const END_OF_WORD: &str = "</w>";

/// What CLIP takes for one piece of text: transformers, models/clip/tokenization_clip.py.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// CLIP's byte-level BPE: text to ids of a fixed length.
///
/// The ids equal those of `CLIPTokenizer` of transformers 5 for the same files.
#[derive(Debug, Clone)]
pub struct ClipTokenizer {
    pub(crate) tokenizer: Tokenizer,
    /// The tokenizer before tokens were added to it, and those tokens in the order of their ids.
    pub(crate) loaded: Loaded,
    file: String,
    bos_id: u32,
    eos_id: u32,
    pad_id: u32,
    max_length: usize,
}

/// A text as a text encoder takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// [`ClipTokenizer::max_length`] ids: start, the text as far as it fits, end, padding.
    pub ids: Vec<u32>,
    /// The part of the text that did not fit, in the tokenizer's spelling (lower case, spaces between pieces).
    pub removed: Option<String>,
}

impl ClipTokenizer {
    /// Reads the tokenizer in `folder` of `repository` (`tokenizer`; `""` where the repository is the tokenizer).
    ///
    /// The vocabulary comes from `tokenizer.json` where there is one, else from `vocab.json` and `merges.txt`. How text is
    /// cut up is always CLIP's way, whatever tokenizer.json says, as in transformers. Special tokens and the length come from
    /// `tokenizer_config.json` and `special_tokens_map.json`.
    ///
    /// # Errors
    /// When a file is missing, is not JSON of the expected form, or does not make a vocabulary.
    pub fn load(repository: &Repository, folder: &str) -> Result<Self> {
        let vocabulary = Vocabulary::load(repository, folder)?;
        let config = TokenizerConfig::load(repository, folder, vocabulary.added_tokens)?;
        let file = vocabulary.file;
        let bad = |message: String| Error::Tokenizer { file: file.clone(), message };
        let library =
            |error: tokenizers::Error| Error::Tokenizer { file: file.clone(), message: error.to_string() };

        let model = BPE::builder()
            .vocab_and_merges(vocabulary.vocab, vocabulary.merges)
            .unk_token(config.unk_token.clone())
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix(END_OF_WORD.to_string())
            .build()
            .map_err(library)?;
        let mut tokenizer = Tokenizer::new(model);
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_string()), " ").map_err(library)?;
        let normalizers = Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()]);
        tokenizer.with_normalizer(Some(normalizers)).map_err(library)?;
        let words = SplitPattern::Regex(WORDS.to_string());
        let words = Split::new(words, SplitDelimiterBehavior::Removed, true).map_err(library)?;
        let bytes = ByteLevel::new(false, true, true);
        tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![words.into(), bytes.into()])));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        tokenizer.add_tokens(config.added_tokens).map_err(library)?;

        let id = |what: &str, token: &str| {
            tokenizer
                .token_to_id(token)
                .ok_or_else(|| bad(format!("the {what} {token:?} is not in the vocabulary")))
        };
        let bos_id = id("bos_token", &config.bos_token)?;
        let eos_id = id("eos_token", &config.eos_token)?;
        let pad_id = id("pad_token", &config.pad_token)?;
        Ok(Self {
            tokenizer,
            loaded: Loaded::default(),
            bos_id,
            eos_id,
            pad_id,
            max_length: config.max_length,
            file,
        })
    }

    /// The ids of `text`, cut and padded to [`max_length`](Self::max_length).
    ///
    /// # Errors
    /// When the vocabulary lacks the bytes that the text needs.
    pub fn encode(&self, text: &str) -> Result<Encoded> {
        let mut pieces = self.encode_pieces(text)?;
        // Start and end always stay.
        let room = self.max_length - 2;
        let removed = match pieces.get(room..) {
            Some(cut) if !cut.is_empty() => Some(self.decode(cut)?),
            _ => None,
        };
        pieces.truncate(room);
        let mut ids = Vec::with_capacity(self.max_length);
        ids.push(self.bos_id);
        ids.extend(pieces);
        ids.push(self.eos_id);
        ids.resize(self.max_length, self.pad_id);
        Ok(Encoded { ids, removed })
    }

    /// The ids of `text` alone: all of it, without start, end and padding.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_pieces(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|error| self.error(error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, special tokens included.
    ///
    /// # Errors
    /// When the ids do not make text.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = self.tokenizer.decode(ids, false).map_err(|error| self.error(error))?;
        Ok(text.replace(END_OF_WORD, " ").trim().to_string())
    }

    /// How many ids [`encode`](Self::encode) gives: `model_max_length`, 77 where it is not said.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The id that begins a text.
    pub fn bos_id(&self) -> u32 {
        self.bos_id
    }

    /// The id that ends a text.
    pub fn eos_id(&self) -> u32 {
        self.eos_id
    }

    /// The id that fills up what is left.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// How many tokens there are, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The id of exactly this token, spelled as in the vocabulary (`cat</w>`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    pub(crate) fn error(&self, error: tokenizers::Error) -> Error {
        self.message(error.to_string())
    }

    pub(crate) fn message(&self, message: String) -> Error {
        Error::Tokenizer { file: self.file.clone(), message }
    }
}

/// The words of a BPE and how they are put together.
struct Vocabulary {
    /// The file it is from.
    file: String,
    vocab: Vocab,
    merges: Merges,
    /// The list `added_tokens` of tokenizer.json.
    added_tokens: Vec<Value>,
}

impl Vocabulary {
    fn load(repository: &Repository, folder: &str) -> Result<Self> {
        let tokenizer_json = join(folder, "tokenizer.json");
        if repository.exists(&tokenizer_json) {
            return Self::from_tokenizer_json(repository, &tokenizer_json);
        }
        let (vocab_json, merges_txt) = (join(folder, "vocab.json"), join(folder, "merges.txt"));
        let file = repository.display(&vocab_json);
        if !repository.exists(&vocab_json) {
            let message = "there is no such file, and no tokenizer.json either".to_string();
            return Err(Error::Tokenizer { file, message });
        }
        let vocab: std::collections::HashMap<String, u32> = repository.read_json(&vocab_json)?;
        let merges = parse_merges(repository, &merges_txt)?;
        Ok(Self { file, vocab: vocab.into_iter().collect(), merges, added_tokens: Vec::new() })
    }

    /// Takes vocabulary and merges, and nothing else of the model, as transformers does for a class of its own.
    fn from_tokenizer_json(repository: &Repository, path: &str) -> Result<Self> {
        let file = repository.display(path);
        let bad = |message: &str| Error::Tokenizer { file: file.clone(), message: message.to_string() };
        let mut json: Map<String, Value> = repository.read_json(path)?;
        let mut model = match json.remove("model") {
            Some(Value::Object(model)) => model,
            _ => return Err(bad("there is no model in it")),
        };
        if let Some(kind) = model.get("type").and_then(Value::as_str).filter(|kind| *kind != "BPE") {
            return Err(bad(&format!("the model is a {kind}; a CLIP tokenizer is a BPE")));
        }
        let vocab = model.remove("vocab").unwrap_or_default();
        let vocab: std::collections::HashMap<String, u32> =
            serde_json::from_value(vocab).map_err(|error| bad(&format!("model.vocab: {error}")))?;
        let merges = match model.remove("merges") {
            Some(Value::Array(merges)) => merges,
            _ => return Err(bad("there is no list model.merges")),
        };
        let pair = |merge: &Value| {
            merge_pair(merge).ok_or_else(|| bad(&format!("model.merges: {merge} is not a pair")))
        };
        let merges = merges.iter().map(pair).collect::<Result<_>>()?;
        let added_tokens = match json.remove("added_tokens") {
            Some(Value::Array(tokens)) => tokens,
            _ => Vec::new(),
        };
        Ok(Self { vocab: vocab.into_iter().collect(), merges, added_tokens, file })
    }
}

/// A pair of tokenizer.json: `["a", "b"]`, or `"a b"` as before tokenizers 0.20.
fn merge_pair(merge: &Value) -> Option<(String, String)> {
    match merge {
        Value::String(pair) => split_pair(pair),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
            _ => None,
        },
        _ => None,
    }
}

fn split_pair(pair: &str) -> Option<(String, String)> {
    let (a, b) = pair.split_once(' ')?;
    (!b.contains(' ')).then(|| (a.to_string(), b.to_string()))
}

/// `merges.txt`: a pair on each line, after a line `#version: 0.2`.
fn parse_merges(repository: &Repository, path: &str) -> Result<Merges> {
    let bytes = repository.read(path)?;
    let bad = |message: String| Error::Tokenizer { file: repository.display(path), message };
    let text = std::str::from_utf8(&bytes).map_err(|error| bad(format!("it is not UTF-8: {error}")))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version"));
    lines
        .map(|(number, line)| {
            split_pair(line).ok_or_else(|| bad(format!("line {} is not a pair: {line:?}", number + 1)))
        })
        .collect()
}
