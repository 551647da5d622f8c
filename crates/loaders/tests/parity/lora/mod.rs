//! LoRA of every kind on tiny models: what they compute is what the definition gives, or PEFT's own layers.

use candle_core::{DType, Device, Tensor};
use candle_diffusers_loaders::lora::{LoraAdapters, LoraModels, UnmatchedKeys};
use candle_diffusers_models::layers::{Activation, Layers};
use candle_diffusers_models::{
    ClipTextConfig, ClipTextModel, ClipTextModelWithProjection, EosTokenId, TextTime, UNet2DConditionConfig,
    UNet2DConditionModel, UNetConditions,
};
use candle_diffusers_test_support::{Fixture, assert_close, relative_difference, values};
use candle_nn::VarBuilder;
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/lora");
const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/parity");

const BOUND: f64 = 1e-5;

fn fixture() -> Fixture {
    Fixture::open(format!("{FOLDER}/lora.safetensors"))
}

/// A kind's file, or the folder that PEFT wrote.
fn path(kind: &str) -> String {
    let folder = format!("{FOLDER}/{kind}");
    if std::path::Path::new(&folder).is_dir() { folder } else { format!("{folder}.safetensors") }
}

/// A tiny UNet with its inputs.
struct UNet {
    model: UNet2DConditionModel,
    inputs: Fixture,
    dtype: DType,
}

impl UNet {
    fn new(name: &str, dtype: DType) -> Self {
        let folder = format!("{MODELS}/unet_2d_condition");
        let configs = std::fs::read_to_string(format!("{folder}/configs.json")).unwrap();
        let configs: Value = serde_json::from_str(&configs).unwrap();
        let config = UNet2DConditionConfig::from_json(&configs[name]).unwrap();
        let inputs = Fixture::open(format!("{folder}/{name}.safetensors"));
        let weights = VarBuilder::from_tensors(inputs.state_dict("model."), dtype, &Device::Cpu);
        Self { model: UNet2DConditionModel::new(&config, weights).unwrap(), inputs, dtype }
    }

    fn run(&self) -> Tensor {
        let get = |name: &str| self.inputs.get(name).to_dtype(self.dtype).unwrap();
        let added = self.inputs.contains("time_ids").then(|| (get("text_embeds"), get("time_ids")));
        let added = added.as_ref().map(|(text_embeds, time_ids)| TextTime { text_embeds, time_ids });
        let conditions = UNetConditions { added, ..Default::default() };
        let timesteps = self.inputs.values("timesteps");
        self.model.forward(&get("sample"), &timesteps, &get("text"), conditions).unwrap()
    }

    fn models(&self) -> LoraModels<'_> {
        LoraModels { unet: Some(&self.model), ..Default::default() }
    }
}

fn load(models: &LoraModels, kinds: &[&str]) -> LoraAdapters {
    let mut adapters = LoraAdapters::new();
    for kind in kinds {
        adapters.load(models, kind, path(kind), UnmatchedKeys::Refuse).unwrap();
    }
    adapters
}

/// Every way on and off: beside the layers, fused, unfused, switched off, unloaded; fused for good.
fn check(unet: &UNet, active: &[(&str, f64)], expected: &Tensor) {
    let before = values(&unet.run());
    let kinds: Vec<&str> = active.iter().map(|(kind, _)| *kind).collect();
    let mut adapters = load(&unet.models(), &kinds);
    assert_eq!(values(&unet.run()), before, "{kinds:?}: loaded, not active");

    adapters.set_adapters(active).unwrap();
    let beside = unet.run();
    println!("{active:?}: beside {:.1e}", relative_difference(&beside, expected));
    assert_close(&format!("{active:?} beside"), &beside, expected, BOUND);
    assert!(values(&beside).iter().zip(&before).any(|(with, without)| (with - without).abs() > 0.05));

    adapters.fuse().unwrap();
    assert!(adapters.is_fused());
    let fused = unet.run();
    println!("{active:?}: fused {:.1e}", relative_difference(&fused, expected));
    assert_close(&format!("{active:?} fused"), &fused, expected, BOUND);
    assert!(unet.model.layers().iter().all(|(_, layer)| layer.adapter().is_none()));

    adapters.unfuse().unwrap();
    assert_eq!(values(&unet.run()), values(&beside), "{kinds:?}: unfused");
    let none: [(&str, f64); 0] = [];
    adapters.set_adapters(&none).unwrap();
    assert_eq!(values(&unet.run()), before, "{kinds:?}: switched off");
    adapters.fuse().unwrap();
    adapters.set_adapters(active).unwrap();
    assert_eq!(values(&unet.run()), values(&fused), "{kinds:?}: set while fused");
    adapters.unload_all();
    assert_eq!(values(&unet.run()), before, "{kinds:?}: unloaded");
    assert_eq!(adapters.list().count(), 0);

    let copy = UNet { model: unet.model.clone(), inputs: Fixture::open(path_of_inputs()), dtype: unet.dtype };
    let mut adapters = load(&copy.models(), &kinds);
    adapters.set_adapters(active).unwrap();
    adapters.fuse_permanently().unwrap();
    assert_eq!(values(&copy.run()), values(&fused), "{kinds:?}: fused for good");
    assert_eq!(values(&unet.run()), before, "{kinds:?}: a clone is another model");
}

fn path_of_inputs() -> String {
    format!("{MODELS}/unet_2d_condition/sd1.safetensors")
}

