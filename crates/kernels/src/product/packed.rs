use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Result, Shape, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use super::file_numbers::{FileNumber, FileNumbers};
use super::level::Level;
use super::microkernel::{MAX_COLUMNS, Microkernel};
use super::multiply::After;
use super::panels::{AlignedBuffer, Element, Pair};
use super::weight_panels::{Unpacked, WeightPanels};
use super::{to_tensor, with_values};
use crate::cpu::{Float, TASK, to_floats};
use crate::{Activation, Conv2dParams, GroupNormSilu};

/// A weight of [`linear`](crate::linear()) or [`conv2d`](crate::conv2d()) in the order in which the processor's products read it:
/// packed once, it is multiplied with many inputs.
///
/// It is on the CPU, keeps its dtype (float32, float16 or bfloat16), takes the memory of the plain weight (rounded up by a few features), and
/// has no gradient: only the products' inputs and biases do. Clones share it.
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
    /// Of the products: what the numbers are, or float32.
    dtype: DType,
    side: Side,
    depth: usize,
    numbers: Numbers,
    /// Where the transpose is kept, if it is.
    transpose: OnceLock<PackedWeight>,
}

/// The numbers of a weight, with what multiplies them.
#[derive(Debug)]
pub(super) enum Numbers {
    F32(Microkernel<f32>, WeightPanels<f32>),
    F16(Microkernel<f32>, WeightPanels<f16>),
    /// For processors that multiply no bfloat16.
    Bf16(Microkernel<f32>, WeightPanels<bf16>),
    Bf16Pairs(Microkernel<Pair>, WeightPanels<Pair>),
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
    /// [`conv2d`](Self::conv2d).
    ///
    /// # Errors
    /// When the weight is of another rank or dtype or not on the CPU, or when `CANDLE_DIFFUSERS_CPU` names no [`Level`].
    pub fn pack(weight: &Tensor) -> Result<Self> {
        Self::pack_at(Level::current()?, weight)
    }

    /// As [`pack`](Self::pack), of numbers of the dtype `stored` as they lie in a file: row after row, little-endian, aligned to nothing.
    /// They become `dtype` a panel at a time, so that no plain copy is made of them. For float32 half precision stays as it is in memory, with
    /// half of float32's size, and becomes float32, to the same numbers, when it is multiplied.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_diffusers_kernels::PackedWeight;
    ///
    /// # fn main() -> candle_core::Result<()> {
    /// let bytes: Vec<u8> = (0..12).flat_map(|number| half::f16::from_f32(number as f32).to_le_bytes()).collect();
    /// let packed = PackedWeight::pack_bytes(&bytes, DType::F16, &[4, 3], DType::F32)?;
    /// let plain = Tensor::arange(0f32, 12.0, &Device::Cpu)?.reshape((4, 3))?;
    /// assert_eq!(packed.unpack().to_vec2::<f32>()?, plain.to_vec2::<f32>()?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`pack`](Self::pack), and when there are not as many bytes as the shape has numbers.
    pub fn pack_bytes(bytes: &[u8], stored: DType, shape: &[usize], dtype: DType) -> Result<Self> {
        Self::pack_bytes_at(Level::current()?, bytes, stored, shape, dtype)
    }

    pub(super) fn pack_at(level: Level, weight: &Tensor) -> Result<Self> {
        if !Self::packs(weight) {
            candle_core::bail!(
                "weights are packed in float32, float16 or bfloat16 on the CPU, this one is {} on {:?}",
                weight.dtype().as_str(),
                weight.device().location()
            );
        }
        Self::pack_values(level, Values::Tensor(weight), weight.shape().clone(), weight.dtype())
    }

