//! The name tables of small models of each kind, to be read in review: original, relation, diffusers.

use candle_diffusers_convert::{
    Checkpoint, ClipText, ControlNet, LoraFile, MidBlock, Relation, Structure, TensorFile, TextLayout, UNet,
    Vae,
};

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

/// What names of LoRA files are read as, each layer of a small UNet in both spellings, and of text encoders.
#[test]
fn names_of_loras() {
    let names = |structure: &Structure| -> Vec<(String, String)> {
        let layer = |name: &str| name.strip_suffix(".weight").map(|name| name.replace('.', "_"));
        let rows = structure.table();
        let named = rows
            .iter()
            .filter_map(|row| Some((layer(&row.diffusers.first()?.name)?, layer(&row.original.name)?)));
        named.collect()
    };
    // Two residual blocks on each level, as the names of files are read where no structure is given.
    let two = vec![vec![None; 2], vec![Some(1); 2]];
    let up = vec![vec![Some(1); 3], vec![None; 3]];
    let unet = names(&Structure::UNet(UNet { down: two, up, ..unet() }));
    let mut lines = String::new();
    for name in unet.iter().flat_map(|(diffusers, original)| [diffusers, original]) {
        lines += &read_name(&format!("lora_unet_{name}"));
    }
    for name in [
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te1_text_model_encoder_layers_11_mlp_fc1",
        "lora_te2_text_projection",
        "text_encoder.text_model.encoder.layers.0.self_attn.to_out",
        "text_encoder_2.encoder.layers.0.self_attn.out_proj",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out",
        "base_model.model.mid_block.resnets.0.conv1",
        "lycoris_mid_block_attentions_0_proj_in",
        "lora_unet.mid_block.attentions.0.proj_in",
    ] {
        lines += &read_name(name);
    }
    insta::assert_snapshot!(lines);
}

/// The name of a layer in a file, and what it is in diffusers.
fn read_name(name: &str) -> String {
    let header = serde_json::json!({
        format!("{name}.lora_down.weight"): {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},
        format!("{name}.lora_up.weight"): {"dtype": "F32", "shape": [1, 1], "data_offsets": [4, 8]},
    });
    let header = header.to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat();
    let file = Checkpoint::from_file(TensorFile::from_bytes("file", bytes).expect("a file"));
    match LoraFile::read(&file) {
        Ok(lora) => format!("{name} = {}: {}\n", lora.layers[0].component.folder(), lora.layers[0].name),
        Err(_) => format!("{name} is not known\n"),
    }
}
