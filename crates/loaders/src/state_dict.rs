use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_diffusers_convert::{Checkpoint, Dtype, TensorFile, TensorInfo};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use crate::key_names::{is_bookkeeping, nearest, other_names};
use crate::{Error, Result};

/// How many names of unused tensors an error lists.
const LISTED_EXTRA_TENSORS: usize = 5;

/// The weights of one model, as a [`VarBuilder`] that notices every mistake.
///
/// Each tensor is copied out of the mapped file when the model asks for it, converted to the dtype and device on the way, and the
/// file's pages are given back at once: memory holds the weights once, plus one tensor. Names are looked up as
/// they are, then by their older or newer spelling: with or without `text_model.`, and `query`, `key`, `value`, `proj_attn` for
/// `to_q`, `to_k`, `to_v`, `to_out.0`.
///
/// After the model is built, [`check_all_used`](Self::check_all_used) reports tensors that nothing asked for. Clones
/// share the same bookkeeping.
#[derive(Clone)]
pub struct StateDict {
    shared: Arc<Shared>,
}

struct Shared {
    checkpoint: Checkpoint,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// The names, as the file has them, of the tensors that were asked for.
    used: HashSet<String>,
    /// The first failure, kept because models hand on errors only as text.
    failure: Option<Error>,
}

impl StateDict {
    /// The tensors of `checkpoint`, none of them used yet.
    pub fn new(checkpoint: Checkpoint) -> Self {
        Self { shared: Arc::new(Shared { checkpoint, progress: Mutex::default() }) }
    }

    /// The checkpoint that the tensors come from.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.shared.checkpoint
    }

    /// A [`VarBuilder`] whose tensors are of `dtype` on `device`.
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        let backend: Box<dyn SimpleBackend> = Box::new(self.clone());
        VarBuilder::from_backend(backend, dtype, device.clone())
    }

    /// Fails when the checkpoint has tensors that nothing has asked for. Call it after the model is built.
    ///
    /// Tensors that are no weights (`position_ids`) do not count.
    ///
    /// # Errors
    /// [`Error::ExtraTensors`], with how many there are and the first names.
    pub fn check_all_used(&self) -> Result<()> {
        let progress = self.progress();
        let mut extra: Vec<&str> = self
            .checkpoint()
            .tensors()
            .map(|(_, info)| info.name.as_str())
            .filter(|name| !progress.used.contains(*name) && !is_bookkeeping(name))
            .collect();
        if extra.is_empty() {
            return Ok(());
        }
        extra.sort_unstable();
        let count = extra.len();
        let names = extra.into_iter().take(LISTED_EXTRA_TENSORS).map(str::to_string).collect();
        Err(Error::ExtraTensors { file: self.checkpoint().source().to_string(), count, names })
    }

    /// Takes the first error that a tensor gave, in its own type; models hand on errors only as text.
    pub fn take_failure(&self) -> Option<Error> {
        self.progress().failure.take()
    }

    /// The tensor called `name`, in either spelling, as `dtype` on `device`; of any shape where `expected` is `None`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::WrongShape`], [`Error::UnsupportedDtype`], [`Error::Tensor`].
    pub fn load(
        &self,
        name: &str,
        expected: Option<&[usize]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let Some((file, info)) = self.find(name) else {
            return Err(self.missing(name, expected));
        };
        if expected.is_some_and(|expected| expected != info.shape) {
            return Err(Error::WrongShape {
                file: file.source().to_string(),
                tensor: info.name.clone(),
                found: info.shape.clone(),
                expected: expected.unwrap_or_default().to_vec(),
            });
        }
        let tensor = load(file, info, dtype, device)?;
        self.progress().used.insert(info.name.clone());
        Ok(tensor)
    }

    /// Whether there is a tensor called `name`, in either spelling.
    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn find(&self, name: &str) -> Option<(&TensorFile, &TensorInfo)> {
        let checkpoint = self.checkpoint();
        checkpoint
            .get(name)
            .or_else(|| other_names(name).into_iter().find_map(|other| checkpoint.get(&other)))
    }

    fn missing(&self, name: &str, expected: Option<&[usize]>) -> Error {
        let names = || self.checkpoint().tensors().map(|(_, info)| info.name.as_str());
        // What the file calls it may begin otherwise than the name that was asked for.
        let mut similar = std::iter::once(name.to_string())
            .chain(other_names(name))
            .map(|spelling| nearest(&spelling, names()));
        Error::MissingTensor {
            file: self.checkpoint().source().to_string(),
            tensor: name.to_string(),
            expected: expected.map(<[usize]>::to_vec),
            nearest: similar.find(|names| !names.is_empty()).unwrap_or_default(),
        }
    }

    /// As [`load`](Self::load), with the error kept for [`take_failure`](Self::take_failure) and as the tensor library's.
    fn load_or_record(
        &self,
        name: &str,
        expected: Option<&[usize]>,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.load(name, expected, dtype, device).map_err(|error| {
            let as_text = candle_core::Error::Msg(error.to_string());
            self.progress().failure.get_or_insert(error);
            as_text
        })
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Nothing that holds the lock can fail half-way.
        self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SimpleBackend for StateDict {
    fn get(&self, s: Shape, name: &str, _: Init, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        self.load_or_record(name, Some(s.dims()), dtype, dev)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        self.load_or_record(name, None, dtype, dev)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.contains(name)
    }
}

/// Copies a tensor out of its file.
fn load(file: &TensorFile, info: &TensorInfo, dtype: DType, device: &Device) -> Result<Tensor> {
    let Some(stored) = candle_dtype(info.dtype) else {
        return Err(Error::UnsupportedDtype {
            file: file.source().to_string(),
            tensor: info.name.clone(),
            dtype: info.dtype,
        });
    };
    let bytes = file.bytes(&info.name).unwrap_or_default();
    // Copied in the file's dtype and converted on the device: an accelerator converts faster than this side.
    let tensor = Tensor::from_raw_buffer(bytes, stored, &info.shape, device);
    file.release(&info.name);
    tensor.and_then(|tensor| tensor.to_dtype(dtype)).map_err(|source| Error::Tensor {
        file: file.source().to_string(),
        tensor: info.name.clone(),
        dtype,
        source: Box::new(source),
    })
}

/// The element types that both sides have.
fn candle_dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F64 => Some(DType::F64),
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F8_E4M3 => Some(DType::F8E4M3),
        Dtype::I64 => Some(DType::I64),
        Dtype::I32 => Some(DType::I32),
        Dtype::I16 => Some(DType::I16),
        Dtype::U32 => Some(DType::U32),
        Dtype::U8 | Dtype::BOOL => Some(DType::U8),
        _ => None,
    }
}
