use crate::inventory::View;
use crate::layout::Vae;

/// The structure of the autoencoder whose tensors are in `view`.
pub(crate) fn vae(view: View<'_>) -> Vae {
    let levels = view.count_under("encoder.down.").max(view.count_under("decoder.up.")).max(1);
    let mut block_out_channels = Vec::with_capacity(levels);
    for level in 0..levels {
        let width = [
            format!("encoder.down.{level}.block.0.conv1.weight"),
            format!("encoder.down.{level}.block.0.conv2.weight"),
            format!("decoder.up.{level}.block.0.conv1.weight"),
        ]
        .iter()
        .find_map(|name| view.axis(name, 0));
        let known = width.or_else(|| block_out_channels.last().copied());
        block_out_channels.push(known.or_else(|| view.axis("encoder.conv_in.weight", 0)).unwrap_or(128));
    }
    // Both or none: where one is missing, that is a mistake to be told.
    let has_quant_convs = view.has_under("quant_conv.") || view.has_under("post_quant_conv.");
    Vae {
        in_channels: view.axis("encoder.conv_in.weight", 1).unwrap_or(3),
        out_channels: view.axis("decoder.conv_out.weight", 0).unwrap_or(3),
        latent_channels: view
            .axis("decoder.conv_in.weight", 1)
            .or_else(|| view.axis("encoder.conv_out.weight", 0).map(|moments| moments / 2))
            .unwrap_or(4),
        block_out_channels,
        layers_per_block: view
            .count_under("encoder.down.0.block.")
            .max(view.count_under("decoder.up.0.block.").saturating_sub(1))
            .max(1),
        use_quant_conv: has_quant_convs,
        use_post_quant_conv: has_quant_convs,
        mid_block_add_attention: view.has_under("encoder.mid.attn_1.")
            || view.has_under("decoder.mid.attn_1."),
    }
}
