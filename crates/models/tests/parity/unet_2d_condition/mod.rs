//! Tiny UNets of every family, whole.

use candle_core::{DType, Device, Tensor};
use candle_diffusers_models::layers::Layers;
use candle_diffusers_models::{
    ControlResiduals, TextCache, TextTime, UNet2DConditionConfig, UNet2DConditionModel, UNetConditions,
};
use candle_diffusers_test_support::{Fixture, relative_difference};
use candle_nn::VarBuilder;
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/unet_2d_condition");

fn configs() -> Value {
    serde_json::from_str(&std::fs::read_to_string(format!("{FOLDER}/configs.json")).unwrap()).unwrap()
}

fn load(name: &str, config: &Value) -> (UNet2DConditionModel, Fixture) {
    let fixture = Fixture::open(format!("{FOLDER}/{name}.safetensors"));
    let config = UNet2DConditionConfig::from_json(config).unwrap();
    let weights = VarBuilder::from_tensors(fixture.state_dict("model."), DType::F32, &Device::Cpu);
    (UNet2DConditionModel::new(&config, weights).unwrap(), fixture)
}

/// Runs the model on items `start..start + length` of the fixture's batch.
fn run(model: &UNet2DConditionModel, fixture: &Fixture, start: usize, length: usize) -> Tensor {
    let text = fixture.get("text").narrow(0, start, length).unwrap();
    run_with_text(model, fixture, start, &text, None)
}

fn run_with_text(
    model: &UNet2DConditionModel,
    fixture: &Fixture,
    start: usize,
    text: &Tensor,
    text_cache: Option<&TextCache>,
) -> Tensor {
    let length = text.dim(0).unwrap();
    let part = |tensor: &Tensor| tensor.narrow(0, start, length).unwrap();
    let get = |name: &str| fixture.contains(name).then(|| part(fixture.get(name)));
    let text_time = get("text_embeds").zip(get("time_ids"));
    let down_block: Vec<Tensor> = (0..).map_while(|i| get(&format!("control.{i}"))).collect();
    let mid_block = get("control.mid");
    let (timestep_cond, class_labels, mask) =
        (get("timestep_cond"), get("class_labels"), get("encoder_attention_mask"));
    let conditions = UNetConditions {
        class_labels: class_labels.as_ref(),
        timestep_cond: timestep_cond.as_ref(),
        added: text_time.as_ref().map(|(text_embeds, time_ids)| TextTime { text_embeds, time_ids }),
        encoder_attention_mask: mask.as_ref(),
        control: mid_block.as_ref().map(|mid| ControlResiduals { down_block: &down_block, mid_block: mid }),
        text_cache,
        gradient_checkpointing: false,
    };
    let timesteps = fixture.values("timesteps");
    let timesteps = if timesteps.len() == 1 { &timesteps[..] } else { &timesteps[start..start + length] };
    model.forward(&part(fixture.get("sample")), timesteps, text, conditions).unwrap()
}

#[test]
fn every_family_equals_the_reference() {
    let mut worst: f64 = 0.0;
    for (name, config) in configs().as_object().unwrap() {
        let (model, fixture) = load(name, config);
        let difference = relative_difference(&run(&model, &fixture, 0, 2), fixture.get("output"));
        println!("{name}: {difference:e}");
        assert!(difference < 1e-5, "{name}: {difference:e}");
        worst = worst.max(difference);
    }
    println!("worst: {worst:e}");
}

#[test]
fn every_family_lists_its_layers() {
    for (name, config) in configs().as_object().unwrap() {
        let (model, fixture) = load(name, config);
        let tables: &[&str] = if name == "class_table" { &["class_embedding.weight"] } else { &[] };
        crate::assert_lists_all_layers(&model, &fixture.state_dict("model."), tables);
    }
}

