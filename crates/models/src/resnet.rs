//! The residual block that UNets and autoencoders are made of (`ResnetBlock2D` of diffusers' `models/resnet.py`).

use candle_core::Tensor;
use candle_diffusers_kernels::{add_per_channel, scale_shift_per_channel, upsample_nearest2d};
use candle_nn::VarBuilder;

use crate::config::ConfigReader;
use crate::error::{Error, Result};
use crate::layers::{Activation, Conv2d, GroupNorm, LayerList, Layers, Linear};

/// How the time embedding enters a [`ResnetBlock2D`]; the config field `resnet_time_scale_shift`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeScaleShift {
    /// `default`: added after the first convolution.
    Add,
    /// `scale_shift`: scales and shifts the second normalisation.
    ScaleShift,
}

impl TimeScaleShift {
    pub(crate) fn read(reader: &mut ConfigReader) -> Result<Self> {
        reader.choice("resnet_time_scale_shift", "default", "\"default\" or \"scale_shift\"", |word| {
            match word {
                "default" => Some(Self::Add),
                "scale_shift" => Some(Self::ScaleShift),
                _ => None,
            }
        })
    }
}

/// Whether a [`ResnetBlock2D`] changes the picture's size, on the skip as well, before its first convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResnetSampling {
    /// No.
    Keep,
    /// Halves it: means of two by two pixels.
    Halve,
    /// Doubles it: each pixel becomes four.
    Double,
}

/// What the [`ResnetBlock2D`]s of one model share.
#[derive(Clone, Copy, Debug)]
pub struct ResnetConfig {
    /// Width of the time embedding; `None` in autoencoders, which have none.
    pub temb_channels: Option<usize>,
    /// `norm_num_groups`.
    pub groups: usize,
    /// `norm_eps`.
    pub eps: f64,
    /// `act_fn`.
    pub activation: Activation,
    /// `resnet_time_scale_shift`.
    pub time_scale_shift: TimeScaleShift,
    /// `resnet_skip_time_act`: the time embedding is projected without an activation before.
    pub skip_time_act: bool,
    /// The sum of both branches is divided by this.
    pub output_scale_factor: f64,
}

/// `x + conv(act(norm(conv(act(norm(x))) + time)))`, with a 1x1 convolution on the skip where the channels change.
#[derive(Clone, Debug)]
pub struct ResnetBlock2D {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    config: ResnetConfig,
    sampling: ResnetSampling,
}

impl ResnetBlock2D {
    /// # Errors
    /// When a tensor is missing or wrongly shaped, or `groups` does not divide the channels.
    pub fn new(
        in_channels: usize,
        out_channels: usize,
        config: ResnetConfig,
        vb: VarBuilder,
    ) -> Result<Self> {
        Self::with_sampling(in_channels, out_channels, config, ResnetSampling::Keep, vb)
    }

    /// A block that may halve or double the picture.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped, or `groups` does not divide the channels.
    pub fn with_sampling(
        in_channels: usize,
        out_channels: usize,
        config: ResnetConfig,
        sampling: ResnetSampling,
        vb: VarBuilder,
    ) -> Result<Self> {
        let norm1 = GroupNorm::new(config.groups, in_channels, config.eps, vb.pp("norm1"))?;
        let conv1 = Conv2d::same_size(in_channels, out_channels, 3, vb.pp("conv1"))?;
        let projected = match config.time_scale_shift {
            TimeScaleShift::Add => out_channels,
            TimeScaleShift::ScaleShift => 2 * out_channels,
        };
        let time_emb_proj = match config.temb_channels {
            Some(channels) => Some(Linear::new(channels, projected, vb.pp("time_emb_proj"))?),
            None => None,
        };
        let norm2 = GroupNorm::new(config.groups, out_channels, config.eps, vb.pp("norm2"))?;
        let conv2 = Conv2d::same_size(out_channels, out_channels, 3, vb.pp("conv2"))?;
        let conv_shortcut = if in_channels == out_channels {
            None
        } else {
            Some(Conv2d::same_size(in_channels, out_channels, 1, vb.pp("conv_shortcut"))?)
        };
        Ok(Self { norm1, conv1, time_emb_proj, norm2, conv2, conv_shortcut, config, sampling })
    }

