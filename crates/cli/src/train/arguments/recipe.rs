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
    /// New words first, one or several, then a LoRA for what they say (lora_pti)
    PivotalTuning,
    /// New words and what cross-attention makes of texts, from a few pictures of one thing or of several
    CustomDiffusion,
    /// A model that paints without a text, from nothing or from one that is there
    Unconditional,
    /// A ControlNet, which steers a model by pictures, from pictures with what steers them
    Controlnet,
    /// A model that edits pictures by instructions, from pictures before and after
    InstructPix2pix,
}

impl Recipe {
    /// What it is called on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string())
    }

    /// The default of diffusers' script for Stable Diffusion 1 and 2.
    pub(crate) fn learning_rate(self) -> f64 {
        match self {
            Self::Dreambooth | Self::Controlnet => 5e-6,
            Self::DreamboothLora => 5e-4,
            Self::CustomDiffusion => 1e-5,
            Self::TextToImageLora
            | Self::TextToImage
            | Self::TextualInversion
            | Self::PivotalTuning
            | Self::Unconditional
            | Self::InstructPix2pix => 1e-4,
        }
    }

    pub(crate) fn is_lora(self) -> bool {
        matches!(self, Self::TextToImageLora | Self::DreamboothLora | Self::PivotalTuning)
    }

    /// Whether new words are learned, by --placeholder-token or --placeholder-tokens.
    pub(crate) fn has_token(self) -> bool {
        matches!(self, Self::TextualInversion | Self::PivotalTuning)
    }

    /// Whether each picture comes with another one.
    pub(crate) fn has_pairs(self) -> bool {
        matches!(self, Self::Controlnet | Self::InstructPix2pix)
    }

    /// Whether things are learned, with or without their classes.
    pub(crate) fn has_things(self) -> bool {
        matches!(self, Self::Dreambooth | Self::DreamboothLora | Self::CustomDiffusion)
    }

    /// Whether a whole UNet is trained, beside the other files of a folder.
    pub(crate) fn is_whole(self) -> bool {
        matches!(self, Self::TextToImage | Self::Dreambooth | Self::InstructPix2pix)
    }
}
