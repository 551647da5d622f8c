//! Checkpoints that are not whole, not one, or not what is converted: each is an error that says so, and none a panic.

#[path = "parity/single_file/case.rs"]
mod case;

use candle_diffusers_convert::ReadOptions;
use case::Case;

#[track_caller]
fn assert_refused(case: &Case, expected: &[&str]) {
    let message = case.model(&ReadOptions::default()).expect_err("should be refused").to_string();
    assert!(message.contains("model.safetensors"), "{message}");
    for expected in expected {
        assert!(message.contains(expected), "{message}");
    }
    assert!(!message.contains('\n'), "{message}");
}

fn without(name: &str, keep: impl Fn(&str) -> bool) -> Case {
    let mut case = Case::read(name);
    case.original.retain(|name, _| keep(name));
    case
}

#[test]
fn missing_tensors_are_counted_and_named() {
    let case = without("sd15", |name| !name.contains("input_blocks.4.1.transformer_blocks.0.attn2"));
    let first = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_q.weight";
    assert_refused(&case, &["UNet", "5 of its 686 tensors are missing", first]);
    let case = without("sd15", |name| !name.starts_with("model.diffusion_model.input_blocks.5."));
    assert_refused(&case, &["UNet", "missing", "input_blocks.5.0."]);
    let case = without("sd15", |name| !name.starts_with("model.diffusion_model.output_blocks.5.2.conv"));
    assert_refused(&case, &["UNet", "2 of its 686 tensors", "output_blocks.5.2.conv.weight"]);
    let case = without("sd15", |name| name != "first_stage_model.quant_conv.bias");
    assert_refused(&case, &["VAE", "1 of its 248 tensors", "first_stage_model.quant_conv.bias"]);
    let case = without("sd21", |name| !name.ends_with("resblocks.7.attn.in_proj_weight"));
    assert_refused(&case, &["text encoder", "1 of its", "resblocks.7.attn.in_proj_weight"]);
    let case = without("sdxl_base", |name| name != "conditioner.embedders.1.model.text_projection");
    assert_refused(&case, &["text encoder", "1 of its", "conditioner.embedders.1.model.text_projection"]);
}

#[test]
fn missing_models_are_named() {
    let case = without("sd15", |name| !name.starts_with("first_stage_model."));
    assert_refused(
        &case,
        &["Stable Diffusion 1 without vae", "248 in", "first_stage_model.encoder.conv_in.weight"],
    );
    let case = without("sd21", |name| !name.starts_with("cond_stage_model."));
    assert_refused(&case, &["Stable Diffusion 2 without text_encoder"]);
    let case = without("sdxl_base", |name| !name.starts_with("conditioner.embedders.1."));
    assert_refused(&case, &["Stable Diffusion XL without text_encoder_2"]);
    let case = without("sd15", |name| !name.starts_with("model.diffusion_model."));
    assert_refused(&case, &["Stable Diffusion 1 without unet"]);
    let case = without("sdxl_base", |name| !name.starts_with("conditioner."));
    assert_refused(&case, &["Stable Diffusion XL without text_encoder", "196 in"]);
    let case = without("sdxl_refiner", |name| !name.starts_with("model.diffusion_model."));
    assert_refused(&case, &["refiner without unet", "1220 in"]);
}

#[test]
fn mixed_families() {
    let (mut first, second) = (Case::read("sd15"), Case::read("sd21"));
    let text = |name: &&String| name.starts_with("cond_stage_model.");
    let texts = second.original.iter().filter(|(name, _)| text(name));
    first.original.extend(texts.map(|(name, shape)| (name.clone(), shape.clone())));
    assert_refused(&first, &["mixes models", "of Stable Diffusion 1", "of Stable Diffusion 2"]);
    // The UNet of one with the text encoder of the other.
    first.original.retain(|name, _| !name.starts_with("cond_stage_model.transformer."));
    assert_refused(&first, &["mixes models", "width 1024", "width of 768"]);
    let mut case = Case::read("sdxl_base");
    case.original.retain(|name, _| !name.contains("label_emb"));
    assert_refused(&case, &["mixes models", "lacks the size embedding"]);
}

#[test]
fn kinds_that_are_not_converted_are_named() {
    let with_channels = |name: &str, channels| {
        let mut case = Case::read(name);
        if let Some(shape) = case.original.get_mut("model.diffusion_model.input_blocks.0.0.weight") {
            shape[1] = channels;
        }
        case
    };
    assert_refused(&with_channels("sd21", 5), &["depth-to-image"]);
    assert_refused(&with_channels("sd21", 7), &["x4 upscaler"]);
    assert_refused(&with_channels("sd15", 17), &["input channels"]);
    let mut upscaler = with_channels("sd21", 7);
    upscaler.original.insert("model.diffusion_model.label_emb.weight".to_string(), vec![1000, 1024]);
    assert_refused(&upscaler, &["x4 upscaler"]);
    for (name, expected) in [
        ("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.norm.key_norm.scale", "Flux"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "LoRA"),
        ("unet.conv_in.lora_A.weight", "LoRA"),
        ("emb_params", "textual inversion"),
        ("down_blocks.0.resnets.0.conv1.weight", "diffusers' layout"),
        ("some.other.weight", "not a checkpoint that is known"),
    ] {
        let mut case = without("sd15", |_| false);
        case.original.insert(name.to_string(), vec![8, 8]);
        assert_refused(&case, &[expected]);
    }
    assert_refused(&without("sd15", |_| false), &["not a checkpoint"]);
}

#[test]
fn wrong_shapes_and_unknown_tensors() {
    let mut case = Case::read("sd15");
    let name = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight".to_string();
    case.original.insert(name.clone(), vec![320, 320, 3, 5]);
    assert_refused(&case, &[&name, "[320, 320, 3, 5]", "[320, 320, 3, 3]"]);
    let mut case = Case::read("sd15");
    case.original.insert("model.diffusion_model.motion.weight".to_string(), vec![3]);
    assert_refused(&case, &["1 tensors have no place", "model.diffusion_model.motion.weight"]);
    let allowed = ReadOptions { allow_unknown: true, ..ReadOptions::default() };
    let model = case.model(&allowed).unwrap();
    assert!(model.left_out.iter().any(|one| one.name == "model.diffusion_model.motion.weight"));
    // Outside of every model it is left out and told.
    let mut case = Case::read("sd15");
    case.original.insert("extra.weight".to_string(), vec![3]);
    let model = case.model(&ReadOptions::default()).unwrap();
    assert!(model.left_out.iter().any(|one| one.name == "extra.weight"));
}
