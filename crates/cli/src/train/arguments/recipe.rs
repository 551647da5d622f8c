//! What to train, and how.

use clap::ValueEnum;

/// The recipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Recipe {
    /// A LoRA, from pictures with captions
    TextToImageLora,
    /// The whole UNet, from pictures with captions
    TextToImage,
    /// A LoRA of one thing, from a few pictures of it
    DreamboothLora,
    /// The whole UNet for one thing, from a few pictures of it
    Dreambooth,
    /// A new word for what a few pictures show
    TextualInversion,
    /// A new word first, then a LoRA for what it says (lora_pti)
    PivotalTuning,
    /// A model that paints without a text, from nothing or from one that is there
    Unconditional,
}

impl Recipe {
    pub(crate) fn is_lora(self) -> bool {
        matches!(self, Self::TextToImageLora | Self::DreamboothLora | Self::PivotalTuning)
    }

    /// Whether a new word is learned.
    pub(crate) fn has_token(self) -> bool {
        matches!(self, Self::TextualInversion | Self::PivotalTuning)
    }

    pub(crate) fn is_dreambooth(self) -> bool {
        matches!(self, Self::Dreambooth | Self::DreamboothLora)
    }
}
