use std::ops::Range;
use std::sync::Arc;

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Device, Result, Shape, Storage, Tensor};
use rayon::prelude::*;

use super::level::Level;
use super::microkernel::Microkernel;
use super::panels::{AlignedBuffer, DEPTH, transpose_rows};
use super::with_values;
use crate::Conv2dParams;

/// A weight of [`linear`](crate::linear()) or [`conv2d`](crate::conv2d()) in the order in which the processor's products read it:
/// packed once, it is multiplied with many inputs.
///
/// It is held in float32 on the CPU, takes the memory of the plain weight in float32 (rounded up by a few features), and has no gradient. Clones
/// share it.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_diffusers_kernels::{PackedWeight, linear};
///
/// # fn main() -> candle_core::Result<()> {
/// let weight = Tensor::randn(0f32, 0.1, (64, 48), &Device::Cpu)?;
/// let x = Tensor::randn(0f32, 1.0, (2, 77, 48), &Device::Cpu)?;
/// let packed = PackedWeight::pack(&weight)?;
/// let (once, again) = (packed.linear(&x, None)?, linear(&x, &weight, None)?);
/// assert_eq!(once.to_vec3::<f32>()?, again.to_vec3::<f32>()?);
/// assert_eq!(packed.unpack().to_vec2::<f32>()?, weight.to_vec2::<f32>()?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct PackedWeight {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shape: Shape,
    kernel: Microkernel,
    side: Side,
    features: usize,
    depth: usize,
    values: AlignedBuffer,
}

/// Which factor of a product the weight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Features are rows of the result, as in a convolution's `(channels, pixels)`.
    Left,
    /// Features are columns of the result, as in a linear layer's `(rows, features)`.
    Right,
}

impl PackedWeight {
    /// Packs `(out_features, in_features)` for [`linear`](Self::linear), or `(out_channels, in_channels, kernel_height, kernel_width)` for
    /// [`conv2d`](Self::conv2d). A weight of another dtype
    /// is converted to float32.
    ///
    /// # Errors
    /// When the weight is of another rank or not on the CPU, or when `CANDLE_DIFFUSERS_CPU` names no [`Level`].
    pub fn pack(weight: &Tensor) -> Result<Self> {
        Self::pack_at(Level::current()?, weight)
    }

    pub(super) fn pack_at(level: Level, weight: &Tensor) -> Result<Self> {
        let kernel = Microkernel::new(level);
        let (side, depth) = match *weight.dims() {
            [_, in_features] => (Side::Right, in_features),
            [_, in_channels, height, width] => (Side::Left, in_channels * height * width),
            ref dims => {
                candle_core::bail!("a weight has 2 dimensions (linear) or 4 (conv2d), this one is {dims:?}")
            }
        };
        if !matches!(weight.device(), Device::Cpu) {
            candle_core::bail!(
                "weights are packed on the CPU, this one is on {:?}",
                weight.device().location()
            );
        }
        let features = weight.dims()[0];
        let width = match side {
            Side::Left => kernel.rows,
            Side::Right => kernel.columns,
        };
        let pack = |values: &[f32]| Ok(pack_rows(values, features, depth, width));
        let values = with_values(&weight.to_dtype(DType::F32)?, pack)?;
        let inner = Inner { shape: weight.shape().clone(), kernel, side, features, depth, values };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether products with a packed weight compute what is asked for: `x` and `bias` are on the CPU, `x` is of float32 or half precision, and
    /// neither is a variable or depends on one (products with a packed weight record nothing for a backward).
    pub fn takes(x: &Tensor, bias: Option<&Tensor>) -> bool {
        let is_float = matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16);
        let fits = |tensor: &Tensor| matches!(tensor.device(), Device::Cpu) && !tensor.track_op();
        is_float && fits(x) && bias.is_none_or(fits)
    }

