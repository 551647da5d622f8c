//! Timestep, class and SDXL's sizes as the one vector that residual blocks see.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::config::{TextTimeEmbed, UNet2DConditionConfig};
use super::{TextTime, UNetConditions};
use crate::class_embedding::{ClassEmbedding, ClassEmbeddingSizes};
use crate::embeddings::{TimestepEmbedding, TimestepEmbeddingConfig, Timesteps, to_floats};
use crate::error::{Error, Result};
use crate::layers::{Activation, LayerList, Layers};

/// Everything that makes the time embedding.
#[derive(Clone, Debug)]
pub(super) struct TimeEmbeddings {
    /// The class of the model, for messages.
    model: &'static str,
    time_proj: Timesteps,
    time_embedding: TimestepEmbedding,
    class_embedding: Option<ClassEmbedding>,
    class_embeddings_concat: bool,
    added: Option<AddedEmbedding>,
    time_embed_act: Option<Activation>,
}

/// `add_time_proj` and `add_embedding` of SDXL.
#[derive(Clone, Debug)]
struct AddedEmbedding {
    model: &'static str,
    time_proj: Timesteps,
    embedding: TimestepEmbedding,
    input_dim: usize,
}

/// Width of the vector that residual blocks see.
pub(super) fn embedding_width(config: &UNet2DConditionConfig) -> usize {
    config.time_embed_dim() * if config.class_embeddings_concat { 2 } else { 1 }
}

impl TimeEmbeddings {
    pub(super) fn new(model: &'static str, config: &UNet2DConditionConfig, vb: &VarBuilder) -> Result<Self> {
        let width = config.time_embed_dim();
        let input = config.block_out_channels[0];
        let sinusoidal = |channels| Timesteps {
            channels,
            flip_sin_to_cos: config.flip_sin_to_cos,
            downscale_freq_shift: config.freq_shift,
        };
        let time_config = TimestepEmbeddingConfig {
            activation: config.act_fn,
            post_activation: config.timestep_post_act,
            cond_proj_dim: config.time_cond_proj_dim,
        };
        let class_sizes = ClassEmbeddingSizes { time_channels: input, width, activation: config.act_fn };
        let added = match config.addition_embed_type {
            Some(TextTimeEmbed { time_embed_dim, input_dim }) => {
                let plain = TimestepEmbeddingConfig::default();
                let embedding = TimestepEmbedding::new(input_dim, width, plain, vb.pp("add_embedding"))?;
                Some(AddedEmbedding { model, time_proj: sinusoidal(time_embed_dim), embedding, input_dim })
            }
            None => None,
        };
        Ok(Self {
            model,
            time_proj: sinusoidal(input),
            time_embedding: TimestepEmbedding::new(input, width, time_config, vb.pp("time_embedding"))?,
            class_embedding: match config.class_embed_type {
                Some(kind) => Some(ClassEmbedding::new(kind, class_sizes, vb.pp("class_embedding"))?),
                None => None,
            },
            class_embeddings_concat: config.class_embeddings_concat,
            added,
            time_embed_act: config.time_embedding_act_fn,
        })
    }

    /// `(batch, embedding_width)` in the dtype and on the device of `sample`.
    pub(super) fn forward(
        &self,
        sample: &Tensor,
        timesteps: &[f64],
        conditions: UNetConditions,
    ) -> Result<Tensor> {
        let batch = sample.dim(0)?;
        let mut values: Vec<f32> = timesteps.iter().map(|timestep| *timestep as f32).collect();
        if values.len() == 1 {
            values.resize(batch, values[0]);
        }
        let project = |numbers: &[f32]| -> Result<Tensor> {
            let sinusoids = self.time_proj.forward(numbers)?;
            Ok(sinusoids.to_device(sample.device())?.to_dtype(sample.dtype())?)
        };
        let mut emb = self.time_embedding.forward(&project(&values)?, conditions.timestep_cond)?;
        match (&self.class_embedding, conditions.class_labels) {
            (None, None) => {}
            (Some(embedding), Some(labels)) => {
                let class = embedding.forward(labels, project, sample)?;
                emb = if self.class_embeddings_concat {
                    Tensor::cat(&[emb, class], 1)?
                } else {
                    (emb + class)?
                };
            }
            (Some(_), None) => return missing(self.model, "class_labels", "class embeddings"),
            (None, Some(_)) => return superfluous(self.model, "class_labels", "class embeddings"),
        }
        match (&self.added, conditions.added) {
            (None, None) => {}
            (Some(added), Some(text_time)) => emb = (&emb + added.forward(text_time, &emb)?)?,
            (Some(_), None) => {
                return missing(self.model, "added_cond_kwargs", "`addition_embed_type` \"text_time\"");
            }
            (None, Some(_)) => return superfluous(self.model, "added_cond_kwargs", "`addition_embed_type`"),
        }
        match self.time_embed_act {
            Some(activation) => activation.forward(&emb),
            None => Ok(emb),
        }
    }
}

impl Layers for TimeEmbeddings {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("time_embedding", &self.time_embedding);
        list.add("class_embedding", &self.class_embedding);
        if let Some(added) = &self.added {
            list.add("add_embedding", &added.embedding);
        }
    }
}

impl AddedEmbedding {
    fn forward(&self, input: TextTime, emb: &Tensor) -> Result<Tensor> {
        let batch = emb.dim(0)?;
        let ids = self.time_proj.forward(&to_floats(input.time_ids)?)?;
        let ids = ids.reshape((batch, ids.elem_count() / batch.max(1)))?;
        let text = input.text_embeds.to_dtype(candle_core::DType::F32)?;
        let joined = Tensor::cat(&[text, ids.to_device(emb.device())?], 1)?;
        if joined.dim(1)? != self.input_dim {
            let problem = format!(
                "(text_embeds {:?}, time_ids {:?}) make {} values, expected {} \
                 (projection_class_embeddings_input_dim)",
                input.text_embeds.dims(),
                input.time_ids.dims(),
                joined.dim(1)?,
                self.input_dim
            );
            return Err(Error::Input { model: self.model, input: "added_cond_kwargs", problem });
        }
        self.embedding.forward(&joined.to_dtype(emb.dtype())?, None)
    }
}

fn missing<T>(model: &'static str, input: &'static str, feature: &str) -> Result<T> {
    let problem = format!("are missing, but the model's config has {feature}");
    Err(Error::Input { model, input, problem })
}

fn superfluous<T>(model: &'static str, input: &'static str, feature: &str) -> Result<T> {
    let problem = format!("are given, but the model's config has no {feature}");
    Err(Error::Input { model, input, problem })
}
