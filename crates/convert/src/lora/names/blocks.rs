//! The numbers of UNet blocks in the original layout and in diffusers.
//!
//! The original layout numbers what lies between two skip connections; diffusers numbers levels and what lies in each. All published
//! models have two residual blocks on each level of the way down; for one that has not, its structure must be given.

use super::pattern::matches;

const LAYERS_PER_BLOCK: usize = 2;

/// Whether a name begins as only those of the original layout do.
pub(super) fn is_original(text: &str) -> bool {
    ["input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out."]
        .iter()
        .any(|block| text.starts_with(block))
}

/// The blocks that a name in the original layout begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Down or up block, and the place in it.
    Level {
        is_down: bool,
        block: usize,
        layer: usize,
        inner: usize,
    },
    Middle(usize),
}

impl Place {
    /// The place that `text` begins with, and what follows.
    pub(super) fn take(text: &str) -> Option<(Self, &str)> {
        if let Some((numbers, rest)) = matches("middle_block.#", text) {
            return Some((Self::Middle(numbers[0]), rest));
        }
        for (pattern, is_down) in [("input_blocks.#.#", true), ("output_blocks.#.#", false)] {
            let Some((numbers, rest)) = matches(pattern, text) else { continue };
            // The first input block is conv_in.
            let index = if is_down { numbers[0].checked_sub(1)? } else { numbers[0] };
            let (block, layer) = (index / (LAYERS_PER_BLOCK + 1), index % (LAYERS_PER_BLOCK + 1));
            return Some((Self::Level { is_down, block, layer, inner: numbers[1] }, rest));
        }
        None
    }

    /// The residual block here.
    pub(super) fn resnet(self) -> Option<String> {
        match self {
            Self::Level { is_down: true, layer: LAYERS_PER_BLOCK, .. } => None,
            Self::Level { layer, inner: 0, .. } => Some(format!("{}.resnets.{layer}", self.block())),
            Self::Middle(0) => Some("mid_block.resnets.0".to_string()),
            Self::Middle(2) => Some("mid_block.resnets.1".to_string()),
            _ => None,
        }
    }

    /// The transformer here.
    pub(super) fn attention(self) -> Option<String> {
        match self {
            Self::Level { is_down: true, layer: LAYERS_PER_BLOCK, .. } => None,
            Self::Level { layer, inner: 1, .. } => Some(format!("{}.attentions.{layer}", self.block())),
            Self::Middle(1) => Some("mid_block.attentions.0".to_string()),
            _ => None,
        }
    }

    /// The convolution here that halves or doubles the sides.
    pub(super) fn sampler(self, name: &str) -> Option<String> {
        match (self, name) {
            (Self::Level { is_down: true, layer: LAYERS_PER_BLOCK, inner: 0, .. }, "op") => {
                Some(format!("{}.downsamplers.0.conv", self.block()))
            }
            // Behind the transformer, where there is one.
            (Self::Level { is_down: false, layer: LAYERS_PER_BLOCK, inner: 1 | 2, .. }, "conv") => {
                Some(format!("{}.upsamplers.0.conv", self.block()))
            }
            _ => None,
        }
    }

    fn block(self) -> String {
        match self {
            Self::Level { is_down: true, block, .. } => format!("down_blocks.{block}"),
            Self::Level { is_down: false, block, .. } => format!("up_blocks.{block}"),
            Self::Middle(_) => "mid_block".to_string(),
        }
    }
}
