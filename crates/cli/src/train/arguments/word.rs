//! Textual inversion, pivotal tuning, Custom Diffusion: the new words.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::PICTURES;

/// The new words.
#[derive(Debug, Args, Serialize)]
pub(crate) struct WordArguments {
    /// Textual inversion: the new word, such as `<cat-toy>`
    #[arg(long, value_name = "TOKEN", help_heading = PICTURES)]
    pub(crate) placeholder_token: Option<String>,
    /// Textual inversion: a word that the new one begins as, such as "toy"; or `<rand-0.017>`, numbers at random of this standard deviation; or `<zero>`
    #[arg(long, value_name = "WORD", help_heading = PICTURES)]
    pub(crate) initializer_token: Option<String>,
    /// Pivotal tuning: several new words in place of --placeholder-token, such as `<s1>|<s2>`, which captions that are made have as one, `<s1><s2>`
    #[arg(long, value_name = "TOKENS", help_heading = PICTURES)]
    pub(crate) placeholder_tokens: Option<String>,
    /// Pivotal tuning: what each of those begins as, such as `cat|<zero>`; `<rand-0.017>` where it is left out
    #[arg(long, value_name = "WORDS", help_heading = PICTURES)]
    pub(crate) initializer_tokens: Option<String>,
    /// Pivotal tuning: what captions call the new words and what takes its place, such as `cat|<s1><s2>`; captions that are made have the latter too
    /// [default: DUMMY and the words of --placeholder-tokens, one after the other]
    #[arg(long, value_name = "TEXTS", help_heading = PICTURES)]
    pub(crate) placeholder_token_at_data: Option<String>,
    /// Pivotal tuning: make captions of this kind, whether or not there are some; null is the new words alone
    #[arg(long, value_name = "KIND", help_heading = PICTURES)]
    pub(crate) use_template: Option<Template>,
    /// Custom Diffusion: the new words, such as `<new1>+<new2>`, which begin as those of --initializer-token (`dog+hat`)
    #[arg(long, value_name = "TOKENS", help_heading = PICTURES)]
    pub(crate) modifier_token: Option<String>,
    /// Textual inversion: how many vectors each new word has
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, help_heading = PICTURES)]
    pub(crate) num_vectors: usize,
    /// Textual inversion: what the new word is, which captions are made by
    #[arg(long, value_name = "KIND", default_value = "object", help_heading = PICTURES)]
    pub(crate) learnable_property: Property,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Property {
    Object,
    Style,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Template {
    Object,
    Style,
    Null,
}
