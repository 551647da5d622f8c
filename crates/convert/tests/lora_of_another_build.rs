//! A LoRA for a Stable Diffusion XL that is built otherwise than the published one, in kohya's layout.

// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use candle_diffusers_convert::{
    Dtype, LoraFile, LoraFormat, MidBlock, Structure, UNet, WriteOptions, open_file,
};
use safetensors::tensor::TensorView;

/// One residual block on each level of the way down.
fn unet() -> UNet {
    UNet {
        in_channels: 4,
        out_channels: 4,
        block_out_channels: vec![8, 16],
        down: vec![vec![None], vec![Some(2)]],
        mid: Some(MidBlock::CrossAttention(2)),
        up: vec![vec![Some(2); 2], vec![None; 2]],
        cross_attention_dim: 2048,
        use_linear_projection: true,
        time_embed_dim: 32,
        addition_embed_dim: Some(16),
    }
}

/// Layers, and what the original layout calls them: diffusers counts as `_maybe_map_sgm_blocks_to_diffusers` does, by the model's `layers_per_block`.
const LAYERS: [(&str, &str); 3] = [
    (
        "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q",
        "input_blocks_3_1_transformer_blocks_1_attn1_to_q",
    ),
    (
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "middle_block_1_transformer_blocks_0_attn1_to_q",
    ),
    (
        "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
        "output_blocks_1_1_transformer_blocks_0_attn1_to_q",
    ),
];

#[test]
fn blocks_are_numbered_as_the_model_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("lora.safetensors"), folder.path().join("kohya.safetensors"));
    let values = vec![0; 4 * 16 * 4];
    let tensor = |name: &str, shape: [usize; 2]| {
        (name.to_string(), TensorView::new(Dtype::F32, shape.to_vec(), &values).unwrap())
    };
    let tensors = LAYERS.iter().flat_map(|(layer, _)| {
        let name = |part: &str| format!("unet.{layer}.{part}.weight");
        [tensor(&name("lora_A"), [4, 16]), tensor(&name("lora_B"), [16, 4])]
    });
    safetensors::serialize_to_file(tensors, None, &first).unwrap();

    let source = open_file(&first).unwrap();
    let lora = LoraFile::read_for(source.as_ref(), &[Structure::UNet(unet())]).unwrap();
    lora.write(source.as_ref(), &second, LoraFormat::Kohya, &WriteOptions::default(), &|_| ()).unwrap();

    let written = open_file(&second).unwrap();
    let inventory = written.inventory();
    for (_, original) in LAYERS {
        let name = format!("lora_unet_{original}.lora_down.weight");
        assert!(
            inventory.get(&name).is_some(),
            "{name} is not among {:?}",
            inventory.names().collect::<Vec<_>>()
        );
    }
    // And read for the same model they are the same layers.
    let again = LoraFile::read_for(written.as_ref(), &[Structure::UNet(unet())]).unwrap();
    let names = |lora: &LoraFile| lora.layers.iter().map(|layer| layer.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&again), names(&lora));
}