    pub(super) fn pack_bytes_at(
        level: Level,
        bytes: &[u8],
        stored: DType,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Self> {
        if !Self::packs_dtype(stored) || !Self::packs_dtype(dtype) {
            candle_core::bail!(
                "weights are packed from and to float32, float16 or bfloat16, not from {} to {}",
                stored.as_str(),
                dtype.as_str()
            );
        }
        let expected = shape.iter().try_fold(stored.size_in_bytes(), |size, side| size.checked_mul(*side));
        if expected != Some(bytes.len()) {
            candle_core::bail!(
                "{} bytes are not the numbers of {shape:?} in {}",
                bytes.len(),
                stored.as_str()
            );
        }
        Self::pack_values(level, Values::Bytes(bytes, stored), Shape::from(shape), dtype)
    }

    fn pack_values(level: Level, values: Values, shape: Shape, dtype: DType) -> Result<Self> {
        let (side, depth) = match *shape.dims() {
            [_, in_features] => (Side::Right, in_features),
            [_, in_channels, height, width] => (Side::Left, in_channels * height * width),
            ref dims => {
                candle_core::bail!("a weight has 2 dimensions (linear) or 4 (conv2d), this one is {dims:?}")
            }
        };
        let kernel = Microkernel::new(level);
        // For tiles of float32's parts: convolutions that are computed by them are those of 1x1.
        let is_pointwise = matches!(shape.dims(), [_, _, 1, 1]) && dtype == DType::F32;
        let kernel = if is_pointwise && kernel.level == Level::Amx { kernel.of_rows() } else { kernel };
        let rows = Rows { level, values, features: shape.dims()[0], depth, side };
        let kept = match values {
            Values::Bytes(_, stored) if dtype == DType::F32 => stored,
            _ => dtype,
        };
        let numbers = match (kept, Microkernel::of_pairs(level).filter(|_| dtype == DType::BF16)) {
            (DType::BF16, Some(pairs)) => Numbers::Bf16Pairs(pairs, rows.pack::<bf16, _, _>(&pairs)?),
            (DType::BF16, None) => Numbers::Bf16(kernel, rows.pack::<bf16, _, _>(&kernel)?),
            (DType::F16, _) => Numbers::F16(kernel, rows.pack::<f16, _, _>(&kernel)?),
            _ => Numbers::F32(kernel, rows.pack::<f32, _, _>(&kernel)?),
        };
        Ok(Self::of(shape, dtype, side, depth, numbers))
    }

    pub(super) fn of(shape: Shape, dtype: DType, side: Side, depth: usize, numbers: Numbers) -> Self {
        let inner = Inner { shape, dtype, side, depth, numbers, transpose: OnceLock::new() };
        Self { inner: Arc::new(inner) }
    }

    /// Whether a weight is one that can be packed: on the CPU, in float32, float16 or bfloat16.
    pub fn packs(weight: &Tensor) -> bool {
        matches!(weight.device(), Device::Cpu) && Self::packs_dtype(weight.dtype())
    }

    /// Whether weights can be packed from and to this dtype: float32, float16 or bfloat16.
    pub fn packs_dtype(dtype: DType) -> bool {
        matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
    }

    /// Whether products with this weight compute what is asked for: `x` and `bias` are on the CPU and of the weight's dtype.
    pub fn takes(&self, x: &Tensor, bias: Option<&Tensor>) -> bool {
        let fits = |tensor: &Tensor| matches!(tensor.device(), Device::Cpu) && tensor.dtype() == self.dtype();
        fits(x) && bias.is_none_or(fits)
    }

    /// The plain weight again, number for number, on the CPU.
    pub fn unpack(&self) -> Tensor {
        match &self.inner.numbers {
            Numbers::F32(_, panels) => self.unpacked::<f32, _>(panels),
            Numbers::F16(_, panels) => self.unpacked::<f16, _>(panels),
            Numbers::Bf16(_, panels) => self.unpacked::<bf16, _>(panels),
            Numbers::Bf16Pairs(_, panels) => self.unpacked::<bf16, _>(panels),
        }
    }

    fn unpacked<S: Float + Unpacked<T>, T: Element>(&self, panels: &WeightPanels<T>) -> Tensor {
        let values = panels.unpack::<S>(self.inner.depth);
        match self.dtype() {
            DType::F32 => {
                let mut floats = vec![0f32; values.len()];
                let chunks = floats.par_chunks_mut(TASK).zip(values.par_chunks(TASK));
                chunks.for_each(|(floats, values)| to_floats(values, floats));
                to_tensor(floats, self.shape().dims())
            }
            _ => to_tensor(values, self.shape().dims()),
        }
    }

    /// The shape of the plain weight.
    pub fn shape(&self) -> &Shape {
        &self.inner.shape
    }

    /// The dtype of the plain weight.
    pub fn dtype(&self) -> DType {
        self.inner.dtype
    }

    /// [`linear`](crate::linear()) with this weight.
    ///
    /// # Errors
    /// When the shapes or dtypes do not fit, `x` or `bias` is not one that this [`takes`](Self::takes), or the weight is a convolution's.
    pub fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let output = super::linear::linear(x, self, bias, After::Nothing)?;
        crate::linear::record_packed(output, x, self, bias)
    }

