//! Attentions that another processor computes, beside the reference's.

use std::sync::{Arc, Mutex};

use candle_core::{D, DType, Device, Tensor};
use candle_diffusers_models::attention::Attention;
use candle_diffusers_models::layers::Layers;
use candle_diffusers_models::{
    AttentionInput, AttentionProcessor, AutoencoderKL, AutoencoderKLConfig, Result, TextCache,
    UNet2DConditionConfig, UNet2DConditionModel, UNet2DConfig, UNet2DModel, UNetConditions,
};
use candle_diffusers_test_support::{Fixture, assert_close, relative_difference};
use candle_nn::VarBuilder;
use serde_json::{Value, json};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/attention_processors");
const ONE: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn2";

fn load() -> (UNet2DConditionModel, Fixture) {
    let fixture = Fixture::open(format!("{FOLDER}/attention_processors.safetensors"));
    let config = json!({
        "sample_size": 4, "block_out_channels": [4, 4], "norm_num_groups": 2, "layers_per_block": 1,
        "cross_attention_dim": 6, "attention_head_dim": 2,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]
    });
    let config = UNet2DConditionConfig::from_json(&config).unwrap();
    let weights = VarBuilder::from_tensors(fixture.state_dict("model."), DType::F32, &Device::Cpu);
    (UNet2DConditionModel::new(&config, weights).unwrap(), fixture)
}

fn run(
    model: &UNet2DConditionModel,
    fixture: &Fixture,
    mask: Option<&Tensor>,
    cache: Option<&TextCache>,
) -> Tensor {
    let conditions = UNetConditions { encoder_attention_mask: mask, text_cache: cache, ..Default::default() };
    model.forward(fixture.get("sample"), &[321.0], fixture.get("text"), conditions).unwrap()
}

/// `Scaling` of export.py: keeps the probabilities and then multiplies those of one token.
#[derive(Debug, Default)]
struct Scaling {
    probabilities: Mutex<Option<Tensor>>,
}

impl AttentionProcessor for Scaling {
    fn forward(&self, attention: &Attention, input: AttentionInput<'_>) -> Result<Tensor> {
        let query = attention.query(input.hidden_states)?;
        let (key, value) = attention.key_and_value(&input)?;
        let probabilities = attention.probabilities(&query, &key, input.mask)?;
        *self.probabilities.lock().unwrap() = Some(probabilities.clone());
        let mut factors = vec![1f32; probabilities.dim(D::Minus1)?];
        factors[2] = 3.0;
        let factors = Tensor::new(factors, probabilities.device())?;
        attention.output(&attention.mix(&probabilities.broadcast_mul(&factors)?, &value)?)
    }
}

#[test]
fn names_are_the_references() {
    let names: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{FOLDER}/names.json")).unwrap()).unwrap();
    let zeros = || VarBuilder::zeros(DType::F32, &Device::Cpu);
    let blocks = |extra: Value| {
        let mut config = json!({"block_out_channels": [4, 4], "norm_num_groups": 2});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        config
    };
    let vae = blocks(json!({
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"]
    }));
    let vae = AutoencoderKL::new(&AutoencoderKLConfig::from_json(&vae).unwrap(), zeros()).unwrap();
    let unconditional = blocks(json!({
        "attention_head_dim": 2, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]
    }));
    let unconditional = UNet2DModel::new(&UNet2DConfig::from_json(&unconditional).unwrap(), zeros()).unwrap();
    let models: [(&str, &dyn Layers); 3] =
        [("unet", &load().0), ("vae", &vae), ("unconditional", &unconditional)];
    for (model, layers) in models {
        let mut found: Vec<String> = layers.attentions().into_iter().map(|(name, _)| name).collect();
        found.sort();
        assert_eq!(json!(found), names[model], "{model}");
    }
}

