//! Class labels as a vector that is added to the time embedding.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::embeddings::{TimestepEmbedding, TimestepEmbeddingConfig, to_floats};
use crate::error::Result;
use crate::layers::{Activation, Embedding, LayerList, Layers, Linear};

/// Where class labels enter (`class_embed_type` and `num_class_embeds`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassEmbedType {
    /// A table of this many vectors; labels are indices.
    Table(usize),
    /// Labels are embedded as timesteps are.
    Timestep,
    /// Labels are vectors that are added as they are.
    Identity,
    /// Labels are vectors of this width, through two linear layers.
    Projection(usize),
    /// Labels are vectors of this width, through one linear layer.
    SimpleProjection(usize),
}

/// What a [`ClassEmbedding`] needs to know of the model around it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClassEmbeddingSizes {
    /// Width of a timestep before its two linear layers.
    pub(crate) time_channels: usize,
    /// Of the result.
    pub(crate) width: usize,
    /// Between the linear layers of labels that are embedded as timesteps are.
    pub(crate) activation: Activation,
}

/// `class_embedding` in its forms.
#[derive(Clone, Debug)]
pub(crate) enum ClassEmbedding {
    Table(Embedding),
    Timestep(TimestepEmbedding),
    Identity,
    Projection(TimestepEmbedding),
    SimpleProjection(Linear),
}

impl ClassEmbedding {
    pub(crate) fn new(kind: ClassEmbedType, sizes: ClassEmbeddingSizes, vb: VarBuilder) -> Result<Self> {
        let ClassEmbeddingSizes { time_channels, width, activation } = sizes;
        let plain = TimestepEmbeddingConfig::default();
        Ok(match kind {
            ClassEmbedType::Table(count) => Self::Table(Embedding::new(count, width, vb)?),
            ClassEmbedType::Timestep => {
                let with_act_fn = TimestepEmbeddingConfig { activation, ..plain };
                Self::Timestep(TimestepEmbedding::new(time_channels, width, with_act_fn, vb)?)
            }
            ClassEmbedType::Identity => Self::Identity,
            ClassEmbedType::Projection(dim) => {
                Self::Projection(TimestepEmbedding::new(dim, width, plain, vb)?)
            }
            ClassEmbedType::SimpleProjection(dim) => Self::SimpleProjection(Linear::new(dim, width, vb)?),
        })
    }

    /// `(batch, width)` in the dtype of `sample`. `project_time` makes of numbers what the model makes of timesteps before their linear layers.
    pub(crate) fn forward(
        &self,
        labels: &Tensor,
        project_time: impl Fn(&[f32]) -> Result<Tensor>,
        sample: &Tensor,
    ) -> Result<Tensor> {
        let vectors = || labels.to_dtype(sample.dtype());
        match self {
            Self::Table(table) => table.forward(labels),
            Self::Timestep(embedding) => embedding.forward(&project_time(&to_floats(labels)?)?, None),
            Self::Identity => Ok(vectors()?),
            Self::Projection(embedding) => embedding.forward(&vectors()?, None),
            Self::SimpleProjection(linear) => linear.forward(&vectors()?),
        }
    }
}

impl Layers for ClassEmbedding {
    fn list_layers(&self, list: &mut LayerList) {
        match self {
            Self::Timestep(embedding) | Self::Projection(embedding) => embedding.list_layers(list),
            Self::SimpleProjection(linear) => linear.list_layers(list),
            Self::Table(_) | Self::Identity => {}
        }
    }
}
