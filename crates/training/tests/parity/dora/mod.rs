//! DoRA and rsLoRA beside PEFT's: outputs, and gradients of all that is trained and of the inputs.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};
use candle_diffusers_kernels::Conv2dParams;
use candle_diffusers_models::layers::{Conv2d, LayerList, Layers, Linear};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::{Fixture, assert_close};
use candle_diffusers_training::{LoraConfig, TargetModules, TrainedLora};
use candle_nn::VarBuilder;
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/dora");

struct Model {
    linear: Linear,
    plain: Linear,
    conv: Conv2d,
}

impl Layers for Model {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("linear", &self.linear);
        list.add("plain", &self.plain);
        list.add("conv", &self.conv);
    }
}

fn model(fixture: &Fixture) -> Model {
    let names = ["linear.weight", "linear.bias", "plain.weight", "conv.weight", "conv.bias"];
    let tensor = |name: &str| (name.to_string(), fixture.get(&format!("weight/{name}")).clone());
    let weights: HashMap<String, Tensor> = names.into_iter().map(tensor).collect();
    let weights = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let params = Conv2dParams { stride: 2, padding: 1 };
    Model {
        linear: Linear::new(6, 5, weights.pp("linear")).unwrap(),
        plain: Linear::without_bias(6, 5, weights.pp("plain")).unwrap(),
        conv: Conv2d::new(3, 4, 3, params, weights.pp("conv")).unwrap(),
    }
}

#[test]
fn outputs_and_gradients_are_pefts() {
    let fixture = Fixture::open(format!("{FOLDER}/dora.safetensors"));
    let cases: Value =
        serde_json::from_slice(&std::fs::read(format!("{FOLDER}/cases.json")).unwrap()).unwrap();
    for (case, options) in cases.as_object().unwrap() {
        let model = model(&fixture);
        let config = LoraConfig {
            alpha: options["alpha"].as_f64().unwrap(),
            use_dora: options["use_dora"].as_bool().unwrap(),
            use_rslora: options["use_rslora"].as_bool().unwrap(),
            target_modules: TargetModules::Pattern("linear|plain|con.".to_string()),
            ..LoraConfig::new(options["rank"].as_u64().unwrap() as usize, &[])
        };
        let lora = TrainedLora::attach(&model, "unet", &config, &mut TorchGenerator::new(0)).unwrap();
        let parameters = lora.parameters();
        let parts = if config.use_dora { 3 } else { 2 };
        assert_eq!(parameters.len(), 3 * parts, "{case}");
        // `unet.linear.lora_A.weight`, as PEFT calls it.
        let key = |name: &str| {
            let words: Vec<&str> = name.split('.').collect();
            format!("{case}/{}/{}", words[1], words[2])
        };
        for parameter in &parameters {
            let value = fixture.get(&key(&parameter.name)).reshape(parameter.var.dims()).unwrap();
            parameter.var.set(&value).unwrap();
        }
        for layer in ["linear", "plain", "conv"] {
            let input = Var::from_tensor(fixture.get(&format!("input/{layer}"))).unwrap();
            let output = match layer {
                "linear" => model.linear.forward(&input),
                "plain" => model.plain.forward(&input),
                _ => model.conv.forward(&input),
            }
            .unwrap();
            assert_close(layer, &output, fixture.get(&format!("{case}/{layer}/output")), 1e-5);
            let count = output.elem_count();
            let factors: Vec<f32> = (0..count).map(|index| (index as f32).cos()).collect();
            let factors = Tensor::from_vec(factors, output.shape(), &Device::Cpu).unwrap();
            let gradients = (output * factors).unwrap().sum_all().unwrap().backward().unwrap();
            let expected = fixture.get(&format!("{case}/{layer}/input_gradient"));
            assert_close(layer, gradients.get(&input).unwrap(), expected, 1e-5);
            for parameter in
                parameters.iter().filter(|parameter| parameter.name.contains(&format!(".{layer}.")))
            {
                let expected = fixture.get(&format!("{}_gradient", key(&parameter.name)));
                let expected = expected.reshape(parameter.var.dims()).unwrap();
                assert_close(&parameter.name, gradients.get(&parameter.var).unwrap(), &expected, 1e-5);
            }
        }
    }
}
