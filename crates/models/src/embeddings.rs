//! Timesteps as vectors (diffusers' `models/embeddings.py`).

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use crate::error::{Error, Result};
use crate::layers::{Activation, LayerList, Layers, Linear};

/// Sinusoidal embedding of numbers (Vaswani et al., 2017): half sines, half cosines, of falling frequency.
#[derive(Clone, Copy, Debug)]
pub struct Timesteps {
    /// Width of the embedding.
    pub channels: usize,
    /// Cosines come first.
    pub flip_sin_to_cos: bool,
    /// `freq_shift`: taken from the count of frequencies in the exponent.
    pub downscale_freq_shift: f64,
}

impl Timesteps {
    /// `(timesteps.len(), channels)`, in float32 on the CPU: the reference computes it in float32, whatever the model's dtype.
    ///
    /// # Errors
    /// Those of the device.
    pub fn forward(&self, timesteps: &[f32]) -> Result<Tensor> {
        let half = self.channels / 2;
        let denominator = (half as f64 - self.downscale_freq_shift) as f32;
        let frequencies: Vec<f32> =
            (0..half).map(|i| (-(10000f64.ln() as f32) * i as f32 / denominator).exp()).collect();
        let mut values = Vec::with_capacity(timesteps.len() * self.channels);
        for timestep in timesteps {
            let sines = frequencies.iter().map(|frequency| (timestep * frequency).sin());
            let cosines = frequencies.iter().map(|frequency| (timestep * frequency).cos());
            if self.flip_sin_to_cos {
                values.extend(cosines.chain(sines));
            } else {
                values.extend(sines.chain(cosines));
            }
            if !self.channels.is_multiple_of(2) {
                values.push(0.0);
            }
        }
        Ok(Tensor::from_vec(values, (timesteps.len(), self.channels), &Device::Cpu)?)
    }
}

/// Two linear layers with an activation between. State-dict keys `linear_1`, `linear_2` and perhaps `cond_proj`.
#[derive(Clone, Debug)]
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    cond_proj: Option<Linear>,
    activation: Activation,
    post_activation: Option<Activation>,
}

/// What a [`TimestepEmbedding`] may have besides its two layers.
#[derive(Clone, Copy, Debug)]
pub struct TimestepEmbeddingConfig {
    /// Between the layers.
    pub activation: Activation,
    /// After the second layer (`timestep_post_act`).
    pub post_activation: Option<Activation>,
    /// Width of a condition that is projected and added to the input (`time_cond_proj_dim`).
    pub cond_proj_dim: Option<usize>,
}

impl Default for TimestepEmbeddingConfig {
    fn default() -> Self {
        Self { activation: Activation::Silu, post_activation: None, cond_proj_dim: None }
    }
}

impl TimestepEmbedding {
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(
        in_channels: usize,
        time_embed_dim: usize,
        config: TimestepEmbeddingConfig,
        vb: VarBuilder,
    ) -> Result<Self> {
        let cond_proj = match config.cond_proj_dim {
            Some(dim) => Some(Linear::without_bias(dim, in_channels, vb.pp("cond_proj"))?),
            None => None,
        };
        Ok(Self {
            linear_1: Linear::new(in_channels, time_embed_dim, vb.pp("linear_1"))?,
            linear_2: Linear::new(time_embed_dim, time_embed_dim, vb.pp("linear_2"))?,
            cond_proj,
            activation: config.activation,
            post_activation: config.post_activation,
        })
    }

    /// `(batch, in_channels)` to `(batch, time_embed_dim)`; `condition` is `(batch, cond_proj_dim)`.
    ///
    /// # Errors
    /// When shapes do not fit, or a condition is given to a model without a projection for it.
    pub fn forward(&self, sample: &Tensor, condition: Option<&Tensor>) -> Result<Tensor> {
        let sample = match (condition, &self.cond_proj) {
            (None, _) => sample.clone(),
            (Some(condition), Some(projection)) => (sample + projection.forward(condition)?)?,
            (Some(_), None) => {
                let problem = "is given, but the model's config has no `time_cond_proj_dim`".to_string();
                return Err(Error::Input { model: "TimestepEmbedding", input: "timestep_cond", problem });
            }
        };
        let hidden = self.linear_2.forward(&self.linear_1.forward_activated(&sample, self.activation)?)?;
        match self.post_activation {
            Some(activation) => activation.forward(&hidden),
            None => Ok(hidden),
        }
    }
}

impl Layers for TimestepEmbedding {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("linear_1", &self.linear_1);
        list.add("linear_2", &self.linear_2);
        list.add("cond_proj", &self.cond_proj);
    }
}

/// A tensor of numbers of any dtype as a list of float32, in row-major order.
pub(crate) fn to_floats(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}
