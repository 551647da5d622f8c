//! What a UNet does on its way down: all that a ControlNet has of one.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::blocks::{BlockConfig, DownBlock, MidBlock};
use super::config::{BlockType, UNet2DConditionConfig};
use super::time::{TimeEmbeddings, embedding_width};
use super::{UNetConditions, attention_bias};
use crate::error::{Error, Result};
use crate::layers::{Conv2d, LayerList, Layers};
use crate::resnet::ResnetConfig;
use crate::transformer_2d::Transformer2DConfig;

/// The first convolution, the time embedding, the blocks on the way down and the middle one.
#[derive(Clone, Debug)]
pub(crate) struct Encoder {
    /// The class of the model, for messages.
    model: &'static str,
    in_channels: usize,
    text_width: usize,
    conv_in: Conv2d,
    time: TimeEmbeddings,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
}

/// What the way down leaves.
pub(crate) struct Encoded {
    /// The middle block's result.
    pub(crate) sample: Tensor,
    /// For the skip connections, in the order in which they arise.
    pub(crate) res_samples: Vec<Tensor>,
    /// Timestep, class and sizes as the residual blocks see them, `(batch, embedding_width)`.
    pub(crate) emb: Tensor,
    /// Added to the scores of cross-attention.
    pub(crate) mask: Option<Tensor>,
}

impl Encoder {
    /// The half of `model` that its config describes; the config's lists are checked.
    pub(crate) fn new(model: &'static str, config: &UNet2DConditionConfig, vb: &VarBuilder) -> Result<Self> {
        config.check_lists(model)?;
        let channels = &config.block_out_channels;
        let last = channels.len() - 1;
        let down_block = |i: usize| {
            let in_channels = channels[i.saturating_sub(1)];
            let padding = (i != last).then_some(config.downsample_padding);
            let block = block_config(config, i, config.down_block_types[i], config.layers_per_block[i]);
            DownBlock::new(in_channels, block, padding, vb.pp("down_blocks").pp(i))
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
            model,
            in_channels: config.in_channels,
            text_width: config.cross_attention_dim[0],
            conv_in: Conv2d::same_size(
                config.in_channels,
                channels[0],
                config.conv_in_kernel,
                vb.pp("conv_in"),
            )?,
            time: TimeEmbeddings::new(model, config, vb)?,
            down_blocks: (0..=last).map(down_block).collect::<Result<_>>()?,
            mid_block,
        })
    }

    /// The way down of `sample` `(batch, in_channels, height, width)`. To the first convolution's result `condition` is added, `(batch,
    /// block_out_channels[0], height, width)`.
    pub(crate) fn forward(
        &self,
        sample: &Tensor,
        timesteps: &[f64],
        encoder_hidden_states: &Tensor,
        conditions: UNetConditions,
        condition: Option<&Tensor>,
    ) -> Result<Encoded> {
        let emb = self.time.forward(sample, timesteps, conditions)?;
        let mask = conditions.encoder_attention_mask.map(attention_bias).transpose()?;
        let context = conditions.context(encoder_hidden_states, mask.as_ref());
        let mut sample = match condition {
            Some(condition) => self.conv_in.forward_add(sample, condition)?,
            None => self.conv_in.forward(sample)?,
        };
        let mut res_samples = vec![sample.clone()];
        for block in &self.down_blocks {
            sample = block.forward(sample, &emb, context, &mut res_samples)?;
        }
        if let Some(block) = &self.mid_block {
            sample = block.forward(&sample, &emb, context)?;
        }
        Ok(Encoded { sample, res_samples, emb, mask })
    }

    /// Whether the inputs fit each other and the model.
    pub(crate) fn check_inputs(&self, sample: &Tensor, timesteps: &[f64], text: &Tensor) -> Result<()> {
        let fail = |input, problem| Err(Error::Input { model: self.model, input, problem });
        let channels = self.in_channels;
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
        let width = self.text_width;
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

impl Layers for Encoder {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("conv_in", &self.conv_in);
        self.time.list_layers(list);
        list.add_each("down_blocks", &self.down_blocks);
        list.add("mid_block", &self.mid_block);
    }
}

/// The sizes of block `i`, counted on the way down.
pub(super) fn block_config(
    config: &UNet2DConditionConfig,
    i: usize,
    kind: BlockType,
    layers: usize,
) -> BlockConfig {
    let channels = config.block_out_channels[i];
    let heads = config.num_attention_heads[i];
    BlockConfig {
        kind,
        layers,
        out_channels: channels,
        resnet: ResnetConfig {
            temb_channels: Some(embedding_width(config)),
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
