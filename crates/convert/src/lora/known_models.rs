//! The structures of the published UNets, for files that leave them unsaid.

use crate::{MidBlock, UNet};

/// Those of Stable Diffusion 1 and 2, XL and its refiner.
pub(super) fn unets() -> [UNet; 4] {
    let (none, one) = (vec![None; 2], vec![Some(1); 2]);
    let up = |down: &[Vec<Option<usize>>]| -> Vec<Vec<Option<usize>>> {
        // As the way down, with one residual block more at each level.
        down.iter().rev().map(|block| block.iter().chain(block.last()).copied().collect()).collect()
    };
    let sd1_down = vec![one.clone(), one.clone(), one, none.clone()];
    let sd1 = UNet {
        in_channels: 4,
        out_channels: 4,
        block_out_channels: vec![320, 640, 1280, 1280],
        up: up(&sd1_down),
        down: sd1_down,
        mid: Some(MidBlock::CrossAttention(1)),
        cross_attention_dim: 768,
        use_linear_projection: false,
        time_embed_dim: 1280,
        addition_embed_dim: None,
    };
    let sd2 = UNet { cross_attention_dim: 1024, use_linear_projection: true, ..sd1.clone() };
    let xl_down = vec![none.clone(), vec![Some(2); 2], vec![Some(10); 2]];
    let xl = UNet {
        block_out_channels: vec![320, 640, 1280],
        up: up(&xl_down),
        down: xl_down,
        mid: Some(MidBlock::CrossAttention(10)),
        cross_attention_dim: 2048,
        addition_embed_dim: Some(2816),
        ..sd2.clone()
    };
    let refiner_down = vec![none.clone(), vec![Some(4); 2], vec![Some(4); 2], none];
    let refiner = UNet {
        block_out_channels: vec![384, 768, 1536, 1536],
        up: up(&refiner_down),
        down: refiner_down,
        mid: Some(MidBlock::CrossAttention(4)),
        cross_attention_dim: 1280,
        time_embed_dim: 1536,
        addition_embed_dim: Some(2560),
        ..sd2.clone()
    };
    [sd1, sd2, xl, refiner]
}
