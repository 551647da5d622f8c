//! The UNet that predicts noise from a picture and a text (diffusers' `models/unets/unet_2d_condition.py`).

pub mod blocks;
mod config;
mod encoder;
mod time;

use candle_core::Tensor;
use candle_diffusers_kernels::add;
use candle_nn::VarBuilder;

pub use config::{BlockType, TextTimeEmbed, UNet2DConditionConfig};

use crate::error::{Error, Result};
use crate::layers::{Activation, Conv2d, GroupNorm, LayerList, Layers};
use crate::text_cache::TextCache;
use crate::transformer_2d::Context;
use blocks::{UpBlock, Upsampling};
use encoder::block_config;
pub(crate) use encoder::{Encoded, Encoder};

const MODEL: &str = "UNet2DConditionModel";

/// What a UNet may be told besides picture, timestep and text.
#[derive(Clone, Copy, Debug, Default)]
pub struct UNetConditions<'a> {
    /// For a model with class embeddings: `(batch)` of indices or timesteps, or `(batch, dim)` of vectors.
    pub class_labels: Option<&'a Tensor>,
    /// For a model with `time_cond_proj_dim`: `(batch, time_cond_proj_dim)`, the embedded guidance scale.
    pub timestep_cond: Option<&'a Tensor>,
    /// For SDXL's `text_time`.
    pub added: Option<TextTime<'a>>,
    /// `(batch, text_tokens)`, 1 for tokens to look at and 0 for those to leave out.
    pub encoder_attention_mask: Option<&'a Tensor>,
    /// What ControlNets add.
    pub control: Option<ControlResiduals<'a>>,
    /// Where the text's keys and values are kept for the next call with the same text.
    pub text_cache: Option<&'a TextCache>,
    /// For training: less memory for more time, see [`gradient_checkpointing`](crate::gradient_checkpointing).
    pub gradient_checkpointing: bool,
}

impl<'a> UNetConditions<'a> {
    fn context(self, encoder_hidden_states: &'a Tensor, mask: Option<&'a Tensor>) -> Context<'a> {
        let (cache, gradient_checkpointing) = (self.text_cache, self.gradient_checkpointing);
        Context { encoder_hidden_states, mask, cache, gradient_checkpointing }
    }
}

/// `added_cond_kwargs` of SDXL.
#[derive(Clone, Copy, Debug)]
pub struct TextTime<'a> {
    /// Pooled text embeddings, `(batch, projection_dim)`.
    pub text_embeds: &'a Tensor,
    /// Sizes, crops and perhaps a score, `(batch, count)`.
    pub time_ids: &'a Tensor,
}

/// What ControlNets add to a UNet's skip connections and to its middle.
#[derive(Clone, Copy, Debug)]
pub struct ControlResiduals<'a> {
    /// One for each skip connection, in the order in which they arise, `(batch, channels, height, width)` or for all pixels `(batch, channels,
    /// 1, 1)`.
    pub down_block: &'a [Tensor],
    /// For the middle block's result.
    pub mid_block: &'a Tensor,
}

