//! Weights of a model that begins from nothing: torch's initialisation of its layers.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_diffusers_schedulers::{NoiseSource, TorchGenerator};
use candle_nn::Init;
use candle_nn::var_builder::SimpleBackend;

/// Gives each tensor that a model asks for what torch gives it: linear layers and convolutions uniform numbers up to 1 / sqrt(inputs), weights and biases alike;
/// tables normal ones, those of CLIP smaller ones; norms ones and zeros. The numbers depend on the generator and on the order in which the model asks.
pub(crate) struct RandomInit {
    generator: Mutex<TorchGenerator>,
    /// How many inputs the layers have whose weights were asked for, by their names; none for norms.
    inputs: Mutex<HashMap<String, Option<usize>>>,
}

/// How wide diffusers spreads the random frequencies of `GaussianFourierProjection`.
const FOURIER_SCALE: f64 = 16.0;

/// How far transformers spreads the embeddings of CLIP's tokens and positions.
const CLIP_SCALE: f64 = 0.02;

impl RandomInit {
    pub(crate) fn new(generator: TorchGenerator) -> Self {
        Self { generator: Mutex::new(generator), inputs: Mutex::default() }
    }

    fn weight(&self, layer: &str, shape: &[usize], device: &Device) -> candle_core::Result<Tensor> {
        let is_time = layer.ends_with("time_proj");
        let is_table = (is_time || layer.ends_with("class_embedding")) && shape.len() == 2;
        let is_clip = layer.ends_with("token_embedding") || layer.ends_with("position_embedding");
        let inputs = (shape.len() > 1).then(|| shape[1..].iter().product());
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner).insert(layer.to_string(), inputs);
        match inputs {
            _ if is_table => self.normal(shape, device),
            _ if is_clip => self.normal(shape, device)? * CLIP_SCALE,
            None if is_time => self.normal(shape, device)? * FOURIER_SCALE,
            None => Tensor::ones(shape, DType::F32, device),
            Some(inputs) => self.uniform(inputs, shape, device),
        }
    }

    fn bias(&self, layer: &str, shape: &[usize], device: &Device) -> candle_core::Result<Tensor> {
        let inputs = self.inputs.lock().unwrap_or_else(PoisonError::into_inner).get(layer).copied();
        match inputs {
            Some(Some(inputs)) => self.uniform(inputs, shape, device),
            Some(None) => Tensor::zeros(shape, DType::F32, device),
            None => Err(unknown(&format!("{layer}.bias"))),
        }
    }

    fn normal(&self, shape: &[usize], device: &Device) -> candle_core::Result<Tensor> {
        let mut generator = self.generator.lock().unwrap_or_else(PoisonError::into_inner);
        generator.randn(shape, DType::F32, device).map_err(candle_core::Error::wrap)
    }

    fn uniform(&self, inputs: usize, shape: &[usize], device: &Device) -> candle_core::Result<Tensor> {
        let bound = (inputs as f64).powf(-0.5);
        let mut generator = self.generator.lock().unwrap_or_else(PoisonError::into_inner);
        let drawn = generator.rand(shape, DType::F32, device).map_err(candle_core::Error::wrap)?;
        drawn.affine(2.0 * bound, -bound)
    }
}

impl SimpleBackend for RandomInit {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = match name.rsplit_once('.') {
            Some((layer, "weight")) => self.weight(layer, shape.dims(), device)?,
            Some((layer, "bias")) => self.bias(layer, shape.dims(), device)?,
            _ => return Err(unknown(name)),
        };
        tensor.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        Err(unknown(name))
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

fn unknown(name: &str) -> candle_core::Error {
    candle_core::Error::Msg(format!(
        "{name}: there is no rule for how a new model's tensor of this name begins"
    ))
}
