//! LoRA files that are damaged, mixed up or for something else: one clear error each, and no name makes a panic.

// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use candle_diffusers_convert::{
    AdaptedLayer, Checkpoint, Family, LokrFactor, LoraFile, LoraLayout, LoraWeights, Source, TensorFile,
};
use serde_json::{Map, json};

/// A file with these tensors: names, types, shapes and bytes.
fn file(tensors: &[(&str, &str, &[usize], Vec<u8>)], metadata: &[(&str, &str)]) -> Checkpoint {
    let mut header = Map::new();
    let metadata: BTreeMap<&str, &str> = metadata.iter().copied().collect();
    header.insert("__metadata__".to_string(), json!(metadata));
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.to_string(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend_from_slice(bytes);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    Checkpoint::from_file(TensorFile::from_bytes("lora.safetensors", bytes).unwrap())
}

/// A file of float32 zeros.
fn zeros(tensors: &[(&str, &[usize])]) -> Checkpoint {
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, shape)| (*name, "F32", *shape, vec![0; 4 * shape.iter().product::<usize>()]))
        .collect();
    file(&tensors, &[])
}

fn error(source: &dyn Source) -> String {
    let error = LoraFile::read(source).unwrap_err().to_string();
    assert!(error.starts_with("lora.safetensors") && !error.contains('\n'), "{error}");
    error
}

#[track_caller]
fn refuse(tensors: &[(&str, &[usize])], words: &[&str]) {
    let error = error(&zeros(tensors));
    for word in words {
        assert!(error.contains(word), "{error} does not name {word}");
    }
}

const LAYER: &str = "lora_unet_mid_block_attentions_0_proj_in";
const DOWN: &str = "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight";
const UP: &str = "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight";
const MID: &str = "lora_unet_mid_block_attentions_0_proj_in.lora_mid.weight";
const ALPHA: &str = "lora_unet_mid_block_attentions_0_proj_in.alpha";
const DORA: &str = "lora_unet_mid_block_attentions_0_proj_in.dora_scale";

fn part(ending: &str) -> String {
    format!("{LAYER}.{ending}")
}

#[test]
fn half_a_pair() {
    refuse(&[(DOWN, &[4, 8])], &[DOWN, UP]);
    refuse(&[(UP, &[8, 4])], &[DOWN, UP]);
    refuse(&[(MID, &[4, 4, 3, 3])], &[MID, DOWN]);
    refuse(&[("unet.conv_in.lora_A.weight", &[4, 8, 3, 3])], &["unet.conv_in.lora_B.weight"]);
    let [a1, b1, a2] = ["hada_w1_a", "hada_w1_b", "hada_w2_a"].map(part);
    refuse(&[(&a1, &[8, 4]), (&b1, &[4, 8])], &[&a2]);
    let [w1, w2_a, t2] = ["lokr_w1", "lokr_w2_a", "lokr_t2"].map(part);
    refuse(&[(&w1, &[2, 2])], &[&part("lokr_w2")]);
    refuse(&[(&w1, &[2, 2]), (&w2_a, &[2, 2])], &[&part("lokr_w2_b")]);
    refuse(&[(&w1, &[2, 2]), (&t2, &[2, 2, 3, 3])], &[&w2_a]);
}

#[test]
fn ranks_and_shapes() {
    refuse(&[(DOWN, &[4, 8]), (UP, &[8, 5])], &[DOWN, UP, "[4, 8]", "[8, 5]", "ranks"]);
    refuse(&[(DOWN, &[0, 8]), (UP, &[8, 0])], &[DOWN, "[0, 8]"]);
    refuse(&[(DOWN, &[4]), (UP, &[8, 4])], &[DOWN, "[4]", "2 or 4 axes"]);
    refuse(&[(DOWN, &[4, 8, 3, 3]), (UP, &[8, 4])], &[UP, "(out, rank, 1, 1)"]);
    refuse(&[(DOWN, &[4, 8, 3, 3]), (UP, &[8, 4, 3, 3])], &[UP, "(out, rank, 1, 1)"]);
    refuse(&[(DOWN, &[4, 8, 1, 1]), (MID, &[5, 4, 3, 3]), (UP, &[8, 4, 1, 1])], &[MID, UP, "ranks"]);
    refuse(&[(DOWN, &[4, 8, 3, 3]), (MID, &[4, 4, 3, 3]), (UP, &[8, 4, 1, 1])], &[DOWN, "(rank, in, 1, 1)"]);
    refuse(&[(DOWN, &[4, 8]), (UP, &[8, 4]), (DORA, &[8, 8])], &[DORA, "[8, 8]"]);
    let [a1, b1, a2, b2] = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"].map(part);
    refuse(&[(&a1, &[8, 4]), (&b1, &[4, 8]), (&a2, &[9, 4]), (&b2, &[4, 8])], &[&a2, "channels"]);
    refuse(&[(&a1, &[8, 4]), (&b1, &[3, 8]), (&a2, &[8, 4]), (&b2, &[4, 8])], &[&a1, &b1, "ranks"]);
}