    /// [`linear`](Self::linear) plus `addend`, which has the shape and dtype of the result; where nothing is to be differentiated, in one
    /// pass over memory and rounded once.
    ///
    /// # Errors
    /// Those of [`linear`](Self::linear), and when `addend` is of another shape or dtype.
    pub fn linear_add(&self, x: &Tensor, bias: Option<&Tensor>, addend: &Tensor) -> Result<Tensor> {
        if tracks(x, bias, Some(addend)) {
            return crate::add(&self.linear(x, bias)?, addend);
        }
        super::linear::linear(x, self, bias, After::Add(addend))
    }

    /// [`linear`](Self::linear), then an activation; where nothing is to be differentiated, in one pass over memory and rounded once.
    ///
    /// # Errors
    /// Those of [`linear`](Self::linear).
    pub fn linear_activated(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        if tracks(x, bias, None) {
            return activation.forward(&self.linear(x, bias)?);
        }
        super::linear::linear(x, self, bias, After::Activate(activation))
    }

    /// [`linear`](Self::linear), then [`geglu`](crate::geglu()): the result is `(batch, ..., out_features / 2)`. What would be the input of
    /// `geglu` is never stored, where nothing is to be differentiated and each half of the weight is a whole number of panels (of 32
    /// features at most).
    ///
    /// # Errors
    /// Those of [`linear`](Self::linear), and when the weight has an odd number of features.
    pub fn linear_geglu(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let features = self.shape().dims().first().copied().unwrap_or(0);
        if tracks(x, bias, None) || !features.is_multiple_of(2 * MAX_COLUMNS) {
            return crate::geglu(&self.linear(x, bias)?);
        }
        super::linear::linear(x, self, bias, After::Geglu)
    }

    /// [`conv2d`](crate::conv2d()) with this weight.
    ///
    /// # Errors
    /// When the shapes or dtypes do not fit, `x` or `bias` is not one that this [`takes`](Self::takes), or the weight is a linear layer's.
    pub fn conv2d(&self, x: &Tensor, bias: Option<&Tensor>, params: Conv2dParams) -> Result<Tensor> {
        let output = super::conv2d::conv2d(x, self, bias, params, After::Nothing)?;
        crate::conv2d::record_packed(output, x, self, bias, params)
    }

    /// [`conv2d`](Self::conv2d) of [`upsample_nearest2d`](crate::upsample_nearest2d)`(x)`; where nothing is to be differentiated, that is
    /// read from `x` and never stored.
    ///
    /// # Errors
    /// Those of [`conv2d`](Self::conv2d).
    pub fn upsample_conv2d(&self, x: &Tensor, bias: Option<&Tensor>, params: Conv2dParams) -> Result<Tensor> {
        if tracks(x, bias, None) {
            return self.conv2d(&crate::upsample_nearest2d(x)?, bias, params);
        }
        super::conv2d::upsample_conv2d(x, self, bias, params)
    }

    /// [`conv2d`](Self::conv2d) of `x` with `end` rows and columns of zeros below and at the right, besides those of the padding; where nothing is to be
    /// differentiated, they are never stored.
    ///
    /// # Errors
    /// Those of [`conv2d`](Self::conv2d).
    pub fn conv2d_padded_at_end(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        params: Conv2dParams,
        end: usize,
    ) -> Result<Tensor> {
        if tracks(x, bias, None) {
            return self.conv2d(&pad_at_end(x, end)?, bias, params);
        }
        super::conv2d::conv2d_padded_at_end(x, self, bias, params, end)
    }

    /// [`conv2d`](Self::conv2d) plus `addend`, which has the shape and dtype of the result; where nothing is to be differentiated, in one
    /// pass over memory and rounded once.
    ///
    /// # Errors
    /// Those of [`conv2d`](Self::conv2d), and when `addend` is of another shape or dtype.
    pub fn conv2d_add(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        params: Conv2dParams,
        addend: &Tensor,
    ) -> Result<Tensor> {
        if tracks(x, bias, Some(addend)) {
            return crate::add(&self.conv2d(x, bias, params)?, addend);
        }
        super::conv2d::conv2d(x, self, bias, params, After::Add(addend))
    }

