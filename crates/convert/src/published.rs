//! The structures of the published models, for saying what a checkpoint lacks that has nothing of one.

use crate::family::{Family, ModelKind, Place};
use crate::layout::{ClipText, MidBlock, Structure, TextLayout, UNet, Vae};

/// The structure that the component `place` has in the published models of `family`.
pub(crate) fn published(family: Family, place: Place) -> Structure {
    match place.model {
        ModelKind::UNet | ModelKind::ControlNet => Structure::UNet(unet(family)),
        ModelKind::Vae => Structure::Vae(Vae {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }),
        ModelKind::ClipText { layout, projection } => Structure::ClipText(text(family, layout, projection)),
    }
}

/// CLIP ViT-L of OpenAI, ViT-H of OpenCLIP without the layer that is not used, or its ViT-bigG.
fn text(family: Family, layout: TextLayout, projection: bool) -> ClipText {
    let (hidden_size, num_hidden_layers) = match (layout, family) {
        (TextLayout::Transformers, _) => (768, 12),
        (TextLayout::OpenClip, Family::StableDiffusion2) => (1024, 23),
        (TextLayout::OpenClip, _) => (1280, 32),
    };
    ClipText {
        layout,
        vocab_size: 49408,
        max_position_embeddings: 77,
        hidden_size,
        intermediate_size: 4 * hidden_size,
        num_hidden_layers,
        projection_dim: projection.then_some(hidden_size),
    }
}

fn unet(family: Family) -> UNet {
    // Levels finest first: how deep the transformers are there.
    let (first, depths, cross_attention_dim, addition): (usize, &[Option<usize>], _, _) = match family {
        Family::StableDiffusion1 => (320, &[Some(1), Some(1), Some(1), None], 768, None),
        Family::StableDiffusion2 => (320, &[Some(1), Some(1), Some(1), None], 1024, None),
        Family::StableDiffusionXl => (320, &[None, Some(2), Some(10)], 2048, Some(2816)),
        Family::StableDiffusionXlRefiner => (384, &[None, Some(4), Some(4), None], 1280, Some(2560)),
    };
    let widths = [first, 2 * first, 4 * first, 4 * first];
    let middle = depths.iter().flatten().max().copied().unwrap_or(1);
    UNet {
        in_channels: 4,
        out_channels: 4,
        block_out_channels: widths[..depths.len()].to_vec(),
        down: depths.iter().map(|depth| vec![*depth; 2]).collect(),
        mid: Some(MidBlock::CrossAttention(middle)),
        up: depths.iter().rev().map(|depth| vec![*depth; 3]).collect(),
        cross_attention_dim,
        use_linear_projection: family != Family::StableDiffusion1,
        time_embed_dim: 4 * first,
        addition_embed_dim: addition,
    }
}
