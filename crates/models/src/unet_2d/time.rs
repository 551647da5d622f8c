//! Timestep and class as the one vector that residual blocks see.

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;

use super::MODEL;
use super::config::{TimeEmbeddingType, UNet2DConfig};
use crate::class_embedding::{ClassEmbedding, ClassEmbeddingSizes};
use crate::embeddings::{TimestepEmbedding, TimestepEmbeddingConfig, Timesteps, to_floats};
use crate::error::{Error, Result};
use crate::layers::{Embedding, LayerList, Layers};

/// Everything that makes the time embedding.
#[derive(Clone, Debug)]
pub(super) struct TimeEmbeddings {
    time_proj: TimeProjection,
    time_embedding: TimestepEmbedding,
    class_embedding: Option<ClassEmbedding>,
}

/// `time_proj` in its forms.
#[derive(Clone, Debug)]
enum TimeProjection {
    Positional(Timesteps),
    /// `GaussianFourierProjection`: its frequencies.
    Fourier(Vec<f32>),
    Learned(Embedding),
}

impl TimeEmbeddings {
    pub(super) fn new(config: &UNet2DConfig, vb: &VarBuilder) -> Result<Self> {
        let (channels, width) = (config.block_out_channels[0], config.time_embed_dim());
        let time_proj = TimeProjection::new(config, channels, vb.pp("time_proj"))?;
        let input = match time_proj {
            TimeProjection::Fourier(_) => 2 * channels,
            _ => channels,
        };
        let plain = TimestepEmbeddingConfig::default();
        let sizes = ClassEmbeddingSizes { time_channels: input, width, activation: plain.activation };
        Ok(Self {
            time_proj,
            time_embedding: TimestepEmbedding::new(input, width, plain, vb.pp("time_embedding"))?,
            class_embedding: match config.class_embed_type {
                Some(kind) => Some(ClassEmbedding::new(kind, sizes, vb.pp("class_embedding"))?),
                None => None,
            },
        })
    }

    /// `(batch, time_embed_dim)` in the dtype and on the device of `sample`; there is one timestep for each of its pictures.
    pub(super) fn forward(
        &self,
        sample: &Tensor,
        timesteps: &[f32],
        class_labels: Option<&Tensor>,
    ) -> Result<Tensor> {
        let project = |numbers: &[f32]| -> Result<Tensor> {
            Ok(self.time_proj.forward(numbers)?.to_device(sample.device())?.to_dtype(sample.dtype())?)
        };
        let emb = self.time_embedding.forward(&project(timesteps)?, None)?;
        let fail = |problem: &str| {
            Err(Error::Input { model: MODEL, input: "class_labels", problem: problem.into() })
        };
        match (&self.class_embedding, class_labels) {
            (None, None) => Ok(emb),
            (Some(embedding), Some(labels)) => Ok((emb + embedding.forward(labels, project, sample)?)?),
            (Some(_), None) => fail("are missing, but the model's config has class embeddings"),
            (None, Some(_)) => fail("are given, but the model's config has no class embeddings"),
        }
    }
}

impl Layers for TimeEmbeddings {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("time_embedding", &self.time_embedding);
        list.add("class_embedding", &self.class_embedding);
    }
}

impl TimeProjection {
    fn new(config: &UNet2DConfig, channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(match config.time_embedding_type {
            TimeEmbeddingType::Positional => Self::Positional(Timesteps {
                channels,
                flip_sin_to_cos: config.flip_sin_to_cos,
                downscale_freq_shift: config.freq_shift,
            }),
            TimeEmbeddingType::Fourier => Self::Fourier(to_floats(&vb.get(channels, "weight")?)?),
            TimeEmbeddingType::Learned(rows) => Self::Learned(Embedding::new(rows, channels, vb)?),
        })
    }

    /// `(timesteps.len(), width)`.
    fn forward(&self, timesteps: &[f32]) -> Result<Tensor> {
        match self {
            Self::Positional(sinusoids) => sinusoids.forward(timesteps),
            Self::Fourier(frequencies) => fourier(frequencies, timesteps),
            Self::Learned(table) => {
                let rows = table.count();
                let row = |timestep: &f32| {
                    let row = *timestep as u32;
                    if row as f32 == *timestep && (row as usize) < rows {
                        return Ok(row);
                    }
                    let problem =
                        format!("contain {timestep}, expected whole numbers from 0 to {}", rows - 1);
                    Err(Error::Input { model: MODEL, input: "timesteps", problem })
                };
                let rows = timesteps.iter().map(row).collect::<Result<Vec<u32>>>()?;
                table.forward(&Tensor::new(rows, table.weight().device())?)
            }
        }
    }
}

/// Gaussian Fourier features of the timesteps' logarithms (Tancik et al., 2020; diffusers' `GaussianFourierProjection`), in float32 as the
/// reference has it.
fn fourier(frequencies: &[f32], timesteps: &[f32]) -> Result<Tensor> {
    let mut values = Vec::with_capacity(2 * timesteps.len() * frequencies.len());
    for timestep in timesteps {
        let log = timestep.ln();
        let angles: Vec<f32> =
            frequencies.iter().map(|frequency| log * frequency * 2.0 * std::f32::consts::PI).collect();
        values.extend(angles.iter().map(|angle| angle.sin()));
        values.extend(angles.iter().map(|angle| angle.cos()));
    }
    Ok(Tensor::from_vec(values, (timesteps.len(), 2 * frequencies.len()), &Device::Cpu)?)
}