#[test]
fn numbers() {
    let pair = || vec![(DOWN, "F32", &[1_usize, 1][..], vec![0; 4]), (UP, "F32", &[1, 1], vec![0; 4])];
    let with = |alpha: (&'static str, &'static [usize], Vec<u8>)| {
        let mut tensors = pair();
        tensors.push((ALPHA, alpha.0, alpha.1, alpha.2));
        file(&tensors, &[])
    };
    assert!(
        error(&with(("F32", &[], f32::NAN.to_le_bytes().to_vec()))).contains("is NaN, expected a finite")
    );
    assert!(
        error(&with(("F16", &[], 0x7c00_u16.to_le_bytes().to_vec()))).contains("is inf, expected a finite")
    );
    assert!(error(&with(("F32", &[2], vec![0; 8]))).contains("a single number"));
    assert!(error(&with(("BOOL", &[], vec![1]))).contains("BOOL"));
    for (dtype, bytes) in [("I64", 3_i64.to_le_bytes().to_vec()), ("BF16", 0x4040_u16.to_le_bytes().to_vec())]
    {
        let lora = LoraFile::read(&with((dtype, &[1], bytes))).unwrap();
        assert_eq!(lora.layers[0].alpha, Some(3.0), "{dtype}");
    }
    let integers = [(DOWN, "I32", &[1_usize, 1][..], vec![0; 4]), (UP, "F32", &[1, 1], vec![0; 4])];
    assert!(error(&file(&integers, &[])).contains("is I32, expected floating-point numbers"));
}

