//! A LoRA leaves numbers out in steps only.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;

use candle_core::{DType, Device};
use candle_diffusers_models::layers::{LayerList, Layers, Linear};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::{numbers, values};
use candle_diffusers_training::{BatchShare, LoraConfig, TrainedLora};
use candle_nn::VarBuilder;

struct Model(Linear);

impl Layers for Model {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("linear", &self.0);
    }
}

/// The same model with the same LoRA, but for what is left out.
fn model(dropout: f64, use_dora: bool) -> (Model, TrainedLora) {
    let weights = HashMap::from([("weight".to_string(), numbers(&[5, 6], 1))]);
    let weights = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let model = Model(Linear::without_bias(6, 5, weights).unwrap());
    let config = LoraConfig { dropout, use_dora, ..LoraConfig::new(2, &["linear"]) };
    let lora = TrainedLora::attach(&model, "unet", &config, &mut TorchGenerator::new(0)).unwrap();
    for parameter in lora.parameters() {
        parameter.var.set(&numbers(parameter.var.dims(), 7)).unwrap();
    }
    (model, lora)
}

#[test]
fn nothing_is_left_out_between_steps() {
    let input = numbers(&[1, 6], 2);
    for use_dora in [false, true] {
        let (plain, _) = model(0.0, use_dora);
        let expected = values(&plain.0.forward(&input).unwrap());
        let (model, lora) = model(0.5, use_dora);
        let output = || values(&model.0.forward(&input).unwrap());
        lora.begin_step(3, BatchShare::default());
        assert!(output() != expected);
        // A batch of one, which two kinds of pictures have no share in.
        lora.begin_step(3, BatchShare { process: 0, processes: 2, parts: 2 });
        assert!(model.0.forward(&input).is_err());
        lora.end_step();
        assert_eq!([output(), output()], [expected.clone(), expected.clone()]);
        lora.begin_step(3, BatchShare::default());
        assert!(output() != expected);
    }
}