    /// The plain weight again, number for number, in float32 on the CPU.
    pub fn unpack(&self) -> Tensor {
        let Inner { features, depth, .. } = *self.inner;
        let width = self.panel_width();
        let mut values = vec![0f32; features * depth];
        if depth > 0 {
            values.par_chunks_mut(width * depth).enumerate().for_each(|(index, rows)| {
                for depths in depth_blocks(0..depth) {
                    let panel = self.panel(index, &depths);
                    for (row, values) in rows.chunks_exact_mut(depth).enumerate() {
                        let column = panel.chunks_exact(width).map(|numbers| numbers[row]);
                        values[depths.clone()]
                            .iter_mut()
                            .zip(column)
                            .for_each(|(value, number)| *value = number);
                    }
                }
            });
        }
        let storage = Storage::Cpu(CpuStorage::F32(values));
        Tensor::from_storage(storage, self.shape().clone(), BackpropOp::none(), false)
    }

    /// The shape of the plain weight.
    pub fn shape(&self) -> &Shape {
        &self.inner.shape
    }

    /// [`linear`](crate::linear()) with this weight.
    ///
    /// # Errors
    /// When the shapes or dtypes do not fit, `x` or `bias` is not one that this [`takes`](Self::takes), or the weight is a convolution's.
    pub fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        super::linear::linear(x, self, bias)
    }

    /// [`conv2d`](crate::conv2d()) with this weight.
    ///
    /// # Errors
    /// When the shapes or dtypes do not fit, `x` or `bias` is not one that this [`takes`](Self::takes), or the weight is a linear layer's.
    pub fn conv2d(&self, x: &Tensor, bias: Option<&Tensor>, params: Conv2dParams) -> Result<Tensor> {
        super::conv2d::conv2d(x, self, bias, params)
    }

    pub(super) fn kernel(&self) -> Microkernel {
        self.inner.kernel
    }

    pub(super) fn side(&self) -> Side {
        self.inner.side
    }

    pub(super) fn features(&self) -> usize {
        self.inner.features
    }

    pub(super) fn depth(&self) -> usize {
        self.inner.depth
    }

    /// How many features a panel has.
    pub(super) fn panel_width(&self) -> usize {
        match self.inner.side {
            Side::Left => self.inner.kernel.rows,
            Side::Right => self.inner.kernel.columns,
        }
    }

    /// The panel of features that begins at `index * panel_width`, in one of the [`depth_blocks`].
    pub(super) fn panel(&self, index: usize, depths: &Range<usize>) -> &[f32] {
        let width = self.panel_width();
        let padded_features = self.inner.features.next_multiple_of(width);
        let start = depths.start * padded_features + index * width * depths.len();
        &self.inner.values.values()[start..start + width * depths.len()]
    }
}

/// A piece of the depth, which begins at a multiple of [`DEPTH`], in blocks of [`DEPTH`], the last of which may be less.
pub(super) fn depth_blocks(depths: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    depths.clone().step_by(DEPTH).map(move |start| start..depths.end.min(start + DEPTH))
}

/// `features` rows of `depth` numbers as panels of `width` features: those of one depth block beside each other.
fn pack_rows(values: &[f32], features: usize, depth: usize, width: usize) -> AlignedBuffer {
    let padded_features = features.next_multiple_of(width);
    let mut packed = AlignedBuffer::zeros(padded_features * depth);
    let blocks =
        packed.values_mut()[..padded_features * depth].par_chunks_mut((padded_features * DEPTH).max(1));
    blocks.enumerate().for_each(|(block, panels)| {
        let depths = block * DEPTH..depth.min((block + 1) * DEPTH);
        panels.par_chunks_mut(width * depths.len()).enumerate().for_each(|(index, panel)| {
            let rows = index * width..features.min((index + 1) * width);
            let rows = rows.map(|row| &values[row * depth..][depths.clone()]);
            transpose_rows(rows, width, depths.len(), panel);
        });
    });
    packed
}