#[test]
fn what_processors_see_and_give_equals_the_reference() {
    let (model, fixture) = load();
    for (case, ending, mask) in
        [("cross", "attn2", None), ("masked", "attn2", Some("mask")), ("self", "attn1", None)]
    {
        let mask = mask.map(|name| fixture.get(name));
        let mut scaling = Vec::new();
        for (name, layer) in model.attentions() {
            if name.ends_with(ending) {
                let processor = Arc::new(Scaling::default());
                assert!(layer.set_processor(Some(processor.clone())).is_none());
                scaling.push((name, layer, processor));
            }
        }
        assert_eq!(scaling.len(), 4, "{case}");
        let cache = TextCache::new();
        for cache in [None, Some(&cache), Some(&cache)] {
            let output = run(&model, &fixture, mask, cache);
            assert_close(case, &output, fixture.get(&format!("{case}.output")), 1e-5);
        }
        for (name, layer, processor) in scaling {
            let probabilities = processor.probabilities.lock().unwrap().clone().unwrap();
            assert_close(&name, &probabilities, fixture.get(&format!("{case}.{name}")), 1e-5);
            assert!(layer.set_processor(None).is_some() && layer.processor().is_none());
        }
    }
}

#[test]
fn one_layer_can_be_replaced_and_restored() {
    let (model, fixture) = load();
    let plain = run(&model, &fixture, None, None);
    assert_close("plain", &plain, fixture.get("plain.output"), 1e-5);
    let layer = model.attention(ONE).unwrap();
    layer.set_processor(Some(Arc::new(Scaling::default())));
    let one = run(&model, &fixture, None, None);
    assert_close("one", &one, fixture.get("one.output"), 1e-5);
    assert!(relative_difference(&one, &plain) > 1e-3);

    // A clone has the processor, and keeps it.
    let clone = model.clone();
    layer.set_processor(None);
    assert_eq!(relative_difference(&run(&model, &fixture, None, None), &plain), 0.0, "restored to the bit");
    assert_eq!(relative_difference(&run(&clone, &fixture, None, None), &one), 0.0);
    clone.attention(ONE).unwrap().set_processor(None);
    assert_eq!(relative_difference(&run(&clone, &fixture, None, None), &plain), 0.0);
}

/// Computes as the model does.
#[derive(Debug)]
struct Plain;

impl AttentionProcessor for Plain {
    fn forward(&self, attention: &Attention, input: AttentionInput<'_>) -> Result<Tensor> {
        let query = attention.query(input.hidden_states)?;
        let (key, value) = attention.key_and_value(&input)?;
        attention.output(&attention.attend(&query, &key, &value, input.mask)?)
    }
}

#[test]
fn the_models_own_steps_give_its_own_result() {
    let (model, fixture) = load();
    let plain = run(&model, &fixture, None, None);
    let layers = model.attentions();
    layers.iter().for_each(|(_, layer)| drop(layer.set_processor(Some(Arc::new(Plain)))));
    assert_close("plain", &run(&model, &fixture, None, None), &plain, 1e-6);
    for (dtype, bound) in [(DType::F16, 1e-2), (DType::BF16, 6e-2)] {
        let weights = VarBuilder::from_tensors(fixture.state_dict("model."), dtype, &Device::Cpu);
        let half = UNet2DConditionModel::new(model.config(), weights).unwrap();
        half.attentions()
            .iter()
            .for_each(|(_, layer)| drop(layer.set_processor(Some(Arc::new(Scaling::default())))));
        let input = |name: &str| fixture.get(name).to_dtype(dtype).unwrap();
        let output = half.forward(&input("sample"), &[321.0], &input("text"), Default::default()).unwrap();
        assert_eq!(output.dtype(), dtype);
        model
            .attentions()
            .iter()
            .for_each(|(_, layer)| drop(layer.set_processor(Some(Arc::new(Scaling::default())))));
        assert_close(dtype.as_str(), &output, &run(&model, &fixture, None, None), bound);
    }
}

#[test]
fn a_layer_that_is_not_there_is_named() {
    let error = load().0.attention("down_blocks.0.attn2").unwrap_err().to_string();
    assert!(
        error.contains("name is \"down_blocks.0.attn2\", expected one of: ") && error.contains(ONE),
        "{error}"
    );
}
