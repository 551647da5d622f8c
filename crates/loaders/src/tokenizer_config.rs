use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::weights::join;
use crate::{Error, Repository, Result};

/// CLIP's length, for the rare tokenizer_config.json that does not say one.
const DEFAULT_MAX_LENGTH: usize = 77;

/// transformers writes 1e30 for "no limit"; everything from here on means that.
const NO_LIMIT: f64 = 1e6;

/// The tokens that have a role, in the order in which transformers looks at them.
const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What the files beside the vocabulary say: transformers 5, tokenization_utils_base.py `_from_pretrained` and
/// tokenization_utils_tokenizers.py `__init__`.
pub(crate) struct TokenizerConfig {
    pub(crate) bos_token: String,
    pub(crate) eos_token: String,
    pub(crate) unk_token: String,
    pub(crate) pad_token: String,
    /// Tokens that are found in a text before it is cut into words, in the order in which they are added.
    pub(crate) added_tokens: Vec<AddedToken>,
    pub(crate) max_length: usize,
}

impl TokenizerConfig {
    /// Reads `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` in `folder`, each of which may be missing;
    /// `from_tokenizer_json` is that file's list `added_tokens`.
    pub(crate) fn load(
        repository: &Repository,
        folder: &str,
        from_tokenizer_json: Vec<Value>,
    ) -> Result<Self> {
        let path = join(folder, "tokenizer_config.json");
        let file = repository.display(&path);
        let mut fields = read_or_empty(repository, &path)?;
        let mut listed = BTreeMap::new();
        if let Some(decoder) = fields.remove("added_tokens_decoder") {
            // Then this file says everything and the older ones are not looked at.
            listed.extend(added_tokens_decoder(&file, decoder)?);
        } else {
            fields.extend(read_or_empty(repository, &join(folder, "special_tokens_map.json"))?);
            listed.extend(added_tokens_json(repository, folder, &fields)?);
            for token in from_tokenizer_json {
                let file = repository.display(&join(folder, "tokenizer.json"));
                let id = token.get("id").and_then(Value::as_u64).unwrap_or_default();
                listed.insert(id, added_token(&file, "added_tokens", &token, false)?);
            }
        }
        for side in ["padding_side", "truncation_side"] {
            if let Some(value) = fields.get(side).and_then(Value::as_str).filter(|value| *value != "right") {
                return Err(Error::Tokenizer { file, message: format!("{side} {value:?} is not supported") });
            }
        }
        let listed: Vec<AddedToken> = listed.into_values().collect();
        let roles = Roles::read(&file, &fields, &listed)?;
        Ok(Self {
            bos_token: roles.content("bos_token").unwrap_or("<|startoftext|>").to_string(),
            eos_token: roles.content("eos_token").unwrap_or("<|endoftext|>").to_string(),
            unk_token: roles.content("unk_token").unwrap_or("<|endoftext|>").to_string(),
            pad_token: roles.content("pad_token").unwrap_or("<|endoftext|>").to_string(),
            max_length: max_length(&file, &fields)?,
            added_tokens: roles.tokens_to_add(listed, extra_tokens(&file, &fields)?),
        })
    }
}