#[test]
fn configs() {
    let tensors = [
        ("unet.conv_in.lora_A.weight", "F32", &[1_usize, 1][..], vec![0; 4]),
        ("unet.conv_in.lora_B.weight", "F32", &[1, 1], vec![0; 4]),
    ];
    for (config, words) in [
        ("[", "lora_adapter_metadata"),
        ("[]", "expected a JSON object"),
        (r#"{"unet.lora_alpha": "much"}"#, "lora_alpha is \"much\""),
        (r#"{"unet.alpha_pattern": {"(": 1}}"#, "which is no pattern"),
        (r#"{"unet.alpha_pattern": {"a": null}}"#, "alpha_pattern is null"),
    ] {
        let error = error(&file(&tensors, &[("lora_adapter_metadata", config)]));
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn two_names_for_one_layer() {
    let other = "lora_unet_middle_block_1_proj_in.lora_down.weight";
    refuse(
        &[(DOWN, &[4, 8]), (UP, &[8, 4]), (other, &[4, 8])],
        &[DOWN, other, "mid_block.attentions.0.proj_in"],
    );
    let [whole, a, b] = ["lokr_w1", "lokr_w1_a", "lokr_w1_b"].map(part);
    refuse(&[(&whole, &[2, 2]), (&a, &[2, 1]), (&b, &[1, 2])], &[&whole, &a]);
}

#[test]
fn other_models() {
    for (name, what) in [
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "Flux"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "diffusion transformer"),
        ("lora_te3_encoder_block_0.lora_up.weight", "three text encoders"),
    ] {
        // Beside a part that is known.
        refuse(
            &[(name, &[4, 8]), ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", &[8, 4])],
            &[what, name],
        );
    }
    refuse(
        &[("lora_unet_nothing.lora_down.weight", &[4, 8])],
        &["not a LoRA file that is known", "lora_unet_nothing"],
    );
    refuse(&[], &["not a LoRA file"]);
}

#[test]
fn what_no_rule_understands_is_listed() {
    let file = zeros(&[
        (DOWN, &[4, 8]),
        (UP, &[8, 4]),
        ("lora_unet_mid_block_attentions_0_proj_out.alpha", &[]),
        ("lora_unet_mid_block_attentions_0_proj_in.oft_blocks", &[4, 8]),
        ("unet.conv_in.lora_B.bias", &[8]),
        ("bundle_emb.cat.string_to_param.*", &[2, 768]),
    ]);
    let lora = LoraFile::read(&file).unwrap();
    assert_eq!(
        lora.unmatched,
        [
            "lora_unet_mid_block_attentions_0_proj_in.oft_blocks",
            "lora_unet_mid_block_attentions_0_proj_out.alpha",
            "unet.conv_in.lora_B.bias"
        ]
    );
    assert_eq!(lora.embeddings, ["bundle_emb.cat.string_to_param.*"]);
}

/// The only layer of the file.
fn only(tensors: &[(&str, &[usize])]) -> AdaptedLayer {
    let mut lora = LoraFile::read(&zeros(tensors)).unwrap();
    assert_eq!((lora.layers.len(), lora.unmatched.len()), (1, 0), "{lora:?}");
    lora.layers.remove(0)
}

#[test]
fn every_kind_of_lycoris() {
    let mid = only(&[(DOWN, &[4, 8, 1, 1]), (MID, &[4, 4, 3, 3]), (UP, &[8, 4, 1, 1]), (ALPHA, &[])]);
    assert!(matches!(mid.weights, LoraWeights::Lora { mid: Some(_), .. }));
    let dora = only(&[(DOWN, &[4, 8]), (UP, &[6, 4]), (DORA, &[6, 1])]);
    assert!(dora.dora_scale.is_some() && !dora.dora_is_per_input());
    let dora = only(&[(DOWN, &[4, 8]), (UP, &[6, 4]), (DORA, &[1, 8])]);
    assert!(dora.dora_is_per_input());
    let [a1, b1, a2, b2, t1, t2] =
        ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"].map(part);
    let plain: [(&str, &[usize]); 4] = [(&a1, &[8, 4]), (&b1, &[4, 9]), (&a2, &[8, 4]), (&b2, &[4, 9])];
    assert_eq!((only(&plain).rank(), only(&plain).in_features()), (Some(4), Some(9)));
    let tucker: [(&str, &[usize]); 6] = [
        (&a1, &[4, 8]),
        (&b1, &[4, 9]),
        (&a2, &[4, 8]),
        (&b2, &[4, 9]),
        (&t1, &[4, 4, 3, 3]),
        (&t2, &[4, 4, 3, 3]),
    ];
    assert!(matches!(only(&tucker).weights, LoraWeights::Loha { t1_t2: Some(_), .. }));
    let [w1, w1_a, w1_b, w2, w2_a, w2_b, t2] =
        ["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"].map(part);
    let whole = only(&[(&w1, &[2, 3]), (&w2, &[4, 5, 3, 3]), (ALPHA, &[])]);
    assert_eq!((whole.rank(), whole.scaling(), whole.in_features()), (None, 1.0, Some(15)));
    let product =
        only(&[(&w1_a, &[2, 1]), (&w1_b, &[1, 3]), (&w2_a, &[2, 4]), (&w2_b, &[2, 5]), (&t2, &[2, 2, 3, 3])]);
    let LoraWeights::Lokr {
        w1: LokrFactor::Product { t: None, .. },
        w2: LokrFactor::Product { t: Some(_), .. },
    } = product.weights
    else {
        unreachable!("{product:?}")
    };
    let full = only(&[(&part("diff"), &[8, 8]), (&part("diff_b"), &[8])]);
    assert!(matches!(full.weights, LoraWeights::Full { weight: Some(_), bias: Some(_) }));
    let norm = only(&[("lora_unet_mid_block_resnets_0_norm1.w_norm", &[8])]);
    assert!(matches!(norm.weights, LoraWeights::Full { weight: Some(_), bias: None }));
    // A product with a difference of its bias is two changes of one layer.
    let both = LoraFile::read(&zeros(&[(DOWN, &[4, 8]), (UP, &[8, 4]), (&part("diff_b"), &[8])])).unwrap();
    assert_eq!(both.layers.len(), 2);
    assert_eq!(both.layers[0].name, both.layers[1].name);
}

#[test]
fn families_are_told_by_widths_and_parts_and_metadata() {
    let family = |name: &str, width: usize| {
        let (down, up) = (format!("{name}.lora_down.weight"), format!("{name}.lora_up.weight"));
        LoraFile::read(&zeros(&[(&down, &[1, width]), (&up, &[8, 1])])).unwrap().family
    };
    let text = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";
    assert_eq!(family(text, 768), Some(Family::StableDiffusion1));
    assert_eq!(family(text, 1024), Some(Family::StableDiffusion2));
    assert_eq!(family(text, 1280), Some(Family::StableDiffusionXlRefiner));
    assert_eq!(family(text, 2048), Some(Family::StableDiffusionXl));
    assert_eq!(family(text, 77), None);
    assert_eq!(
        family("lora_unet_mid_block_attentions_0_transformer_blocks_9_ff_net_2", 77),
        Some(Family::StableDiffusionXl)
    );
    assert_eq!(family("lora_te2_text_model_encoder_layers_0_mlp_fc1", 77), Some(Family::StableDiffusionXl));
    assert_eq!(family("lora_te_text_model_encoder_layers_0_mlp_fc1", 1024), Some(Family::StableDiffusion2));
    let tensors = [(DOWN, "F32", &[1_usize, 1][..], vec![0; 4]), (UP, "F32", &[1, 1], vec![0; 4])];
    let lora = LoraFile::read(&file(&tensors, &[("ss_base_model_version", "sd_v2_768_v")])).unwrap();
    assert_eq!((lora.family, lora.layout), (Some(Family::StableDiffusion2), LoraLayout::Kohya));
}

/// Real names, of which pieces are changed, added and left out at random, with shapes that mostly fit: whatever comes out, reading says
/// something and does not panic.
#[test]
fn names_at_random() {
    const NAMES: [&str; 12] = [
        "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_ff_net_2",
        "lora_unet_output_blocks_2_2_conv",
        "lora_unet.mid_block.resnets.0.conv1",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_projection",
        "lycoris_up_blocks_0_upsamplers_0_conv",
        "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_out",
        "text_encoder.text_model.encoder.layers.11.self_attn.to_q",
        "base_model.model.conv_in",
        "unet:0",
        "0",
    ];
    const PIECES: [&str; 12] =
        ["_", ".", "0", "1", "999", "18446744073709551616", "-1", "attn1", "to_q", "processor", "\u{e9}", ""];
    const ENDINGS: [(&str, &str); 5] = [
        (".lora_down.weight", ".lora_up.weight"),
        (".lora_A.weight", ".lora_B.weight"),
        ("_lora.down.weight", "_lora.up.weight"),
        (".lokr_w1", ".lokr_w2"),
        (":down", ":up"),
    ];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
    };
    let (mut read, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut tensors: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for _ in 0..1 + random(3) {
            let mut name = NAMES[random(NAMES.len())].to_string();
            for _ in 0..random(3) {
                let places: Vec<usize> = name.char_indices().map(|(place, _)| place).collect();
                let place = places.get(random(places.len().max(1))).copied().unwrap_or_default();
                let end = (place + random(4)).min(name.len());
                let end = if name.is_char_boundary(end) { end } else { place };
                name.replace_range(place..end, PIECES[random(PIECES.len())]);
            }
            let (down, up) = ENDINGS[random(ENDINGS.len())];
            let mut shapes = [vec![1 + random(3), 2], vec![2, 1 + random(3)]];
            shapes[1][1] = if random(4) > 0 { shapes[0][0] } else { random(4) };
            for (ending, shape) in [down, up].into_iter().zip(shapes) {
                if random(10) > 0 {
                    tensors.insert(format!("{name}{ending}"), shape);
                }
            }
            if random(3) == 0 {
                tensors.insert(format!("{name}.alpha"), Vec::new());
            }
        }
        let tensors: Vec<(&str, &[usize])> =
            tensors.iter().map(|(name, shape)| (&**name, &**shape)).collect();
        let source = zeros(&tensors);
        let looks_like_one = LoraFile::looks_like_one(&source.inventory());
        match LoraFile::read(&source) {
            Ok(lora) => {
                read += 1;
                assert!(looks_like_one, "{tensors:?}");
                assert!(lora.layers.iter().all(|layer| layer.scaling().is_finite()), "{tensors:?}");
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().starts_with("lora.safetensors"), "{error}");
            }
        }
    }
    assert!(read > 1000 && refused > 1000, "{read} and {refused}");
}
