use std::sync::{Arc, PoisonError, RwLock};

use candle_core::{DType, Device, Shape, Tensor};
use candle_diffusers_kernels::{
    Activation, Conv2dParams, GroupNormSilu, PackedWeight, add, conv2d, geglu, linear, upsample_nearest2d,
};

use super::LayerAdapter;
use super::weight::{Weight, in_dtype_of};
use crate::error::{Error, Result};

/// A linear layer or a convolution of a model, to look at and to change from outside through a shared reference; all of a model's
/// are listed by [`Layers::layers`](super::Layers::layers).
///
/// This is a handle: its clones, and the [`Linear`](super::Linear) or [`Conv2d`](super::Conv2d) that it came from, are the same layer.
/// (The clone of a `Linear`, and so of a model, is another layer that begins with the same tensors, which take no memory of their
/// own.) A change takes effect with the layer's next forward; one that runs goes on with what it began with.
///
/// On the CPU a weight is packed for the processor ([`PackedWeight`]) with the first forward, and the packed weight takes the place of the
/// plain one; gradients flow through it to the layer's input. A weight that is a variable, or depends on one, stays plain; it may be float32 where the layer's
/// input is a half precision: it is rounded to that each time.
#[derive(Clone, Debug)]
pub struct Layer {
    operation: Operation,
    state: Arc<RwLock<State>>,
}

/// What a layer does with its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `x W^T + b`; the weight is `(out_features, in_features)`.
    Linear,
    /// A 2D convolution; the weight is `(out_channels, in_channels, kernel_height, kernel_width)`.
    Conv2d(Conv2dParams),
}

impl Operation {
    /// The operation with this weight, and this bias of `(out_features)` or `(out_channels)`.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    pub fn forward(self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        Ok(match self {
            Self::Linear => linear(x, weight, bias)?,
            Self::Conv2d(params) => conv2d(x, weight, bias, params)?,
        })
    }

    fn forward_packed(
        self,
        x: &Tensor,
        weight: &PackedWeight,
        bias: Option<&Tensor>,
        then: Then<'_>,
    ) -> Result<Tensor> {
        Ok(match (self, then) {
            (Self::Linear, Then::Nothing) => weight.linear(x, bias)?,
            (Self::Linear, Then::Add(addend)) => weight.linear_add(x, bias, addend)?,
            (Self::Linear, Then::Activate(activation)) => weight.linear_activated(x, bias, activation)?,
            (Self::Linear, Then::Geglu) => weight.linear_geglu(x, bias)?,
            (Self::Conv2d(params), Then::Add(addend)) => weight.conv2d_add(x, bias, params, addend)?,
            (Self::Conv2d(params), Then::Activate(activation)) => {
                weight.conv2d_activated(x, bias, params, activation)?
            }
            (Self::Conv2d(params), then) => then.apply(weight.conv2d(x, bias, params)?)?,
        })
    }

    /// The operation on each pixel alone, for kernels of 1x1: a convolution without stride and padding. A linear layer is so anyway.
    pub fn pointwise(self) -> Self {
        match self {
            Self::Linear => Self::Linear,
            Self::Conv2d(_) => Self::Conv2d(Conv2dParams { stride: 1, padding: 0 }),
        }
    }
}

/// What a model does next with a layer's output.
#[derive(Clone, Copy)]
pub(super) enum Then<'a> {
    Nothing,
    /// Adds what has the output's shape.
    Add(&'a Tensor),
    /// A function of each number.
    Activate(Activation),
    /// [`geglu`] of a linear layer's output.
    Geglu,
}

impl Then<'_> {
    fn apply(self, output: Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Nothing => output,
            Self::Add(addend) => add(&output, addend)?,
            Self::Activate(activation) => activation.forward(&output)?,
            Self::Geglu => geglu(&output)?,
        })
    }
}

#[derive(Clone, Debug)]
struct State {
    weight: Weight,
    bias: Option<Tensor>,
    adapter: Option<Arc<dyn LayerAdapter>>,
}

