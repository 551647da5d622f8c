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
    /// A ControlNet, which steers a model by pictures, from pictures with what steers them
    Controlnet,
    /// A model that edits pictures by instructions, from pictures before and after
    InstructPix2pix,
}

impl Recipe {
    pub(crate) fn is_lora(self) -> bool {
        matches!(self, Self::TextToImageLora | Self::DreamboothLora | Self::PivotalTuning)
    }

    /// Whether a new word is learned.
    pub(crate) fn has_token(self) -> bool {
        matches!(self, Self::TextualInversion | Self::PivotalTuning)
    }

    /// Whether each picture comes with another one.
    pub(crate) fn has_pairs(self) -> bool {
        matches!(self, Self::Controlnet | Self::InstructPix2pix)
    }

    pub(crate) fn is_dreambooth(self) -> bool {
        matches!(self, Self::Dreambooth | Self::DreamboothLora)
    }
}
