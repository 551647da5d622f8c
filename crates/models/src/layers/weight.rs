use std::sync::{Arc, PoisonError, RwLock};

use candle_core::{DType, Device, Shape, Tensor};
use candle_diffusers_kernels::{PackedWeight, to_dtype};

use crate::error::Result;

/// A layer's weight: plain, or packed for the processor in place of the plain tensor, so that memory holds it once. Clones share it
/// and the form that it has.
#[derive(Clone, Debug)]
pub(super) struct Weight {
    form: Arc<RwLock<Form>>,
}

#[derive(Clone, Debug)]
enum Form {
    Plain(Tensor),
    Packed(PackedWeight),
}

impl Weight {
    pub(super) fn new(plain: Tensor) -> Self {
        Self { form: Arc::new(RwLock::new(Form::Plain(plain))) }
    }

    pub(super) fn of_packed(packed: PackedWeight) -> Self {
        Self { form: Arc::new(RwLock::new(Form::Packed(packed))) }
    }

    /// The plain weight; where it is packed, a copy.
    pub(super) fn plain(&self) -> Tensor {
        match self.form() {
            Form::Plain(plain) => plain,
            Form::Packed(packed) => packed.unpack(),
        }
    }

    pub(super) fn shape(&self) -> Shape {
        match self.form() {
            Form::Plain(plain) => plain.shape().clone(),
            Form::Packed(packed) => packed.shape().clone(),
        }
    }

    pub(super) fn dtype(&self) -> DType {
        match self.form() {
            Form::Plain(plain) => plain.dtype(),
            Form::Packed(packed) => packed.dtype(),
        }
    }

    pub(super) fn device(&self) -> Device {
        match self.form() {
            Form::Plain(plain) => plain.device().clone(),
            Form::Packed(_) => Device::Cpu,
        }
    }

    /// The packed weight, which is the weight's form from now on; none where a weight is of use in its plain form only: where it is
    /// trained, in double precision, or not on the CPU.
    pub(super) fn packed(&self) -> Result<Option<PackedWeight>> {
        let plain = match self.form() {
            Form::Packed(packed) => return Ok(Some(packed)),
            Form::Plain(plain) => plain,
        };
        if plain.track_op() || !PackedWeight::packs(&plain) {
            return Ok(None);
        }
        // Not under the lock: another thread that packs at the same time does what is not needed, and no harm.
        let packed = PackedWeight::pack(&plain)?;
        self.set_form(Form::Packed(packed.clone()));
        Ok(Some(packed))
    }

    /// The plain weight, which is the weight's form from now on.
    pub(super) fn unpacked(&self) -> Tensor {
        let plain = match self.form() {
            Form::Plain(plain) => return plain,
            Form::Packed(packed) => packed.unpack(),
        };
        self.set_form(Form::Plain(plain.clone()));
        plain
    }

    fn form(&self) -> Form {
        self.form.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_form(&self, form: Form) {
        *self.form.write().unwrap_or_else(PoisonError::into_inner) = form;
    }
}

/// A variable as the layer computes with it: in the dtype of its input. What is not trained is expected to have it.
pub(super) fn in_dtype_of(x: &Tensor, variable: &Tensor) -> Result<Tensor> {
    match variable.track_op() {
        true => Ok(to_dtype(variable, x.dtype())?),
        false => Ok(variable.clone()),
    }
}