impl Layer {
    /// A layer without an adapter.
    pub(super) fn new(operation: Operation, weight: Tensor, bias: Option<Tensor>) -> Self {
        Self {
            operation,
            state: Arc::new(RwLock::new(State { weight: Weight::new(weight), bias, adapter: None })),
        }
    }

    /// Another layer that begins as this one is.
    pub(super) fn detached_copy(&self) -> Self {
        Self { operation: self.operation, state: Arc::new(RwLock::new(self.state())) }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_then(x, Then::Nothing)
    }

    /// [`forward`](Self::forward), and what comes after it, in one pass where the weight is packed and no adapter stands between them.
    pub(super) fn forward_then(&self, x: &Tensor, then: Then<'_>) -> Result<Tensor> {
        // A copy, so that the lock is not held while the layer computes: an adapter may ask for the weight again.
        let State { weight, bias, adapter } = self.state();
        let bias = bias.as_ref();
        let packed = weight.packed()?.filter(|packed| packed.takes(x, bias));
        if let (Some(packed), None) = (&packed, &adapter) {
            return self.operation.forward_packed(x, packed, bias, then);
        }
        let output = match packed {
            Some(packed) => self.operation.forward_packed(x, &packed, bias, Then::Nothing)?,
            None => {
                let bias = bias.map(|bias| in_dtype_of(x, bias)).transpose()?;
                self.operation.forward(x, &in_dtype_of(x, &weight.unpacked())?, bias.as_ref())?
            }
        };
        let output = match adapter {
            Some(adapter) => adapter.forward(self, x, output)?,
            None => output,
        };
        then.apply(output)
    }

    /// [`forward`](Self::forward) of `x` upsampled by two, which is not stored where the weight is packed and no adapter looks at it.
    pub(super) fn forward_upsampled(&self, x: &Tensor) -> Result<Tensor> {
        let State { weight, bias, adapter } = self.state();
        let bias = bias.as_ref();
        let packed = weight.packed()?.filter(|packed| packed.takes(x, bias));
        match (self.operation, packed, adapter) {
            (Operation::Conv2d(params), Some(packed), None) => Ok(packed.upsample_conv2d(x, bias, params)?),
            _ => self.forward(&upsample_nearest2d(x)?),
        }
    }

    /// [`forward`](Self::forward) of `x` with a row of zeros below and a column at the right, which are not stored where the weight is packed and no adapter looks
    /// at them.
    pub(super) fn forward_padded_at_end(&self, x: &Tensor) -> Result<Tensor> {
        let State { weight, bias, adapter } = self.state();
        let bias = bias.as_ref();
        let packed = weight.packed()?.filter(|packed| packed.takes(x, bias));
        match (self.operation, packed, adapter) {
            (Operation::Conv2d(params), Some(packed), None) => {
                Ok(packed.conv2d_padded_at_end(x, bias, params, 1)?)
            }
            _ => self.forward(&x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?),
        }
    }

    /// [`forward`](Self::forward) of `norm` of `x`, plus `addend` where there is one; the norm is not stored where the weight is packed and no
    /// adapter looks at it.
    pub(super) fn forward_normed(
        &self,
        x: &Tensor,
        norm: GroupNormSilu<'_>,
        addend: Option<&Tensor>,
    ) -> Result<Tensor> {
        let State { weight, bias, adapter } = self.state();
        let bias = bias.as_ref();
        let packed = weight.packed()?.filter(|packed| packed.takes(x, bias));
        match (self.operation, packed, adapter) {
            (Operation::Conv2d(params), Some(packed), None) => {
                Ok(packed.conv2d_normed(x, norm, bias, params, addend)?)
            }
            _ => self.forward_then(&norm.apply(x)?, addend.map_or(Then::Nothing, Then::Add)),
        }
    }

    /// What the layer does with its weight.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// `(out_features, in_features)`, or `(out_channels, in_channels, kernel_height, kernel_width)`. Where the layer holds it packed, this is
    /// a copy.
    pub fn weight(&self) -> Tensor {
        self.read(|state| state.weight.clone()).plain()
    }

