//! Layers changed from outside.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use candle_diffusers_kernels::Conv2dParams;
use candle_diffusers_models::Result;
use candle_diffusers_models::layers::{Conv2d, Layer, LayerAdapter, Layers, Linear};
use candle_diffusers_test_support::{assert_close, values};
use candle_nn::VarBuilder;

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
}

fn builder(weight: Tensor, bias: Tensor) -> VarBuilder<'static> {
    let tensors = [("weight".to_string(), weight), ("bias".to_string(), bias)];
    VarBuilder::from_tensors(tensors.into(), DType::F32, &Device::Cpu)
}

fn linear() -> Linear {
    Linear::new(6, 4, builder(random(&[4, 6]), random(&[4]))).unwrap()
}

fn conv() -> Conv2d {
    let params = Conv2dParams { stride: 2, padding: 1 };
    Conv2d::new(3, 5, 3, params, builder(random(&[5, 3, 3, 3]), random(&[5]))).unwrap()
}

fn handle(layers: &dyn Layers) -> Layer {
    layers.layers().remove(0).1
}

/// `output + up down input`.
#[derive(Debug)]
struct LowRank {
    down: Tensor,
    up: Tensor,
}

impl LayerAdapter for LowRank {
    fn forward(&self, layer: &Layer, input: &Tensor, output: Tensor) -> Result<Tensor> {
        let operation = layer.operation();
        let low = operation.forward(input, &self.down, None)?;
        Ok((output + operation.pointwise().forward(&low, &self.up, None)?)?)
    }
}

#[test]
fn an_adapter_changes_the_output_and_leaves_no_trace() {
    let (linear, conv) = (linear(), conv());
    type Forward<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor>;
    let cases: [(&dyn Layers, Forward, Tensor, LowRank); 2] = [
        (
            &linear,
            &|x| linear.forward(x),
            random(&[2, 7, 6]),
            LowRank { down: random(&[2, 6]), up: random(&[4, 2]) },
        ),
        (
            &conv,
            &|x| conv.forward(x),
            random(&[2, 3, 8, 9]),
            LowRank { down: random(&[2, 3, 3, 3]), up: random(&[5, 2, 1, 1]) },
        ),
    ];
    for (layers, forward, input, adapter) in cases {
        let layer = handle(layers);
        let before = forward(&input).unwrap();
        let adapter = Arc::new(adapter);
        assert!(layer.set_adapter(Some(adapter.clone())).is_none());
        let adapted = forward(&input).unwrap();
        let expected = adapter.forward(&layer, &input, before.clone()).unwrap();
        assert_eq!(values(&adapted), values(&expected));
        assert_ne!(values(&adapted), values(&before));
        assert!(layer.set_adapter(None).is_some() && layer.adapter().is_none());
        assert_eq!(values(&forward(&input).unwrap()), values(&before));
    }
}

#[test]
fn gradients_flow_through_an_adapter() {
    let conv = conv();
    let (down, up) = (Var::from_tensor(&random(&[2, 3, 3, 3])), Var::from_tensor(&random(&[5, 2, 1, 1])));
    let (down, up) = (down.unwrap(), up.unwrap());
    let adapter = LowRank { down: down.as_tensor().clone(), up: up.as_tensor().clone() };
    handle(&conv).set_adapter(Some(Arc::new(adapter)));
    let loss = conv.forward(&random(&[1, 3, 8, 8])).unwrap().sqr().unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    for var in [&down, &up] {
        let gradient = gradients.get(var).unwrap();
        assert!(values(gradient).iter().any(|value| *value != 0.0));
    }
}

#[test]
fn a_weight_in_use_is_given_back_number_for_number() {
    let (weight, bias) = (random(&[4, 6]), random(&[4]));
    let linear = Linear::new(6, 4, builder(weight.clone(), bias)).unwrap();
    let (layer, input) = (handle(&linear), random(&[2, 3, 6]));
    let first = linear.forward(&input).unwrap();
    assert_eq!(values(&layer.weight()), values(&weight));
    assert_eq!(values(&linear.forward(&input).unwrap()), values(&first));
    assert_eq!(values(&layer.replace_weight(random(&[4, 6])).unwrap()), values(&weight));
}

#[test]
fn a_layer_in_use_gives_gradients_when_asked() {
    let conv = conv();
    let input = random(&[1, 3, 8, 8]);
    let before = conv.forward(&input).unwrap();
    let variable = Var::from_tensor(&input).unwrap();
    let output = conv.forward(variable.as_tensor()).unwrap();
    let gradients = output.sum_all().unwrap().backward().unwrap();
    assert!(values(gradients.get(&variable).unwrap()).iter().any(|value| *value != 0.0));
    assert_close("with a gradient", &output, &before, 1e-5);
    let params = Conv2dParams { stride: 2, padding: 1 };
    let (weight, bias) = (handle(&conv).weight(), handle(&conv).bias().unwrap());
    let by_hand = candle_diffusers_kernels::conv2d(&input, &weight, Some(&bias), params).unwrap();
    assert_eq!(values(&conv.forward(&input).unwrap()), values(&by_hand));
    assert_eq!(values(&before), values(&by_hand));
}

#[test]
fn a_variable_is_trained_where_it_is() {
    let variable = Var::from_tensor(&random(&[4, 6])).unwrap();
    let linear = Linear::new(6, 4, builder(variable.as_tensor().clone(), random(&[4]))).unwrap();
    let input = random(&[1, 3, 6]);
    let before = linear.forward(&input).unwrap();
    variable.set(&random(&[4, 6])).unwrap();
    let after = linear.forward(&input).unwrap();
    assert_ne!(values(&after), values(&before));
    assert!(after.sum_all().unwrap().backward().unwrap().get(&variable).is_some());
}

#[test]
fn a_weight_is_replaced_by_one_that_fits_only() {
    let linear = linear();
    let (layer, input) = (handle(&linear), random(&[1, 3, 6]));
    let before = linear.forward(&input).unwrap();
    let wrong = [random(&[6, 4]), random(&[4, 6]).to_dtype(DType::F16).unwrap()];
    for weight in wrong {
        let error = layer.replace_weight(weight).unwrap_err().to_string();
        assert!(error.contains("expected [4, 6] of f32"), "{error}");
    }
    assert!(layer.replace_bias(Some(random(&[6]))).unwrap_err().to_string().contains("bias is [6]"));
    let (weight, bias) = (layer.replace_weight(random(&[4, 6])), layer.replace_bias(None));
    assert!(layer.bias().is_none());
    assert_ne!(values(&linear.forward(&input).unwrap()), values(&before));
    layer.replace_weight(weight.unwrap()).unwrap();
    layer.replace_bias(bias.unwrap()).unwrap();
    assert_eq!(values(&linear.forward(&input).unwrap()), values(&before));
}

#[test]
fn a_clone_is_changed_alone_and_a_handle_with_its_layer() {
    let first = linear();
    let second = first.clone();
    let (one, two) = (handle(&first), handle(&second));
    assert!(one.is_same(&handle(&first)) && one.is_same(&one.clone()) && !one.is_same(&two));
    one.replace_weight(random(&[4, 6])).unwrap();
    assert_ne!(values(&one.weight()), values(&two.weight()));
    assert_eq!(values(&handle(&first).weight()), values(&one.weight()));
}
