//! What steers a UNet by a picture of edges, poses or depths (diffusers' `models/controlnets/controlnet.py`; Zhang et al., 2023,
//! <https://arxiv.org/abs/2302.05543>).

mod conditioning;
mod config;

use candle_core::{D, Tensor};
use candle_diffusers_kernels::Conv2dParams;
use candle_nn::VarBuilder;

pub use config::ControlNetConfig;

use crate::error::{Error, Result};
use crate::layers::{Conv2d, LayerList, Layers};
use crate::unet_2d_condition::{ControlResiduals, Encoder, UNetConditions};
use conditioning::ConditioningEmbedding;

const MODEL: &str = "ControlNetModel";

/// A copy of a UNet's way down that looks at a control picture besides, and whose results are added to the UNet's.
#[derive(Clone, Debug)]
pub struct ControlNetModel {
    config: ControlNetConfig,
    encoder: Encoder,
    controlnet_cond_embedding: ConditioningEmbedding,
    controlnet_down_blocks: Vec<Conv2d>,
    controlnet_mid_block: Conv2d,
}

/// How strongly a [`ControlNetModel`] steers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ControlScale {
    /// What all residuals are multiplied by.
    pub conditioning_scale: f64,
    /// Residuals are weaker the further out they are, from a tenth to the whole, so that the control picture alone can say what is painted. A
    /// model with `global_pool_conditions` has no such weights.
    pub guess_mode: bool,
}

/// What a [`ControlNetModel`] adds to a UNet, its own.
#[derive(Clone, Debug)]
pub struct ControlNetOutput {
    /// One for each skip connection, in the order in which they arise: `(batch, channels, height, width)`, or `(batch, channels, 1, 1)`.
    pub down_block: Vec<Tensor>,
    /// For the middle block's result.
    pub mid_block: Tensor,
}

impl ControlNetModel {
    /// Builds the model from tensors whose names are diffusers' state-dict keys.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped, or a list of the config has not one entry a block.
    pub fn new(config: &ControlNetConfig, vb: VarBuilder) -> Result<Self> {
        let encoder = Encoder::new(MODEL, &config.unet, &vb)?;
        let zero_convolution = |channels: usize, vb: VarBuilder| {
            Conv2d::new(channels, channels, 1, Conv2dParams { stride: 1, padding: 0 }, vb)
        };
        let channels = skip_channels(config);
        let down_block = |(i, channels): (usize, &usize)| {
            zero_convolution(*channels, vb.pp("controlnet_down_blocks").pp(i))
        };
        let blocks = &config.unet.block_out_channels;
        Ok(Self {
            encoder,
            controlnet_cond_embedding: ConditioningEmbedding::new(
                config.conditioning_channels,
                &config.conditioning_embedding_out_channels,
                blocks[0],
                vb.pp("controlnet_cond_embedding"),
            )?,
            controlnet_down_blocks: channels.iter().enumerate().map(down_block).collect::<Result<_>>()?,
            controlnet_mid_block: zero_convolution(blocks[blocks.len() - 1], vb.pp("controlnet_mid_block"))?,
            config: config.clone(),
        })
    }

    /// The config that the model was built from.
    pub fn config(&self) -> &ControlNetConfig {
        &self.config
    }