    /// The shape of the weight, also where it is packed without a copy of it.
    pub fn shape(&self) -> Shape {
        self.read(|state| state.weight.clone()).shape()
    }

    /// The dtype of the weight.
    pub fn dtype(&self) -> DType {
        self.read(|state| state.weight.clone()).dtype()
    }

    /// Where the weight is.
    pub fn device(&self) -> Device {
        self.read(|state| state.weight.clone()).device()
    }

    /// `(out_features)` or `(out_channels)`, where the layer has one.
    pub fn bias(&self) -> Option<Tensor> {
        self.read(|state| state.bias.clone())
    }

    /// What changes the layer's output.
    pub fn adapter(&self) -> Option<Arc<dyn LayerAdapter>> {
        self.read(|state| state.adapter.clone())
    }

    /// Changes the layer's output from now on, and gives back what did so before.
    pub fn set_adapter(&self, adapter: Option<Arc<dyn LayerAdapter>>) -> Option<Arc<dyn LayerAdapter>> {
        self.write(|state| std::mem::replace(&mut state.adapter, adapter))
    }

    /// Computes with another weight from now on, and gives back the one before.
    ///
    /// # Errors
    /// When its shape, dtype or device is another; the layer is then as it was.
    pub fn replace_weight(&self, weight: Tensor) -> Result<Tensor> {
        self.check("weight", &weight, self.shape().dims())?;
        Ok(self.write(|state| std::mem::replace(&mut state.weight, Weight::new(weight))).plain())
    }

    /// Computes with another weight from now on, which is packed already: what reads a model from a file fills its layers so, without a
    /// plain copy.
    ///
    /// # Errors
    /// When its shape or dtype is another, or the layer is not on the CPU; the layer is then as it was.
    pub fn replace_packed_weight(&self, weight: PackedWeight) -> Result<()> {
        let (shape, dtype, device) = (self.shape(), self.dtype(), self.device());
        if *weight.shape() != shape || weight.dtype() != dtype || !device.is_cpu() {
            let problem = format!(
                "is {:?} of {} on the CPU, expected {shape:?} of {} on {:?}",
                weight.shape(),
                weight.dtype().as_str(),
                dtype.as_str(),
                device.location()
            );
            return Err(Error::Input { model: "Layer", input: "weight", problem });
        }
        self.write(|state| state.weight = Weight::of_packed(weight));
        Ok(())
    }

    /// Computes with another bias from now on, or with none, and gives back the one before.
    ///
    /// # Errors
    /// When it is not `(out_features)` or `(out_channels)`, or its dtype or device is not the weight's; the layer is then as it was.
    pub fn replace_bias(&self, bias: Option<Tensor>) -> Result<Option<Tensor>> {
        if let Some(bias) = &bias {
            self.check("bias", bias, &self.shape().dims()[..1])?;
        }
        Ok(self.write(|state| std::mem::replace(&mut state.bias, bias)))
    }

    /// Whether both are handles of one layer.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// The same for all handles of the layer, and another one for each other layer that is there at the same time.
    pub(crate) fn address(&self) -> usize {
        Arc::as_ptr(&self.state).addr()
    }

    fn state(&self) -> State {
        self.read(State::clone)
    }

    // Nothing can fail while the lock is held, so that a poisoned one guards a whole state.
    fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Fails unless `tensor` has the shape, and the weight's dtype and device.
    fn check(&self, input: &'static str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
        let (dtype, device) = (self.dtype(), self.device());
        if tensor.dims() == shape && tensor.dtype() == dtype && tensor.device().same_device(&device) {
            return Ok(());
        }
        let problem = format!(
            "is {:?} of {} on {:?}, expected {shape:?} of {} on {:?}",
            tensor.dims(),
            tensor.dtype().as_str(),
            tensor.device().location(),
            dtype.as_str(),
            device.location()
        );
        Err(Error::Input { model: "Layer", input, problem })
    }
}
