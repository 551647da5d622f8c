//! The UNet of unconditional and class-conditional diffusion (diffusers' `models/unets/unet_2d.py`; Ho et al., 2020).

mod blocks;
mod config;
mod time;

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;

use blocks::{BlockConfig, DownBlock, MidBlock, UpBlock};
pub use config::{BlockType2D, SampleType, TimeEmbeddingType, UNet2DConfig};
use time::TimeEmbeddings;

use crate::error::{Error, Result};
use crate::layers::{Conv2d, GroupNorm, LayerList, Layers};
use crate::pixel_attention::PixelAttentionConfig;
use crate::resnet::{ResnetConfig, TimeScaleShift};

const MODEL: &str = "UNet2DModel";

/// Predicts noise in a picture, from the picture, the timestep, and perhaps a class.
#[derive(Clone, Debug)]
pub struct UNet2DModel {
    config: UNet2DConfig,
    conv_in: Conv2d,
    time: TimeEmbeddings,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl UNet2DModel {
    /// Builds the model from tensors whose names are diffusers' state-dict keys.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped, or sizes of the config do not fit each other.
    pub fn new(config: &UNet2DConfig, vb: VarBuilder) -> Result<Self> {
        config.check_fields()?;
        let channels = &config.block_out_channels;
        let last = channels.len() - 1;
        let down_block = |i: usize| {
            let block =
                block_config(config, i, config.down_block_types[i], config.downsample_type, i == last);
            let (in_channels, layers) = (channels[i.saturating_sub(1)], config.layers_per_block);
            DownBlock::new(in_channels, layers, config.downsample_padding, block, vb.pp("down_blocks").pp(i))
        };
        let up_block = |i: usize| {
            // Blocks on the way up mirror those on the way down.
            let mirrored = last - i;
            let block =
                block_config(config, mirrored, config.up_block_types[i], config.upsample_type, i == last);
            let prev_channels = channels[(mirrored + 1).min(last)];
            let skip_channels = channels[mirrored.saturating_sub(1)];
            let layers = config.layers_per_block + 1;
            UpBlock::new(prev_channels, skip_channels, layers, block, vb.pp("up_blocks").pp(i))
        };
        let mid_block = match config.has_mid_block {
            true => Some(MidBlock::new(mid_block_config(config, channels[last]), vb.pp("mid_block"))?),
            false => None,
        };
        let (groups, eps) = (config.norm_num_groups, config.norm_eps);
        Ok(Self {
            conv_in: Conv2d::same_size(config.in_channels, channels[0], 3, vb.pp("conv_in"))?,
            time: TimeEmbeddings::new(config, &vb)?,
            down_blocks: (0..=last).map(down_block).collect::<Result<_>>()?,
            mid_block,
            up_blocks: (0..=last).map(up_block).collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::new(groups, channels[0], eps, vb.pp("conv_norm_out"))?,
            conv_out: Conv2d::same_size(channels[0], config.out_channels, 3, vb.pp("conv_out"))?,
            config: config.clone(),
        })
    }

    /// The config that the model was built from.
    pub fn config(&self) -> &UNet2DConfig {
        &self.config
    }

    /// Where its weights are.
    pub fn device(&self) -> Device {
        self.conv_in.layer().device()
    }

    /// Predicts noise (or whatever the model was trained to predict).
    ///
    /// `sample` is `(batch, in_channels, height, width)`, sides multiples of [`UNet2DConfig::side_multiple`]; `timesteps` has one value for all
    /// or one for each of the batch. `class_labels` are `(batch)`: rows of a table, or numbers that are embedded as timesteps are; where
    /// `class_embed_type` is `identity`, vectors `(batch, time_embed_dim)`. The result is `(batch, out_channels, height, width)`.
    ///
    /// # Errors
    /// When shapes do not fit, or labels are missing that the config asks for, or given that it has no place for.
    pub fn forward(
        &self,
        sample: &Tensor,
        timesteps: &[f64],
        class_labels: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.check_inputs(sample, timesteps, class_labels)?;
        let batch = sample.dim(0)?;
        let mut numbers: Vec<f32> = timesteps.iter().map(|timestep| *timestep as f32).collect();
        if numbers.len() == 1 {
            numbers.resize(batch, numbers[0]);
        }
        let sample = if self.config.center_input_sample { sample.affine(2.0, -1.0)? } else { sample.clone() };
        let emb = self.time.forward(&sample, &numbers, class_labels)?;

        let mut sample = self.conv_in.forward(&sample)?;
        let mut res_samples = vec![sample.clone()];
        for block in &self.down_blocks {
            sample = block.forward(sample, &emb, &mut res_samples)?;
        }
        if let Some(block) = &self.mid_block {
            sample = block.forward(&sample, &emb)?;
        }
        for block in &self.up_blocks {
            sample = block.forward(sample, &emb, &mut res_samples)?;
        }
        // Silu whatever the config's act_fn, as in diffusers.
        let output = self.conv_out.forward_normed(&sample, &self.conv_norm_out, None, None)?;
        if self.config.time_embedding_type != TimeEmbeddingType::Fourier {
            return Ok(output);
        }
        let divisors = Tensor::from_vec(numbers, (batch, 1, 1, 1), output.device())?;
        Ok(output.broadcast_div(&divisors.to_dtype(output.dtype())?)?)
    }

    fn check_inputs(&self, sample: &Tensor, timesteps: &[f64], labels: Option<&Tensor>) -> Result<()> {
        let fail = |input, problem| Err(Error::Input { model: MODEL, input, problem });
        let (channels, multiple) = (self.config.in_channels, self.config.side_multiple());
        let batch = match *sample.dims() {
            [batch, found, height, width]
                if batch > 0
                    && found == channels
                    && height.min(width) > 0
                    && height.is_multiple_of(multiple)
                    && width.is_multiple_of(multiple) =>
            {
                batch
            }
            ref dims => {
                let problem = format!(
                    "is {dims:?}, expected (batch, {channels}, height, width) with sides that are multiples of {multiple}"
                );
                return fail("sample", problem);
            }
        };
        if timesteps.len() != 1 && timesteps.len() != batch {
            let problem = format!("are {}, expected 1 or {batch} (one a picture)", timesteps.len());
            return fail("timesteps", problem);
        }
        match labels {
            Some(labels) if labels.dims().first() != Some(&batch) => fail(
                "class_labels",
                format!("are {:?}, expected ({batch}, ...), one a picture", labels.dims()),
            ),
            _ => Ok(()),
        }
    }
}

impl Layers for UNet2DModel {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("conv_in", &self.conv_in);
        self.time.list_layers(list);
        list.add_each("down_blocks", &self.down_blocks);
        list.add("mid_block", &self.mid_block);
        list.add_each("up_blocks", &self.up_blocks);
        list.add("conv_out", &self.conv_out);
    }
}

