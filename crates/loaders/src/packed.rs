//! Models whose layers' weights go from their file into the order in which the processor reads them, without a plain copy in between.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor, TensorId};
use candle_diffusers_kernels::PackedWeight;
use candle_diffusers_models::layers::{Layer, Layers};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use rayon::prelude::*;

use crate::{Result, StateDict};

/// The layers whose weights are still to be read, with the names of those.
type Unfilled = Vec<(Layer, String)>;

/// Builds a model of the weights in `state_dict` by `build`, and packs the weights of its layers for the CPU, all at once.
///
/// It is built twice: of tensors that have a shape and nothing else, which shows what tensors are the weights of layers, and then with those
/// left out, and read at last straight into the layers. A layer that uses its weight in any other way than as
/// it is gets the tensor itself.
///
/// # Errors
/// Those of `build`, and of reading.
pub(crate) fn build_packed<T: Layers>(
    state_dict: &StateDict,
    dtype: DType,
    build: impl Fn(VarBuilder<'static>) -> Result<T>,
) -> Result<T> {
    let plain = || build(state_dict.var_builder(dtype, &Device::Cpu));
    if !PackedWeight::packs_dtype(dtype) {
        return plain();
    }
    let outline = Outline::new(state_dict.clone(), None);
    // What is wrong with a tensor is told as ever.
    let Ok(model) = build(outline.var_builder(dtype)) else { return plain() };
    let names = outline.unfilled(&model).into_iter().map(|(_, name)| name).collect();

    let outline = Outline::new(state_dict.clone(), Some(names));
    let model = build(outline.var_builder(dtype))?;
    let unfilled = outline.unfilled(&model);
    if unfilled.len() != outline.made().len() {
        // A model that builds itself differently each time.
        return plain();
    }
    fill(state_dict, dtype, unfilled)?;
    Ok(model)
}

/// Reads the largest weights first, so that no core is left with one at the end.
fn fill(state_dict: &StateDict, dtype: DType, mut unfilled: Unfilled) -> Result<()> {
    unfilled.sort_by_key(|(layer, _)| std::cmp::Reverse(layer.shape().elem_count()));
    unfilled.into_par_iter().with_max_len(1).try_for_each(|(layer, name)| {
        let weight = state_dict.load_packed(&name, layer.shape().dims(), dtype)?;
        layer
            .replace_packed_weight(weight)
            .map_err(|error| state_dict.not_read(&name, dtype, candle_core::Error::wrap(error)))
    })
}

/// Makes tensors that take no memory, and remembers which name each was asked by.
#[derive(Clone)]
struct Outline {
    state_dict: StateDict,
    /// The names of tensors that are not read; none are where this is missing.
    names: Option<Arc<Vec<String>>>,
    made: Arc<Mutex<HashMap<TensorId, String>>>,
}

impl Outline {
    fn new(state_dict: StateDict, names: Option<Vec<String>>) -> Self {
        let names = names.map(|mut names| {
            names.sort_unstable();
            Arc::new(names)
        });
        Self { state_dict, names, made: Arc::default() }
    }

    fn var_builder(&self, dtype: DType) -> VarBuilder<'static> {
        let backend: Box<dyn SimpleBackend> = Box::new(self.clone());
        VarBuilder::from_backend(backend, dtype, Device::Cpu)
    }

    fn made(&self) -> std::sync::MutexGuard<'_, HashMap<TensorId, String>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layers of `model` whose weights were made here.
    fn unfilled(&self, model: &impl Layers) -> Unfilled {
        let made = self.made();
        let layers = model.layers().into_iter().map(|(_, layer)| layer);
        layers.filter_map(|layer| Some((layer.clone(), made.get(&layer.weight().id())?.clone()))).collect()
    }

    fn is_read(&self, name: &str) -> bool {
        self.names
            .as_ref()
            .is_some_and(|names| names.binary_search_by(|other| other.as_str().cmp(name)).is_err())
    }

    /// A tensor of one zero that is seen as many.
    fn make(&self, name: &str, shape: Shape, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let tensor = Tensor::zeros((), dtype, device)?.broadcast_as(shape)?;
        self.made().insert(tensor.id(), name.to_string());
        Ok(tensor)
    }
}

impl SimpleBackend for Outline {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        if self.is_read(name) {
            return self.state_dict.get(shape, name, init, dtype, device);
        }
        match self.state_dict.shape(name) {
            Some(found) if found == shape.dims() => self.make(name, shape, dtype, device),
            _ => candle_core::bail!("there is no {name} of {shape:?}"),
        }
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        match self.state_dict.shape(name) {
            Some(shape) if !self.is_read(name) => self.make(name, Shape::from(shape), dtype, device),
            _ => self.state_dict.get_unchecked(name, dtype, device),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.state_dict.contains(name)
    }
}