    /// What [`forward`](Self::forward) takes of control pictures `(batch, conditioning_channels, height, width)` with values from 0 to 1:
    /// `(batch, block_out_channels[0], height / factor, width / factor)`. It is the same for all steps.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn embed_condition(&self, controlnet_cond: &Tensor) -> Result<Tensor> {
        let (dims, channels) = (controlnet_cond.dims(), self.config.conditioning_channels);
        if dims.len() != 4 || dims[1] != channels || dims.contains(&0) {
            let problem = format!("is {dims:?}, expected (batch, {channels}, height, width)");
            return Err(Error::Input { model: MODEL, input: "controlnet_cond", problem });
        }
        if self.config.is_bgr {
            return self.controlnet_cond_embedding.forward(&controlnet_cond.flip(&[1])?);
        }
        self.controlnet_cond_embedding.forward(controlnet_cond)
    }

    /// What is added to the UNet that is given the same `sample` `(batch, in_channels, height, width)`, timesteps (one for all or one for each of
    /// the batch), text `(batch, text_tokens, cross_attention_dim)` and conditions, but for their `control`.
    ///
    /// `condition` is of [`embed_condition`](Self::embed_condition), for each of the batch.
    ///
    /// # Errors
    /// When shapes do not fit, or a condition is missing that the config asks for, or given that it has no place for.
    pub fn forward(
        &self,
        sample: &Tensor,
        timesteps: &[f64],
        encoder_hidden_states: &Tensor,
        condition: &Tensor,
        scale: ControlScale,
        conditions: UNetConditions,
    ) -> Result<ControlNetOutput> {
        self.encoder.check_inputs(sample, timesteps, encoder_hidden_states)?;
        self.check_condition(sample, condition)?;
        let encoded =
            self.encoder.forward(sample, timesteps, encoder_hidden_states, conditions, Some(condition))?;
        let scales = self.scales(scale);
        let finish = |residual: Tensor, scale: f64| self.finish(residual, scale);
        let mut down_block = Vec::with_capacity(encoded.res_samples.len());
        let blocks = self.controlnet_down_blocks.iter().zip(encoded.res_samples);
        for ((block, res_sample), scale) in blocks.zip(&scales) {
            down_block.push(finish(block.forward(&res_sample)?, *scale)?);
        }
        let mid_block = self.controlnet_mid_block.forward(&encoded.sample)?;
        Ok(ControlNetOutput { down_block, mid_block: finish(mid_block, scales[scales.len() - 1])? })
    }

    /// One for each skip connection and one for the middle.
    fn scales(&self, scale: ControlScale) -> Vec<f64> {
        let last = self.controlnet_down_blocks.len();
        let weight = |i: usize| match scale.guess_mode && !self.config.global_pool_conditions {
            true => 10f64.powf(i as f64 / last as f64 - 1.0),
            false => 1.0,
        };
        (0..=last).map(|i| weight(i) * scale.conditioning_scale).collect()
    }

    fn finish(&self, residual: Tensor, scale: f64) -> Result<Tensor> {
        let scaled = if scale == 1.0 { residual } else { (residual * scale)? };
        if !self.config.global_pool_conditions {
            return Ok(scaled);
        }
        Ok(scaled.mean_keepdim(D::Minus1)?.mean_keepdim(D::Minus2)?)
    }

    fn check_condition(&self, sample: &Tensor, condition: &Tensor) -> Result<()> {
        let (batch, _, height, width) = sample.dims4()?;
        let expected = [batch, self.config.unet.block_out_channels[0], height, width];
        if condition.dims() == expected {
            return Ok(());
        }
        let problem = format!(
            "is embedded as {:?}, expected {expected:?}: the control picture has another size than what is painted",
            condition.dims()
        );
        Err(Error::Input { model: MODEL, input: "controlnet_cond", problem })
    }
}

impl ControlNetOutput {
    /// As a UNet takes it.
    pub fn residuals(&self) -> ControlResiduals<'_> {
        ControlResiduals { down_block: &self.down_block, mid_block: &self.mid_block }
    }
}

impl Layers for ControlNetModel {
    fn list_layers(&self, list: &mut LayerList) {
        self.encoder.list_layers(list);
        list.add("controlnet_cond_embedding", &self.controlnet_cond_embedding);
        list.add_each("controlnet_down_blocks", &self.controlnet_down_blocks);
        list.add("controlnet_mid_block", &self.controlnet_mid_block);
    }
}

/// Channels of each skip connection: of the first convolution, of each layer, and of what halves after all blocks but the last.
fn skip_channels(config: &ControlNetConfig) -> Vec<usize> {
    let blocks = &config.unet.block_out_channels;
    let mut channels = vec![blocks[0]];
    for (i, (block, layers)) in blocks.iter().zip(&config.unet.layers_per_block).enumerate() {
        let halving = usize::from(i + 1 < blocks.len());
        channels.extend(vec![*block; layers + halving]);
    }
    channels
}
