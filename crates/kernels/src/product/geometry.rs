//! The sizes of a convolution.

use candle_core::{Result, Tensor};

use super::packed::PackedWeight;
use crate::Conv2dParams;
use crate::conv2d::output_size;

/// How often each row and each column of a picture is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    One,
    Two,
}

impl Scale {
    pub(super) fn factor(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

/// The sizes of a convolution.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    pub(super) batch: usize,
    pub(super) channels: usize,
    /// Of the picture at its scale.
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) scale: Scale,
    pub(super) kernel_height: usize,
    pub(super) kernel_width: usize,
    pub(super) params: Conv2dParams,
    /// Rows and columns of zeros below and at the right, besides those of the padding.
    pub(super) end: usize,
    pub(super) out_channels: usize,
    pub(super) out_height: usize,
    pub(super) out_width: usize,
}

impl Geometry {
    /// Fails unless input and weight fit each other and the output can be counted.
    pub(super) fn new(x: &Tensor, scale: Scale, weight: &PackedWeight, params: Conv2dParams) -> Result<Self> {
        Self::padded_at_end(x, scale, weight, params, 0)
    }

    /// The same with so many rows and columns of zeros below and at the right, besides those of the padding.
    pub(super) fn padded_at_end(
        x: &Tensor,
        scale: Scale,
        weight: &PackedWeight,
        params: Conv2dParams,
        end: usize,
    ) -> Result<Self> {
        let (batch, channels, height, width) = x.dims4()?;
        let [height, width] = [height, width].map(|side| side.saturating_mul(scale.factor()));
        let size = [batch, channels, height.saturating_add(end), width.saturating_add(end)];
        let (out_height, out_width) = output_size(size, weight.shape(), params)?;
        let (out_channels, _, kernel_height, kernel_width) = weight.shape().dims4()?;
        let shape = [batch, out_channels, out_height, out_width];
        let bytes = shape.iter().try_fold(size_of::<f32>(), |bytes, &size| bytes.checked_mul(size));
        if bytes.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
            candle_core::bail!("conv2d: an output of {shape:?} has more numbers than can be counted");
        }
        Ok(Self {
            batch,
            channels,
            height,
            width,
            scale,
            kernel_height,
            kernel_width,
            params,
            end,
            out_channels,
            out_height,
            out_width,
        })
    }
}