/// The tokens that have a role, in the order of [`ROLES`].
struct Roles(Vec<(&'static str, AddedToken)>);

impl Roles {
    fn read(file: &str, fields: &Map<String, Value>, listed: &[AddedToken]) -> Result<Self> {
        let mut roles = Vec::new();
        for role in ROLES {
            let token = match fields.get(role) {
                Some(Value::Null) => continue,
                // What special_tokens_map.json lists is special from the start; tokenizer_config.json marks its objects.
                Some(token) => added_token(file, role, token, token.get("__type").is_none())?,
                None => match role {
                    "bos_token" => AddedToken::from("<|startoftext|>", true),
                    "eos_token" | "unk_token" | "pad_token" => AddedToken::from("<|endoftext|>", true),
                    _ => continue,
                },
            };
            // A token that is listed with its properties keeps them.
            let known = listed.iter().find(|known| known.content == token.content);
            roles.push((role, known.cloned().unwrap_or(token)));
        }
        Ok(Self(roles))
    }

    fn content(&self, role: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| *name == role).map(|(_, token)| token.content.as_str())
    }

    /// All tokens to add: the listed ones, then those of roles and the extra ones that are not listed.
    ///
    /// Two roles may have the same token with other properties; the later one then counts, as in transformers.
    fn tokens_to_add(self, mut listed: Vec<AddedToken>, extra: Vec<AddedToken>) -> Vec<AddedToken> {
        let mut tokens: Vec<AddedToken> = self.0.into_iter().map(|(_, token)| token).collect();
        for token in &mut tokens {
            token.special = true;
        }
        for known in &mut listed {
            // Whatever has a role is special.
            known.special |= tokens.iter().any(|token| token.content == known.content);
        }
        let unlisted = |token: &AddedToken| !listed.iter().any(|known| known.content == token.content);
        let others: Vec<AddedToken> = tokens.into_iter().chain(extra).filter(unlisted).collect();
        listed.extend(others);
        listed
    }
}

/// A token of a configuration file: text, or an object with `content` and how it is matched.
fn added_token(file: &str, field: &str, token: &Value, special: bool) -> Result<AddedToken> {
    let flag = |name: &str, default: bool| token.get(name).and_then(Value::as_bool).unwrap_or(default);
    match token {
        Value::String(content) => Ok(AddedToken::from(content, special)),
        Value::Object(object) => {
            let content = object.get("content").and_then(Value::as_str).ok_or_else(|| Error::Tokenizer {
                file: file.to_string(),
                message: format!("{field} has no content: {token}"),
            })?;
            let special = special || flag("special", false);
            Ok(AddedToken::from(content, special)
                .single_word(flag("single_word", false))
                .lstrip(flag("lstrip", false))
                .rstrip(flag("rstrip", false))
                .normalized(flag("normalized", !special)))
        }
        other => Err(Error::Tokenizer {
            file: file.to_string(),
            message: format!("{field} should be text or an object with content, not {other}"),
        }),
    }
}

/// `added_tokens_decoder` of tokenizer_config.json: ids to tokens.
fn added_tokens_decoder(file: &str, decoder: Value) -> Result<Vec<(u64, AddedToken)>> {
    let bad = |message: String| Error::Tokenizer { file: file.to_string(), message };
    let Value::Object(decoder) = decoder else {
        return Err(bad("added_tokens_decoder should be an object".to_string()));
    };
    let one = |(id, token): (&String, &Value)| {
        let number = id.parse().map_err(|_| bad(format!("added_tokens_decoder: {id:?} is not an id")))?;
        Ok((number, added_token(file, "added_tokens_decoder", token, false)?))
    };
    decoder.iter().map(one).collect()
}

/// The old file of tokens that were added by hand: tokens to ids.
fn added_tokens_json(
    repository: &Repository,
    folder: &str,
    fields: &Map<String, Value>,
) -> Result<Vec<(u64, AddedToken)>> {
    let path = join(folder, "added_tokens.json");
    let tokens = read_or_empty(repository, &path)?;
    let has_role = |token: &str| {
        ROLES.iter().filter_map(|role| fields.get(*role)).any(|known| {
            known.as_str() == Some(token) || known.get("content").and_then(Value::as_str) == Some(token)
        })
    };
    let one = |(token, id): (&String, &Value)| {
        let id = id.as_u64().ok_or_else(|| Error::Tokenizer {
            file: repository.display(&path),
            message: format!("{token:?} has the id {id}"),
        })?;
        Ok((id, AddedToken::from(token, has_role(token))))
    };
    tokens.iter().map(one).collect()
}

/// `extra_special_tokens`, or `additional_special_tokens` as it was called before.
fn extra_tokens(file: &str, fields: &Map<String, Value>) -> Result<Vec<AddedToken>> {
    let is_full = |value: &&Value| value.as_array().is_some_and(|tokens| !tokens.is_empty());
    let names = ["extra_special_tokens", "additional_special_tokens"];
    let Some(tokens) = names.iter().filter_map(|name| fields.get(*name)).find(is_full) else {
        return Ok(Vec::new());
    };
    tokens
        .as_array()
        .into_iter()
        .flatten()
        .map(|token| added_token(file, "additional_special_tokens", token, true))
        .collect()
}

fn max_length(file: &str, fields: &Map<String, Value>) -> Result<usize> {
    let Some(value) =
        fields.get("model_max_length").or_else(|| fields.get("max_len")).filter(|v| !v.is_null())
    else {
        return Ok(DEFAULT_MAX_LENGTH);
    };
    match value.as_f64() {
        Some(length) if length >= NO_LIMIT => Ok(DEFAULT_MAX_LENGTH),
        // Room for the start and the end.
        Some(length) if length >= 2.0 && length.fract() == 0.0 => Ok(length as usize),
        _ => Err(Error::Tokenizer {
            file: file.to_string(),
            message: format!("model_max_length should be a whole number of at least 2, not {value}"),
        }),
    }
}

fn read_or_empty(repository: &Repository, path: &str) -> Result<Map<String, Value>> {
    if repository.exists(path) { repository.read_json(path) } else { Ok(Map::new()) }
}
