//! The name tables of small models of each kind, to be read in review: original, relation, diffusers.

use candle_diffusers_convert::{ClipText, ControlNet, MidBlock, Relation, Structure, TextLayout, UNet, Vae};

fn lines(structure: &Structure) -> String {
    let mut lines = String::new();
    for row in structure.table() {
        let relation = match row.relation {
            Relation::Same => "=",
            Relation::Transposed => "transposed",
            Relation::Fused => "fused",
        };
        let names: Vec<String> =
            row.diffusers.iter().map(|named| format!("{} {:?}", named.name, named.shape)).collect();
        let original = &row.original;
        lines += &format!("{} {:?} {relation} {}\n", original.name, original.shape, names.join(" + "));
    }
    lines
}

fn unet() -> UNet {
    UNet {
        in_channels: 4,
        out_channels: 4,
        block_out_channels: vec![32, 64],
        down: vec![vec![None], vec![Some(1)]],
        mid: Some(MidBlock::CrossAttention(1)),
        up: vec![vec![Some(1); 2], vec![None; 2]],
        cross_attention_dim: 48,
        use_linear_projection: true,
        time_embed_dim: 128,
        addition_embed_dim: Some(80),
    }
}

#[test]
fn unet_of_sdxl() {
    insta::assert_snapshot!(lines(&Structure::UNet(unet())));
}

#[test]
fn unet_with_plain_middle_and_convolutions() {
    let unet =
        UNet { mid: Some(MidBlock::Plain), use_linear_projection: false, addition_embed_dim: None, ..unet() };
    insta::assert_snapshot!(lines(&Structure::UNet(unet)));
}

#[test]
fn controlnet() {
    let encoder = UNet { up: Vec::new(), addition_embed_dim: None, ..unet() };
    let conditioning_embedding_out_channels = vec![16, 32, 96, 256];
    let net = ControlNet { encoder, conditioning_channels: 3, conditioning_embedding_out_channels };
    insta::assert_snapshot!(lines(&Structure::ControlNet(net)));
}

#[test]
fn vae() {
    insta::assert_snapshot!(lines(&Structure::Vae(Vae {
        in_channels: 3,
        out_channels: 3,
        latent_channels: 4,
        block_out_channels: vec![32, 64],
        layers_per_block: 1,
        use_quant_conv: true,
        use_post_quant_conv: true,
        mid_block_add_attention: true,
    })));
}

#[test]
fn text_encoders() {
    for (layout, name) in [(TextLayout::Transformers, "transformers"), (TextLayout::OpenClip, "open_clip")] {
        let clip = ClipText {
            layout,
            vocab_size: 100,
            max_position_embeddings: 77,
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 1,
            projection_dim: Some(24),
        };
        insta::assert_snapshot!(name, lines(&Structure::ClipText(clip)));
    }
}
