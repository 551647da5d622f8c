use crate::inventory::View;
use crate::layout::{MidBlock, UNet};

/// The structure of the UNet whose tensors are in `view`.
pub(crate) fn unet(view: View<'_>) -> UNet {
    let mut unet = encoder(view);
    unet.out_channels = view.axis("out.2.weight", 0).unwrap_or(4);
    unet.up = up_blocks(view, &unet.down);
    unet
}

/// All but the up blocks: what a ControlNet has as well.
pub(super) fn encoder(view: View<'_>) -> UNet {
    let first = view.axis("input_blocks.0.0.weight", 0).unwrap_or(320);
    let (down, block_out_channels) = down_blocks(view, first);
    UNet {
        in_channels: view.axis("input_blocks.0.0.weight", 1).unwrap_or(4),
        out_channels: 0,
        block_out_channels,
        down,
        mid: mid_block(view),
        up: Vec::new(),
        cross_attention_dim: width_of_text(view),
        use_linear_projection: has_linear_projection(view),
        time_embed_dim: view.axis("time_embed.0.weight", 0).unwrap_or(first.saturating_mul(4)),
        addition_embed_dim: view
            .axis("label_emb.0.0.weight", 1)
            .or_else(|| view.axis("label_emb.0.2.weight", 1)),
    }
}

fn down_blocks(view: View<'_>, first: usize) -> (Vec<Vec<Option<usize>>>, Vec<usize>) {
    let (mut blocks, mut widths) = (vec![Vec::new()], vec![first]);
    for index in 1..view.count_under("input_blocks.") {
        let name = format!("input_blocks.{index}");
        let level = blocks.len() - 1;
        if view.has_under(&format!("{name}.0.op.")) {
            blocks.push(Vec::new());
            widths.push(widths[level]);
            continue;
        }
        let width = ["0.in_layers.2.weight", "0.out_layers.3.weight", "0.emb_layers.1.weight"]
            .iter()
            .find_map(|part| view.axis(&format!("{name}.{part}"), 0));
        widths[level] = width.unwrap_or(widths[level]);
        blocks[level].push(depth(view, &format!("{name}.1.")));
    }
    blocks.iter_mut().for_each(|block| fill_gaps(block));
    (blocks, widths)
}

fn mid_block(view: View<'_>) -> Option<MidBlock> {
    if view.has_under("middle_block.1.") || view.has_under("middle_block.2.") {
        let depth = view.count_under("middle_block.1.transformer_blocks.");
        return Some(MidBlock::CrossAttention(depth.max(1)));
    }
    view.has_under("middle_block.0.").then_some(MidBlock::Plain)
}

fn up_blocks(view: View<'_>, down: &[Vec<Option<usize>>]) -> Vec<Vec<Option<usize>>> {
    let count = view.count_under("output_blocks.");
    let depths: Vec<_> = (0..count).map(|index| depth(view, &format!("output_blocks.{index}.1."))).collect();
    let is_last_of_block = |index: usize| {
        ["1.conv.", "2.conv."].iter().any(|part| view.has_under(&format!("output_blocks.{index}.{part}")))
    };
    let mut blocks = vec![Vec::new()];
    for (index, depth) in depths.iter().enumerate() {
        let block = blocks.len() - 1;
        blocks[block].push(*depth);
        if is_last_of_block(index) && index + 1 < count {
            blocks.push(Vec::new());
        }
    }
    if blocks.len() != down.len() {
        // An upsampler is missing: as many residual blocks as the way down has, and one more.
        let mut depths = depths.into_iter();
        let take = |block: &Vec<_>| depths.by_ref().take(block.len() + 1).collect();
        blocks = down.iter().rev().map(take).collect();
    }
    blocks.iter_mut().for_each(|block| fill_gaps(block));
    blocks
}

/// How many transformer layers there are below `prefix`; `None` where it is no transformer.
fn depth(view: View<'_>, prefix: &str) -> Option<usize> {
    let is_transformer = ["norm.", "proj_in.", "transformer_blocks.", "proj_out."]
        .iter()
        .any(|part| view.has_under(&format!("{prefix}{part}")));
    is_transformer.then(|| view.count_under(&format!("{prefix}transformer_blocks.")).max(1))
}

/// Within one block either all residual blocks are followed by a transformer or none: one that has none lacks it.
fn fill_gaps(block: &mut [Option<usize>]) {
    if let Some(depth) = block.iter().flatten().max().copied() {
        block.iter_mut().for_each(|layer| _ = layer.get_or_insert(depth));
    }
}

fn width_of_text(view: View<'_>) -> usize {
    let mut keys = names_ending_in(view, ".attn2.to_k.weight");
    keys.find_map(|name| view.inventory.get(name)?.shape.get(1).copied()).unwrap_or_default()
}

fn has_linear_projection(view: View<'_>) -> bool {
    let shape = |name| view.inventory.get(name).map(|entry| entry.shape.len());
    let first =
        names_ending_in(view, ".proj_in.weight").chain(names_ending_in(view, ".proj_out.weight")).next();
    first.and_then(shape) == Some(2)
}

fn names_ending_in<'a>(view: View<'a>, ending: &'a str) -> impl Iterator<Item = &'a str> {
    view.inventory.names_under(view.prefix).filter(move |name| name.ends_with(ending))
}