#[test]
fn cached_text_changes_nothing() {
    for name in ["sd1", "sdxl", "masked_text"] {
        let (model, fixture) = load(name, &configs()[name]);
        let cache = TextCache::new();
        let text = fixture.get("text");
        let expected = run(&model, &fixture, 0, 2);
        for _ in 0..2 {
            let cached = run_with_text(&model, &fixture, 0, text, Some(&cache));
            assert_eq!(relative_difference(&cached, &expected), 0.0, "{name}");
        }
        // What the cache knows is this text's alone, and of this model.
        let other_text = text.affine(0.5, 0.1).unwrap();
        let other = run_with_text(&model, &fixture, 0, &other_text, None);
        assert!(relative_difference(&other, &expected) > 1e-3, "{name}");
        let cached = run_with_text(&model, &fixture, 0, &other_text, Some(&cache));
        assert_eq!(relative_difference(&cached, &other), 0.0, "{name}");
        // The cache is what is used: a changed layer is not noticed, as its documentation says.
        let layers = model.layers();
        let (_, to_v) = layers.iter().find(|(name, _)| name.ends_with("attn2.to_v")).unwrap();
        to_v.replace_weight(to_v.weight().affine(3.0, 0.0).unwrap()).unwrap();
        let stale = run_with_text(&model, &fixture, 0, &other_text, Some(&cache));
        assert_eq!(relative_difference(&stale, &other), 0.0, "{name}");
        let anew = run_with_text(&model, &fixture, 0, &other_text, Some(&TextCache::new()));
        assert!(relative_difference(&anew, &other) > 1e-6, "{name}");
    }
}

#[test]
fn bits_do_not_depend_on_the_batch() {
    for name in ["sd1", "sd2", "sdxl", "odd_size", "control", "masked_text"] {
        let (model, fixture) = load(name, &configs()[name]);
        let together = run(&model, &fixture, 0, 2);
        for item in 0..2 {
            let alone = run(&model, &fixture, item, 1);
            let difference = relative_difference(&together.narrow(0, item, 1).unwrap(), &alone);
            assert_eq!(difference, 0.0, "{name}, item {item}");
        }
    }
}

#[test]
fn residuals_may_be_the_same_for_all_pixels() {
    let (model, fixture) = load("control", &configs()["control"]);
    let (sample, text, timesteps) = (fixture.get("sample"), fixture.get("text"), fixture.values("timesteps"));
    let mean = |name: &str| fixture.get(name).mean_keepdim(3).unwrap().mean_keepdim(2).unwrap();
    let whole =
        |name: &str| mean(name).broadcast_as(fixture.get(name).shape()).unwrap().contiguous().unwrap();
    let names = ["control.0", "control.1", "control.2", "control.3"];
    let run = |down_block: &[Tensor], mid_block: &Tensor| {
        let control = Some(ControlResiduals { down_block, mid_block });
        let conditions = UNetConditions { control, ..Default::default() };
        model.forward(sample, &timesteps, text, conditions).unwrap()
    };
    let pooled = run(&names.map(mean), &mean("control.mid"));
    let spread = run(&names.map(whole), &whole("control.mid"));
    assert_eq!(relative_difference(&pooled, &spread), 0.0);
}

#[test]
fn half_precision_stays_near_float32() {
    let (_, fixture) = load("sd1", &configs()["sd1"]);
    let config = UNet2DConditionConfig::from_json(&configs()["sd1"]).unwrap();
    for (dtype, bound) in [(DType::F16, 1e-2), (DType::BF16, 6e-2)] {
        let weights = VarBuilder::from_tensors(fixture.state_dict("model."), dtype, &Device::Cpu);
        let model = UNet2DConditionModel::new(&config, weights).unwrap();
        let sample = fixture.get("sample").to_dtype(dtype).unwrap();
        let text = fixture.get("text").to_dtype(dtype).unwrap();
        let output = model.forward(&sample, &fixture.values("timesteps"), &text, Default::default()).unwrap();
        assert_eq!(output.dtype(), dtype);
        let difference = relative_difference(&output, fixture.get("output"));
        assert!(difference < bound, "{dtype:?}: {difference:e}");
    }
}

