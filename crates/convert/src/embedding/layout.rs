use std::fmt;

use crate::inventory::{Entry, Inventory};
use crate::write::is_float;

use super::file::WIDTHS;

/// How an embedding file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EmbeddingLayout {
    /// Diffusers' `learned_embeds`: each tensor is called as its token.
    Diffusers,
    /// The web UIs' pickled form: a dictionary whose `string_to_param` has the vectors, with the token under `name`.
    StringToParam,
    /// The web UIs' other form, also that of kohya's scripts: one tensor `emb_params`.
    EmbParams,
    /// Stable Diffusion XL's: `clip_l` for the first text encoder, `clip_g` for the second.
    TwoEncoders,
    /// One tensor without a name.
    Tensor,
}

pub(super) const STRING_TO_PARAM: &str = "string_to_param";
pub(super) const EMB_PARAMS: &str = "emb_params";
pub(super) const CLIP_L: &str = "clip_l";
pub(super) const CLIP_G: &str = "clip_g";
/// What a pickle's only tensor is called when it has no name.
pub(super) const NAMELESS: &str = "tensor";

/// More tokens than anyone puts in one file; with more, only names in angle brackets are taken for tokens.
const MAX_PLAIN_TOKENS: usize = 64;

/// More vectors than fit in a prompt.
const MAX_PLAIN_ROWS: usize = 128;

impl EmbeddingLayout {
    /// The layout that tensors of these names have, if it is an embedding at all.
    pub(super) fn of(inventory: &Inventory) -> Self {
        let has = |name: &str| inventory.get(name).is_some();
        if vectors_by_string(inventory).next().is_some() {
            Self::StringToParam
        } else if has(EMB_PARAMS) {
            Self::EmbParams
        } else if has(CLIP_L) || has(CLIP_G) {
            Self::TwoEncoders
        } else if has(NAMELESS) && inventory.len() == 1 {
            Self::Tensor
        } else {
            Self::Diffusers
        }
    }

    /// A word for it: the name of what it is recognised by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diffusers => "diffusers",
            Self::StringToParam => STRING_TO_PARAM,
            Self::EmbParams => EMB_PARAMS,
            Self::TwoEncoders => "clip_l, clip_g",
            Self::Tensor => NAMELESS,
        }
    }
}

impl fmt::Display for EmbeddingLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The names under `string_to_param` with the keys that they have there.
pub(super) fn vectors_by_string(inventory: &Inventory) -> impl Iterator<Item = (&str, &str)> {
    inventory.names_under(STRING_TO_PARAM).filter_map(|name| {
        let key = name.strip_prefix(STRING_TO_PARAM)?.strip_prefix('.')?;
        Some((name, key))
    })
}

/// Whether a file with these tensors is likely an embedding. What is wrong with one that claims to be is said when it is read.
pub(super) fn looks_like_one(inventory: &Inventory) -> bool {
    match EmbeddingLayout::of(inventory) {
        EmbeddingLayout::StringToParam | EmbeddingLayout::EmbParams => true,
        EmbeddingLayout::TwoEncoders => inventory.names().all(|name| !name.contains('.')),
        EmbeddingLayout::Tensor | EmbeddingLayout::Diffusers => {
            let few = inventory.len() <= MAX_PLAIN_TOKENS;
            let is_token = |name: &str| match inventory.get(name) {
                Some(entry) => is_bracketed(name) || (few && may_be_vectors(name, entry)),
                None => false,
            };
            !inventory.is_empty() && inventory.names().all(is_token)
        }
    }
}

fn is_bracketed(name: &str) -> bool {
    name.len() > 2 && name.starts_with('<') && name.ends_with('>')
}

/// Whether a tensor with a plain name has the shape of vectors for a prompt.
fn may_be_vectors(name: &str, entry: &Entry) -> bool {
    let is_known = |width: usize| WIDTHS.iter().any(|(known, _)| *known == width);
    let fits = match entry.shape[..] {
        [width] => is_known(width),
        // Tiny text encoders have other widths; a nameless matrix of such a width may be anything.
        [rows, width] => is_known(width) || (rows <= MAX_PLAIN_ROWS && name != NAMELESS),
        _ => false,
    };
    fits && !name.contains('.') && !is_of_a_model(name) && is_float(entry.dtype)
}

/// Whether `name` is that of a tensor in a model or an adapter, which no token is called like.
pub(super) fn is_of_a_model(name: &str) -> bool {
    const ENDINGS: [&str; 8] =
        [".weight", ".bias", ".alpha", "_weight", "_bias", ".dora_scale", ".running_mean", ".running_var"];
    const NAMES: [&str; 4] = ["weight", "bias", "text_projection", "positional_embedding"];
    if NAMES.contains(&name) {
        return true;
    }
    ENDINGS.iter().any(|ending| name.ends_with(ending)) || name.contains(".lora")
}