    /// [`conv2d`](Self::conv2d), then an activation; where nothing is to be differentiated, in one pass over memory and rounded once.
    ///
    /// # Errors
    /// Those of [`conv2d`](Self::conv2d).
    pub fn conv2d_activated(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        params: Conv2dParams,
        activation: Activation,
    ) -> Result<Tensor> {
        if tracks(x, bias, None) {
            return activation.forward(&self.conv2d(x, bias, params)?);
        }
        super::conv2d::conv2d(x, self, bias, params, After::Activate(activation))
    }

    /// [`conv2d`](Self::conv2d) of `norm` of `x`, plus `addend` where there is one. Where nothing is to be differentiated and it is the quicker way, the
    /// norm is computed from `x` as it is read and never stored.
    ///
    /// # Errors
    /// Those of [`GroupNormSilu::apply`] and [`conv2d_add`](Self::conv2d_add).
    pub fn conv2d_normed(
        &self,
        x: &Tensor,
        norm: GroupNormSilu<'_>,
        bias: Option<&Tensor>,
        params: Conv2dParams,
        addend: Option<&Tensor>,
    ) -> Result<Tensor> {
        if !tracks(x, bias, addend)
            && !norm.tracks()
            && super::conv2d::normalizes(x, self, params)?
            && let Some(channels) = norm.channels(x)?
        {
            let after = addend.map_or(After::Nothing, After::Add);
            return super::conv2d::conv2d_normed(x, &channels, self, bias, params, after);
        }
        let normed = norm.apply(x)?;
        match addend {
            Some(addend) => self.conv2d_add(&normed, bias, params, addend),
            None => self.conv2d(&normed, bias, params),
        }
    }

    /// The memory of a weight that nobody else has.
    pub(super) fn into_buffer(self) -> Option<AlignedBuffer> {
        let Inner { numbers, .. } = Arc::into_inner(self.inner)?;
        Some(match numbers {
            Numbers::F32(_, panels) => panels.into_buffer(),
            Numbers::F16(_, panels) => panels.into_buffer(),
            Numbers::Bf16(_, panels) => panels.into_buffer(),
            Numbers::Bf16Pairs(_, panels) => panels.into_buffer(),
        })
    }

    pub(super) fn numbers(&self) -> &Numbers {
        &self.inner.numbers
    }

    pub(super) fn transpose_place(&self) -> &OnceLock<Self> {
        &self.inner.transpose
    }

    pub(super) fn side(&self) -> Side {
        self.inner.side
    }

    pub(super) fn depth(&self) -> usize {
        self.inner.depth
    }
}

/// Whether something is to be differentiated.
fn tracks(x: &Tensor, bias: Option<&Tensor>, addend: Option<&Tensor>) -> bool {
    x.track_op() || bias.is_some_and(Tensor::track_op) || addend.is_some_and(Tensor::track_op)
}

/// `(batch, channels, height, width)` with so many rows and columns of zeros below and at the right.
fn pad_at_end(x: &Tensor, end: usize) -> Result<Tensor> {
    x.pad_with_zeros(2, 0, end)?.pad_with_zeros(3, 0, end)
}

/// Where the numbers of a weight are before they are packed.
#[derive(Clone, Copy)]
enum Values<'a> {
    Tensor(&'a Tensor),
    /// Little-endian, of this dtype.
    Bytes(&'a [u8], DType),
}

/// A weight that is to be packed.
struct Rows<'a> {
    level: Level,
    values: Values<'a>,
    features: usize,
    depth: usize,
    side: Side,
}

impl Rows<'_> {
    fn pack<S: Float + FileNumber + Unpacked<T>, T: Element, E: Element>(
        &self,
        kernel: &Microkernel<E>,
    ) -> Result<WeightPanels<T>> {
        let Self { level, features, depth, .. } = *self;
        let width = match self.side {
            Side::Left => kernel.left_width,
            Side::Right => kernel.columns,
        };
        match self.values {
            Values::Tensor(weight) => {
                with_values(weight, |values: &[S]| Ok(WeightPanels::pack(values, features, depth, width)))
            }
            Values::Bytes(bytes, stored) => {
                let numbers = FileNumbers { level, bytes, stored };
                Ok(WeightPanels::pack_file::<S>(&numbers, features, depth, width))
            }
        }
    }
}