#[test]
fn every_kind_equals_the_definition() {
    let (unet, fixture) = (UNet::new("sd1", DType::F32), fixture());
    for kind in ["plain", "locon", "locon_mid", "loha", "lokr", "dora", "full", "dtypes"] {
        check(&unet, &[(kind, 1.0)], fixture.get(&format!("{kind}.output")));
    }
}

#[test]
fn every_kind_of_peft_equals_its_layers() {
    let (unet, fixture) = (UNet::new("sd1", DType::F32), fixture());
    for kind in ["peft_rslora", "peft_dora", "peft_loha", "peft_lokr", "peft_lokr_plain"] {
        check(&unet, &[(kind, 1.0)], fixture.get(&format!("{kind}.output")));
    }
}

#[test]
fn several_add_up_with_their_weights() {
    let (unet, fixture) = (UNet::new("sd1", DType::F32), fixture());
    check(&unet, &[("plain", 0.7), ("locon", -0.4), ("lokr", 0.5)], fixture.get("several.output"));
    check(&unet, &[("lokr", 0.5), ("plain", 0.7), ("locon", -0.4)], fixture.get("several.output"));
    check(&unet, &[("dora_first", 0.7), ("dora_second", 0.5)], fixture.get("two_doras.output"));
    let active = [("dora_third", 0.6), ("dora_second", 0.5), ("dora_first", 0.7)];
    check(&unet, &active, fixture.get("two_doras_and_a_lora.output"));
}

#[test]
fn one_goes_and_the_others_stay() {
    let unet = UNet::new("sd1", DType::F32);
    let mut alone = load(&unet.models(), &["lokr"]);
    alone.set_adapters(&[("lokr", 0.5)]).unwrap();
    let expected = values(&unet.run());
    alone.unload_all();
    let mut adapters = load(&unet.models(), &["plain", "lokr", "full"]);
    adapters.set_adapters(&[("plain", 0.7), ("lokr", 0.5), ("full", 1.0)]).unwrap();
    adapters.unload("plain").unwrap();
    adapters.unload("full").unwrap();
    assert_eq!(values(&unet.run()), expected);
    let listed: Vec<_> = adapters.list().map(|info| (info.name.as_str(), info.strength)).collect();
    assert_eq!(listed, [("lokr", Some(0.5))]);
}

#[test]
fn half_precision_stays_near_and_comes_back_exactly() {
    let fixture = fixture();
    for (dtype, bound) in [(DType::F16, 1e-2), (DType::BF16, 6e-2)] {
        let unet = UNet::new("sd1", dtype);
        let before = values(&unet.run());
        for kind in ["plain", "locon", "locon_mid", "loha", "dora", "full"] {
            let mut adapters = load(&unet.models(), &[kind]);
            adapters.set_adapters(&[(kind, 1.0)]).unwrap();
            let expected = fixture.get(&format!("{kind}.output"));
            assert_close(&format!("{kind} beside in {dtype:?}"), &unet.run(), expected, bound);
            adapters.fuse().unwrap();
            assert_eq!(unet.run().dtype(), dtype);
            assert_close(&format!("{kind} fused in {dtype:?}"), &unet.run(), expected, bound);
            adapters.unload_all();
            assert_eq!(values(&unet.run()), before, "{kind} in {dtype:?}");
        }
    }
}

fn clip_config(eos_token_id: EosTokenId, num_hidden_layers: usize, heads: usize) -> ClipTextConfig {
    ClipTextConfig {
        vocab_size: 60,
        hidden_size: 24,
        intermediate_size: 32,
        projection_dim: 20,
        num_hidden_layers,
        num_attention_heads: heads,
        max_position_embeddings: 16,
        hidden_act: if heads == 2 { Activation::QuickGelu } else { Activation::Gelu },
        layer_norm_eps: 1e-5,
        eos_token_id,
    }
}

#[test]
fn sdxl_with_both_text_encoders_equals_the_definition() {
    let (unet, fixture) = (UNet::new("sdxl", DType::F32), fixture());
    let text = Fixture::open(format!("{MODELS}/clip_text/clip_text.safetensors"));
    let weights = |name: &str| {
        VarBuilder::from_tensors(text.state_dict(&format!("{name}.model.")), DType::F32, &Device::Cpu)
    };
    let first = ClipTextModel::new(&clip_config(EosTokenId::Legacy, 3, 2), weights("legacy")).unwrap();
    let config = clip_config(EosTokenId::Id(57), 2, 4);
    let second = ClipTextModelWithProjection::new(&config, weights("projection")).unwrap();
    let ids = text.get("input_ids");
    let run = || {
        let first = first.forward(ids).unwrap().last_hidden_state;
        [unet.run(), first, second.forward(ids).unwrap().text_embeds]
    };
    let models =
        LoraModels { unet: Some(&unet.model), text_encoder: Some(&first), text_encoder_2: Some(&second) };
    let before = run().map(|output| values(&output));
    let mut adapters = load(&models, &["sdxl"]);
    let components = &adapters.list().next().unwrap().components;
    let components: Vec<_> =
        components.iter().map(|(component, count)| (component.folder(), *count)).collect();
    assert_eq!(components, [("unet", 15), ("text_encoder", 3), ("text_encoder_2", 2)]);
    let check = |how: &str| {
        for (name, output) in ["output", "text_1", "text_2"].iter().zip(run()) {
            assert_close(&format!("{name} {how}"), &output, fixture.get(&format!("sdxl.{name}")), BOUND);
        }
    };
    adapters.set_adapters(&[("sdxl", 1.0)]).unwrap();
    check("beside");
    adapters.fuse().unwrap();
    check("fused");
    adapters.unload_all();
    assert_eq!(run().map(|output| values(&output)), before);
}