#[test]
fn a_field_that_is_not_supported_is_named() {
    let cases = [
        ("dual_cross_attention", "true"),
        ("encoder_hid_dim", "768"),
        ("addition_embed_type", "\"image\""),
        ("addition_embed_type", "\"text_time\""),
        ("class_embed_type", "\"projection\""),
        ("down_block_types", "[\"DownBlock2D\", \"AttnDownBlock2D\"]"),
        ("down_block_types", "[\"DownBlock2D\"]"),
        ("mid_block_type", "\"UNetMidBlock2DSimpleCrossAttn\""),
        ("block_out_channels", "[0, 16]"),
        ("block_out_channels", "[]"),
        ("block_out_channels", "\"many\""),
        ("layers_per_block", "99999999999999999999"),
        ("layers_per_block", "[1]"),
        ("attention_head_dim", "0"),
        ("attention_head_dim", "9"),
        ("norm_num_groups", "null"),
        ("downsample_padding", "1000000"),
        ("norm_eps", "\"small\""),
        ("act_fn", "\"relu\""),
        ("conv_in_kernel", "4"),
        ("time_embedding_type", "\"fourier\""),
        ("resnet_time_scale_shift", "\"spatial\""),
        ("attention_type", "\"gated\""),
        ("a_field_of_tomorrow", "1"),
        ("_class_name", "\"AutoencoderKL\""),
    ];
    for (field, value) in cases {
        let mut config = configs()["sd1"].clone();
        config[field] = serde_json::from_str(value).unwrap();
        let message = UNet2DConditionConfig::from_json(&config).unwrap_err().to_string();
        let named = message.contains(&format!("`{field}`"))
            || message.contains("`addition_time_embed_dim`")
            || message.contains("`projection_class_embeddings_input_dim`");
        assert!(named, "{field} = {value}: {message}");
    }
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let (model, fixture) = load("sd1", &configs()["sd1"]);
    let (sample, text) = (fixture.get("sample"), fixture.get("text"));
    let flat = sample.flatten_all().unwrap();
    let few = sample.narrow(1, 0, 3).unwrap();
    let narrow = text.narrow(2, 0, 11).unwrap();
    let one = text.narrow(0, 0, 1).unwrap();
    let error = |sample: &Tensor, timesteps: &[f64], text: &Tensor| {
        model.forward(sample, timesteps, text, Default::default()).unwrap_err().to_string()
    };
    assert!(error(&flat, &[1.0], text).contains("sample"));
    assert!(error(&few, &[1.0], text).contains("(batch, 4, height, width)"));
    assert!(error(sample, &[], text).contains("timesteps"));
    assert!(error(sample, &[1.0], &narrow).contains("encoder_hidden_states"));
    assert!(error(sample, &[1.0], &one).contains("encoder_hidden_states"));
    let labels = Tensor::new(&[1u32, 2], &Device::Cpu).unwrap();
    let conditions = UNetConditions { class_labels: Some(&labels), ..Default::default() };
    assert!(
        model.forward(sample, &[1.0], text, conditions).unwrap_err().to_string().contains("class_labels")
    );
}

#[test]
fn a_config_whose_lists_do_not_fit_is_an_error() {
    let good = UNet2DConditionConfig::from_json(&configs()["sd1"]).unwrap();
    type Change = fn(&mut UNet2DConditionConfig);
    let changes: [(&str, Change); 6] = [
        ("block_out_channels is empty", |config| config.block_out_channels.clear()),
        ("down_block_types has 1 entries, expected 2", |config| config.down_block_types.truncate(1)),
        ("layers_per_block has 3 entries, expected 2", |config| config.layers_per_block.push(1)),
        ("num_attention_heads has 0 entries", |config| config.num_attention_heads.clear()),
        ("num_attention_heads has a 0", |config| config.num_attention_heads[1] = 0),
        ("conv_out_kernel is 0", |config| config.conv_out_kernel = 0),
    ];
    for (message, change) in changes {
        let mut config = good.clone();
        change(&mut config);
        let weights = VarBuilder::zeros(DType::F32, &Device::Cpu);
        let error = UNet2DConditionModel::new(&config, weights).unwrap_err().to_string();
        assert!(error.contains(message), "{message}: {error}");
    }
}
