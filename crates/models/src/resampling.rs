//! Halving and doubling pictures between blocks (diffusers' `models/downsampling.py` and `upsampling.py`).

use candle_core::Tensor;
use candle_diffusers_kernels::{Conv2dParams, upsample_nearest2d_to};
use candle_nn::VarBuilder;

use crate::error::Result;
use crate::layers::{Conv2d, LayerList, Layers};

/// A convolution with stride 2.
#[derive(Clone, Debug)]
pub struct Downsample2D {
    conv: Conv2d,
    asymmetric: bool,
}

impl Downsample2D {
    /// `padding` zeros on each side, as in UNets (`downsample_padding`); 0 pads one row below and one column at the right, as in autoencoders.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(channels: usize, padding: usize, vb: VarBuilder) -> Result<Self> {
        let conv = Conv2d::new(channels, channels, 3, Conv2dParams { stride: 2, padding }, vb.pp("conv"))?;
        Ok(Self { conv, asymmetric: padding == 0 })
    }

    /// `(batch, channels, height, width)` to `(batch, channels, height / 2, width / 2)`, rounded up with padding 1 and
    /// down with padding 0.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.asymmetric {
            return self.conv.forward_padded_at_end(x);
        }
        self.conv.forward(x)
    }
}

impl Layers for Downsample2D {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("conv", &self.conv);
    }
}

/// Nearest-neighbour upsampling, then a convolution.
#[derive(Clone, Debug)]
pub struct Upsample2D {
    conv: Conv2d,
}

impl Upsample2D {
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self { conv: Conv2d::same_size(channels, channels, 3, vb.pp("conv"))? })
    }

    /// `(batch, channels, height, width)` to twice the height and width, or to `size` (height, width) where the picture
    /// that was halved had an odd side.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor, size: Option<(usize, usize)>) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        match size {
            Some(size) if size != (2 * height, 2 * width) => {
                self.conv.forward(&upsample_nearest2d_to(x, size.0, size.1)?)
            }
            _ => self.conv.forward_upsampled(x),
        }
    }
}

impl Layers for Upsample2D {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("conv", &self.conv);
    }
}
