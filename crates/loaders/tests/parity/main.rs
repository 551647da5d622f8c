//! Comparisons with the reference library: see CONTRIBUTING.md.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

mod added_tokens;
mod clip_tokenizer;
mod lora;