/// The sizes of block `i`, counted on the way down. The last block of either way keeps the picture's size.
fn block_config(
    config: &UNet2DConfig,
    i: usize,
    kind: BlockType2D,
    with_attention: SampleType,
    is_last: bool,
) -> BlockConfig {
    let channels = config.block_out_channels[i];
    let resnet = resnet_config(config, 1.0);
    let (has_attention, sampling) = match kind {
        BlockType2D::Plain => (false, SampleType::Conv),
        BlockType2D::Attention => (true, with_attention),
        BlockType2D::Resnet => (false, SampleType::Resnet),
    };
    let attention = attention_config(config, channels, Some(config.norm_num_groups), 1.0);
    BlockConfig {
        out_channels: channels,
        resnet,
        attention: has_attention.then_some(attention),
        sampling: (!is_last).then_some(sampling),
    }
}

fn mid_block_config(config: &UNet2DConfig, channels: usize) -> BlockConfig {
    let factor = config.mid_block_scale_factor;
    let groups = match config.resnet_time_scale_shift {
        TimeScaleShift::Add => Some(config.norm_num_groups),
        TimeScaleShift::ScaleShift => None,
    };
    let attention = attention_config(config, channels, config.attn_norm_num_groups.or(groups), factor);
    BlockConfig {
        out_channels: channels,
        resnet: resnet_config(config, factor),
        attention: config.add_attention.then_some(attention),
        sampling: None,
    }
}

fn resnet_config(config: &UNet2DConfig, output_scale_factor: f64) -> ResnetConfig {
    ResnetConfig {
        temb_channels: Some(config.time_embed_dim()),
        groups: config.norm_num_groups,
        eps: config.norm_eps,
        activation: config.act_fn,
        time_scale_shift: config.resnet_time_scale_shift,
        skip_time_act: false,
        output_scale_factor,
    }
}

fn attention_config(
    config: &UNet2DConfig,
    channels: usize,
    groups: Option<usize>,
    output_scale_factor: f64,
) -> PixelAttentionConfig {
    PixelAttentionConfig {
        channels,
        head_dim: config.attention_head_dim.unwrap_or(channels),
        groups,
        eps: config.norm_eps,
        output_scale_factor,
    }
}