    /// `(batch, in_channels, height, width)` to `(batch, out_channels, height, width)`, or half or twice the height and width; `temb` is `(batch, temb_channels)`.
    /// Takes the tensor, so that its memory is free as soon as it can be.
    ///
    /// # Errors
    /// When shapes do not fit, or `temb` is given to a block without one or the other way round.
    pub fn forward(&self, x: Tensor, temb: Option<&Tensor>) -> Result<Tensor> {
        let time = self.project_time(temb)?;
        let hidden = match self.sampling {
            ResnetSampling::Keep => self.filter(&self.conv1, &self.norm1, &x, None, None)?,
            sampling => self.conv1.forward(&sampling.apply(self.normalize(&self.norm1, &x)?)?)?,
        };
        let x = self.sampling.apply(x)?;
        let skip = match &self.conv_shortcut {
            Some(conv) => conv.forward(&x)?,
            None => x.clone(),
        };
        drop(x);
        let sum = match (time, self.config.time_scale_shift) {
            (Some(time), TimeScaleShift::ScaleShift) => {
                let parts = time.chunk(2, 1)?;
                let normed = scale_shift_per_channel(&self.norm2.forward(&hidden)?, &parts[0], &parts[1])?;
                self.conv2.forward_add(&self.config.activation.forward(&normed)?, &skip)?
            }
            (time, _) => self.filter(&self.conv2, &self.norm2, &hidden, time.as_ref(), Some(&skip))?,
        };
        if self.config.output_scale_factor == 1.0 {
            return Ok(sum);
        }
        Ok((sum / self.config.output_scale_factor)?)
    }

    /// `conv(act(norm(x + time))) + addend`.
    fn filter(
        &self,
        conv: &Conv2d,
        norm: &GroupNorm,
        x: &Tensor,
        time: Option<&Tensor>,
        addend: Option<&Tensor>,
    ) -> Result<Tensor> {
        if self.config.activation == Activation::Silu {
            return conv.forward_normed(x, norm, time, addend);
        }
        let normed = match time {
            Some(time) => self.normalize(norm, &add_per_channel(x, time)?)?,
            None => self.normalize(norm, x)?,
        };
        match addend {
            Some(addend) => conv.forward_add(&normed, addend),
            None => conv.forward(&normed),
        }
    }

    fn normalize(&self, norm: &GroupNorm, x: &Tensor) -> Result<Tensor> {
        match self.config.activation {
            Activation::Silu => norm.forward_silu(x),
            activation => activation.forward(&norm.forward(x)?),
        }
    }

    /// The time embedding as `(batch, channels)`.
    fn project_time(&self, temb: Option<&Tensor>) -> Result<Option<Tensor>> {
        match (&self.time_emb_proj, temb) {
            (None, None) => Ok(None),
            (Some(projection), Some(temb)) => {
                let active = if self.config.skip_time_act {
                    temb.clone()
                } else {
                    self.config.activation.forward(temb)?
                };
                Ok(Some(projection.forward(&active)?))
            }
            (projection, _) => {
                let problem =
                    if projection.is_some() { "is missing" } else { "is given to a block without one" };
                Err(Error::Input { model: "ResnetBlock2D", input: "temb", problem: problem.into() })
            }
        }
    }
}

impl ResnetSampling {
    fn apply(self, x: Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Keep => x,
            Self::Halve => x.avg_pool2d(2)?,
            Self::Double => upsample_nearest2d(&x)?,
        })
    }
}

impl Layers for ResnetBlock2D {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("norm1", &self.norm1);
        list.add("conv1", &self.conv1);
        list.add("time_emb_proj", &self.time_emb_proj);
        list.add("norm2", &self.norm2);
        list.add("conv2", &self.conv2);
        list.add("conv_shortcut", &self.conv_shortcut);
    }
}
