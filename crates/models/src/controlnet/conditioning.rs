use candle_core::Tensor;
use candle_diffusers_kernels::Conv2dParams;
use candle_nn::VarBuilder;

use super::MODEL;
use crate::error::{Error, Result};
use crate::layers::{Activation, Conv2d, LayerList, Layers};

/// `ControlNetConditioningEmbedding`: a control picture as something to add to latents, by convolutions of which every second one halves it.
#[derive(Clone, Debug)]
pub(super) struct ConditioningEmbedding {
    conv_in: Conv2d,
    blocks: Vec<Conv2d>,
    conv_out: Conv2d,
}

impl ConditioningEmbedding {
    /// From `conditioning_channels` through all of `block_out_channels` to `out_channels`.
    pub(super) fn new(
        conditioning_channels: usize,
        block_out_channels: &[usize],
        out_channels: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        let (Some(first), Some(last)) = (block_out_channels.first(), block_out_channels.last()) else {
            let problem = "is empty, expected the channels of at least one layer".into();
            let input = "conditioning_embedding_out_channels";
            return Err(Error::Input { model: MODEL, input, problem });
        };
        let mut blocks = Vec::new();
        for pair in block_out_channels.windows(2) {
            let vb = |i: usize| vb.pp("blocks").pp(i);
            blocks.push(Conv2d::same_size(pair[0], pair[0], 3, vb(blocks.len()))?);
            let halving = Conv2dParams { stride: 2, padding: 1 };
            blocks.push(Conv2d::new(pair[0], pair[1], 3, halving, vb(blocks.len()))?);
        }
        Ok(Self {
            conv_in: Conv2d::same_size(conditioning_channels, *first, 3, vb.pp("conv_in"))?,
            blocks,
            conv_out: Conv2d::same_size(*last, out_channels, 3, vb.pp("conv_out"))?,
        })
    }

    pub(super) fn forward(&self, picture: &Tensor) -> Result<Tensor> {
        let mut embedding = self.conv_in.forward_activated(picture, Activation::Silu)?;
        for block in &self.blocks {
            embedding = block.forward_activated(&embedding, Activation::Silu)?;
        }
        self.conv_out.forward(&embedding)
    }
}

impl Layers for ConditioningEmbedding {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("conv_in", &self.conv_in);
        list.add_each("blocks", &self.blocks);
        list.add("conv_out", &self.conv_out);
    }
}
