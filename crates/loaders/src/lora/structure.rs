//! The structure of a UNet as its layers' names tell it: by it the convert crate knows how the original layout calls them.

use candle_diffusers_convert::{MidBlock, Structure, UNet};
use candle_diffusers_models::layers::Layer;

/// More parts of a kind than any model has.
const MOST_PARTS: usize = 64;

/// The structure of the UNet that has these layers ([`Layers::layers`](candle_diffusers_models::layers::Layers::layers)), for
/// [`LoraFile::read_for`](candle_diffusers_convert::LoraFile::read_for): a model that is built otherwise than the published ones has other numbers in the original layout's names.
pub fn unet_structure(layers: &[(String, Layer)]) -> Structure {
    let listed = Listed(layers);
    let levels = listed.count("down_blocks");
    let block = |block: String| -> Vec<Option<usize>> {
        let depth = |index: usize| {
            let transformer = format!("{block}.attentions.{index}");
            listed.has(&transformer).then(|| listed.count(&format!("{transformer}.transformer_blocks")))
        };
        (0..listed.count(&format!("{block}.resnets"))).map(depth).collect()
    };
    let mid = match listed.count("mid_block.attentions.0.transformer_blocks") {
        0 => listed.has("mid_block").then_some(MidBlock::Plain),
        depth => Some(MidBlock::CrossAttention(depth)),
    };
    let text = layers.iter().find(|(name, _)| name.ends_with("attn2.to_k"));
    Structure::UNet(UNet {
        in_channels: listed.axis("conv_in", 1),
        out_channels: listed.axis("conv_out", 0),
        block_out_channels: (0..levels)
            .map(|level| listed.axis(&format!("down_blocks.{level}.resnets.0.conv1"), 0))
            .collect(),
        down: (0..levels).map(|level| block(format!("down_blocks.{level}"))).collect(),
        mid,
        up: (0..listed.count("up_blocks")).map(|level| block(format!("up_blocks.{level}"))).collect(),
        cross_attention_dim: text.map_or(0, |(_, layer)| layer.shape().dims()[1]),
        use_linear_projection: layers
            .iter()
            .any(|(name, layer)| name.ends_with(".proj_in") && layer.shape().rank() == 2),
        time_embed_dim: listed.axis("time_embedding.linear_1", 0),
        addition_embed_dim: listed.has("add_embedding").then(|| listed.axis("add_embedding.linear_1", 1)),
    })
}

struct Listed<'a>(&'a [(String, Layer)]);

impl Listed<'_> {
    fn has(&self, part: &str) -> bool {
        self.0.iter().any(|(name, _)| name.strip_prefix(part).is_some_and(|rest| rest.starts_with('.')))
    }

    /// How many parts `part.0`, `part.1`, and so on there are.
    fn count(&self, part: &str) -> usize {
        (0..MOST_PARTS).take_while(|index| self.has(&format!("{part}.{index}"))).count()
    }

    fn axis(&self, layer: &str, axis: usize) -> usize {
        let found = self.0.iter().find(|(name, _)| name == layer);
        found.and_then(|(_, layer)| layer.shape().dims().get(axis).copied()).unwrap_or_default()
    }
}