/// The UNet of Stable Diffusion 1.x, 2.x, SDXL and its refiner, and their inpainting and InstructPix2Pix forms.
#[derive(Clone, Debug)]
pub struct UNet2DConditionModel {
    config: UNet2DConditionConfig,
    encoder: Encoder,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl UNet2DConditionModel {
    /// Builds the model from tensors whose names are diffusers' state-dict keys.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped, or a list of the config has not one entry a block.
    pub fn new(config: &UNet2DConditionConfig, vb: VarBuilder) -> Result<Self> {
        let encoder = Encoder::new(MODEL, config, &vb)?;
        let channels = &config.block_out_channels;
        let last = channels.len() - 1;
        let up_block = |i: usize| {
            // Blocks on the way up mirror those on the way down.
            let mirrored = last - i;
            let prev_channels = channels[(mirrored + 1).min(last)];
            let skip_channels = channels[mirrored.saturating_sub(1)];
            let upsampling = if i == last { Upsampling::Keep } else { Upsampling::Double };
            let layers = config.layers_per_block[mirrored] + 1;
            let block = block_config(config, mirrored, config.up_block_types[i], layers);
            UpBlock::new(prev_channels, skip_channels, block, upsampling, vb.pp("up_blocks").pp(i))
        };
        Ok(Self {
            encoder,
            up_blocks: (0..=last).map(up_block).collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::new(
                config.norm_num_groups,
                channels[0],
                config.norm_eps,
                vb.pp("conv_norm_out"),
            )?,
            conv_out: Conv2d::same_size(
                channels[0],
                config.out_channels,
                config.conv_out_kernel,
                vb.pp("conv_out"),
            )?,
            config: config.clone(),
        })
    }

    /// The config that the model was built from.
    pub fn config(&self) -> &UNet2DConditionConfig {
        &self.config
    }

    /// Predicts noise (or whatever the model was trained to predict).
    ///
    /// `sample` is `(batch, in_channels, height, width)`; `timesteps` has one value for all or one for each of the batch;
    /// `encoder_hidden_states` is `(batch, text_tokens, cross_attention_dim)`. The result is `(batch, out_channels, height, width)`.
    ///
    /// # Errors
    /// When shapes do not fit, or a condition is missing that the config asks for, or given that it has no place for.
    pub fn forward(
        &self,
        sample: &Tensor,
        timesteps: &[f64],
        encoder_hidden_states: &Tensor,
        conditions: UNetConditions,
    ) -> Result<Tensor> {
        self.encoder.check_inputs(sample, timesteps, encoder_hidden_states)?;
        let sample = if self.config.center_input_sample { sample.affine(2.0, -1.0)? } else { sample.clone() };
        let Encoded { mut sample, mut res_samples, emb, mask } =
            self.encoder.forward(&sample, timesteps, encoder_hidden_states, conditions, None)?;
        if let Some(control) = conditions.control {
            sample = add_control(control, sample, &mut res_samples)?;
        }
        let context = conditions.context(encoder_hidden_states, mask.as_ref());
        for block in &self.up_blocks {
            sample = block.forward(sample, &emb, context, &mut res_samples)?;
        }
        let active = match self.config.act_fn {
            Activation::Silu => self.conv_norm_out.forward_silu(&sample)?,
            activation => activation.forward(&self.conv_norm_out.forward(&sample)?)?,
        };
        self.conv_out.forward(&active)
    }
}

impl Layers for UNet2DConditionModel {
    fn list_layers(&self, list: &mut LayerList) {
        self.encoder.list_layers(list);
        list.add_each("up_blocks", &self.up_blocks);
        list.add("conv_out", &self.conv_out);
    }
}

/// A mask of ones and zeros `(batch, tokens)` as something to add to scores, `(batch, 1, 1, tokens)`.
fn attention_bias(mask: &Tensor) -> Result<Tensor> {
    let mask = mask.to_dtype(candle_core::DType::F32)?;
    Ok(mask.affine(10000.0, -10000.0)?.unsqueeze(1)?.unsqueeze(1)?)
}

/// Adds a ControlNet's residuals to the skip connections, and to the middle block's result, which is returned.
fn add_control(control: ControlResiduals, sample: Tensor, res_samples: &mut [Tensor]) -> Result<Tensor> {
    let (found, expected) = (control.down_block.len(), res_samples.len());
    if found != expected {
        let problem = format!("are {found}, expected {expected}: is this ControlNet another model's?");
        return Err(Error::Input { model: MODEL, input: "down_block_additional_residuals", problem });
    }
    for (res_sample, residual) in res_samples.iter_mut().zip(control.down_block) {
        *res_sample = add_residual(res_sample, residual)?;
    }
    add_residual(&sample, control.mid_block)
}

/// The sum with a residual of the same shape, or of one that is the same for all pixels.
fn add_residual(sample: &Tensor, residual: &Tensor) -> Result<Tensor> {
    if residual.dims() == sample.dims() {
        Ok(add(sample, residual)?)
    } else {
        Ok(sample.broadcast_add(residual)?)
    }
}
