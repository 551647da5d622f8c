//! What textual inversion says of pictures that have no captions: the templates that the paper's authors took from CLIP's
//! (<https://arxiv.org/abs/2208.01618>), in the order of diffusers' `textual_inversion.py`.

use std::str::FromStr;

use crate::error::{Error, Result};

/// What pictures have in common that a token is to stand for (`learnable_property`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LearnableProperty {
    /// A thing that they show.
    #[default]
    Object,
    /// The manner in which they are made.
    Style,
}

impl LearnableProperty {
    /// The templates; `{}` is where the token goes.
    pub fn templates(self) -> &'static [&'static str] {
        match self {
            Self::Object => &OBJECT,
            Self::Style => &STYLE,
        }
    }

    /// The templates with `token` in them: captions of which each picture gets any one
    /// ([`Captions::OneOf`](crate::dataset::Captions::OneOf)).
    pub fn captions(self, token: &str) -> Vec<String> {
        self.templates().iter().map(|template| template.replace("{}", token)).collect()
    }
}

impl FromStr for LearnableProperty {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "object" => Ok(Self::Object),
            "style" => Ok(Self::Style),
            _ => {
                let (found, expected) = (format!("{name:?}"), "object or style".to_string());
                Err(Error::Field { field: "learnable_property", found, expected })
            }
        }
    }
}

const OBJECT: [&str; 27] = [
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
];

const STYLE: [&str; 19] = [
    "a painting in the style of {}",
    "a rendering in the style of {}",
    "a cropped painting in the style of {}",
    "the painting in the style of {}",
    "a clean painting in the style of {}",
    "a dirty painting in the style of {}",
    "a dark painting in the style of {}",
    "a picture in the style of {}",
    "a cool painting in the style of {}",
    "a close-up painting in the style of {}",
    "a bright painting in the style of {}",
    "a cropped painting in the style of {}",
    "a good painting in the style of {}",
    "a close-up painting in the style of {}",
    "a rendition in the style of {}",
    "a nice painting in the style of {}",
    "a small painting in the style of {}",
    "a weird painting in the style of {}",
    "a large painting in the style of {}",
];
