//! The UNet that predicts noise from a picture and a text (diffusers' `models/unets/unet_2d_condition.py`).

pub mod blocks;
mod config;
mod time;

use candle_core::Tensor;
use candle_diffusers_kernels::add;
use candle_nn::VarBuilder;

pub use config::{BlockType, TextTimeEmbed, UNet2DConditionConfig};

use crate::error::{Error, Result};
use crate::layers::{Activation, Conv2d, GroupNorm, LayerList, Layers};
use crate::resnet::ResnetConfig;
use crate::text_cache::TextCache;
use crate::transformer_2d::{Context, Transformer2DConfig};
use blocks::{BlockConfig, DownBlock, MidBlock, UpBlock, Upsampling};
use time::TimeEmbeddings;

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
    /// One for each skip connection, in the order in which they arise.
    pub down_block: &'a [Tensor],
    /// For the middle block's result.
    pub mid_block: &'a Tensor,
}

/// The UNet of Stable Diffusion 1.x, 2.x, SDXL and its refiner, and their inpainting and InstructPix2Pix forms.
#[derive(Clone, Debug)]
pub struct UNet2DConditionModel {
    config: UNet2DConditionConfig,
    conv_in: Conv2d,
    time: TimeEmbeddings,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
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
        config.check_lists()?;
        let channels = &config.block_out_channels;
        let last = channels.len() - 1;
        let down_block = |i: usize| {
            let in_channels = channels[i.saturating_sub(1)];
            let padding = (i != last).then_some(config.downsample_padding);
            let block = block_config(config, i, config.down_block_types[i], config.layers_per_block[i]);
            DownBlock::new(in_channels, block, padding, vb.pp("down_blocks").pp(i))
        };
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
        let mid_block = match config.mid_block_type {
            Some(kind) => {
                let mut block = block_config(config, last, kind, 1);
                block.resnet.output_scale_factor = config.mid_block_scale_factor;
                // The reference does not pass this one on to the middle block.
                block.transformer.only_cross_attention = false;
                Some(MidBlock::new(block, vb.pp("mid_block"))?)
            }
            None => None,
        };
        Ok(Self {
            conv_in: Conv2d::same_size(
                config.in_channels,
                channels[0],
                config.conv_in_kernel,
                vb.pp("conv_in"),
            )?,
            time: TimeEmbeddings::new(config, &vb)?,
            down_blocks: (0..=last).map(down_block).collect::<Result<_>>()?,
            mid_block,
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
        self.check_inputs(sample, timesteps, encoder_hidden_states)?;
        let sample = if self.config.center_input_sample { sample.affine(2.0, -1.0)? } else { sample.clone() };
        let emb = self.time.forward(&sample, timesteps, conditions)?;
        let mask = conditions.encoder_attention_mask.map(attention_bias).transpose()?;
        let context = Context { encoder_hidden_states, mask: mask.as_ref(), cache: conditions.text_cache };

        let mut sample = self.conv_in.forward(&sample)?;
        let mut res_samples = vec![sample.clone()];
        for block in &self.down_blocks {
            sample = block.forward(sample, &emb, context, &mut res_samples)?;
        }
        if let Some(block) = &self.mid_block {
            sample = block.forward(&sample, &emb, context)?;
        }
        if let Some(control) = conditions.control {
            sample = add_control(control, sample, &mut res_samples)?;
        }
        for block in &self.up_blocks {
            sample = block.forward(sample, &emb, context, &mut res_samples)?;
        }
        let active = match self.config.act_fn {
            Activation::Silu => self.conv_norm_out.forward_silu(&sample)?,
            activation => activation.forward(&self.conv_norm_out.forward(&sample)?)?,
        };
        self.conv_out.forward(&active)
    }

    fn check_inputs(&self, sample: &Tensor, timesteps: &[f64], text: &Tensor) -> Result<()> {
        let fail = |input, problem| Err(Error::Input { model: MODEL, input, problem });
        let channels = self.config.in_channels;
        let dims = sample.dims();
        if dims.len() != 4 || dims[1] != channels || dims.contains(&0) {
            return fail("sample", format!("is {dims:?}, expected (batch, {channels}, height, width)"));
        }
        let batch = dims[0];
        if timesteps.len() != 1 && timesteps.len() != batch {
            return fail(
                "timesteps",
                format!("are {}, expected 1 or {batch} (one a picture)", timesteps.len()),
            );
        }
        let width = self.config.cross_attention_dim[0];
        let text = text.dims();
        if text.len() != 3 || text[0] != batch || text[2] != width || text[1] == 0 {
            let problem = format!(
                "is {text:?}, expected ({batch}, tokens, {width}): is this text encoder another model's?"
            );
            return fail("encoder_hidden_states", problem);
        }
        Ok(())
    }
}

impl Layers for UNet2DConditionModel {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("conv_in", &self.conv_in);
        self.time.list_layers(list);
        list.add_each("down_blocks", &self.down_blocks);
        list.add("mid_block", &self.mid_block);
        list.add_each("up_blocks", &self.up_blocks);
        list.add("conv_out", &self.conv_out);
    }
}

/// The sizes of block `i`, counted on the way down.
fn block_config(config: &UNet2DConditionConfig, i: usize, kind: BlockType, layers: usize) -> BlockConfig {
    let channels = config.block_out_channels[i];
    let heads = config.num_attention_heads[i];
    BlockConfig {
        kind,
        layers,
        out_channels: channels,
        resnet: ResnetConfig {
            temb_channels: Some(time::embedding_width(config)),
            groups: config.norm_num_groups,
            eps: config.norm_eps,
            activation: config.act_fn,
            time_scale_shift: config.resnet_time_scale_shift,
            skip_time_act: false,
            output_scale_factor: 1.0,
        },
        transformer: Transformer2DConfig {
            in_channels: channels,
            heads,
            head_dim: channels / heads,
            layers: config.transformer_layers_per_block[i],
            cross_attention_dim: config.cross_attention_dim[i],
            norm_num_groups: config.norm_num_groups,
            use_linear_projection: config.use_linear_projection,
            only_cross_attention: config.only_cross_attention[i],
        },
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
        *res_sample = add(res_sample, residual)?;
    }
    Ok(add(&sample, control.mid_block)?)
}
