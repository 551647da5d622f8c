//! Reading the tensors of a saved state, each checked.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::parameters::{Parameter, ParameterGroup, parameters};

/// The tensors of a state that no part has taken yet.
pub(crate) struct SavedState(HashMap<String, Tensor>);

impl SavedState {
    pub(crate) fn new(tensors: HashMap<String, Tensor>) -> Self {
        Self(tensors)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A copy of the tensor called `name` on the CPU, which nobody else changes.
    pub(crate) fn take(&mut self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let expected = format!("{dtype:?} of shape {shape:?}");
        let Some(tensor) = self.0.remove(name) else {
            return Err(Error::State { tensor: name.to_string(), found: "missing".to_string(), expected });
        };
        if tensor.dims() != shape || tensor.dtype() != dtype {
            let found = format!("{:?} of shape {:?}", tensor.dtype(), tensor.dims());
            return Err(Error::State { tensor: name.to_string(), found, expected });
        }
        Ok(tensor.to_device(&Device::Cpu)?.force_contiguous()?)
    }

    /// A count that [`count`] made.
    pub(crate) fn take_count(&mut self, name: &str) -> Result<u64> {
        let count = self.take(name, &[], DType::I64)?.to_scalar::<i64>()?;
        u64::try_from(count).map_err(|_| Error::State {
            tensor: name.to_string(),
            found: count.to_string(),
            expected: "0 or more".to_string(),
        })
    }

    /// Fails when there is a tensor that nobody has taken.
    pub(crate) fn finish(self) -> Result<()> {
        match self.0.into_keys().min() {
            None => Ok(()),
            Some(tensor) => Err(Error::State {
                tensor,
                found: "there".to_string(),
                expected: "tensors of the parameters that are trained now and of this optimizer only"
                    .to_string(),
            }),
        }
    }
}

/// A count as a tensor of a state.
pub(crate) fn count(value: u64) -> Result<Tensor> {
    Ok(Tensor::new(value as i64, &Device::Cpu)?)
}

/// The state of each parameter that has been stepped, by the parameter's name; fails where something else is left.
pub(super) fn load_each<T>(
    groups: &[ParameterGroup],
    state: HashMap<String, Tensor>,
    load: impl Fn(&str, &[usize], &mut SavedState) -> Result<T>,
) -> Result<BTreeMap<String, T>> {
    let mut saved = SavedState::new(state);
    let mut loaded = BTreeMap::new();
    for Parameter { name, var } in parameters(groups) {
        if saved.contains(&format!("{name}.step")) {
            loaded.insert(name.clone(), load(name, var.dims(), &mut saved)?);
        }
    }
    saved.finish()?;
    Ok(loaded)
}
