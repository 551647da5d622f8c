use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_diffusers_convert::{Checkpoint, Dtype, Entry, Inventory, Source, has_non_finite};
use candle_diffusers_kernels::PackedWeight;
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use crate::key_names::{is_bookkeeping, nearest, other_names};
use crate::{Error, Result};

/// How many names of unused tensors an error lists.
const LISTED_EXTRA_TENSORS: usize = 5;

/// How many names of tensors with infinities a warning lists.
const LISTED_NOT_FINITE: usize = 3;

/// The weights of one model, as a [`VarBuilder`] that notices every mistake.
///
/// Each tensor (but for the weights of layers that are packed: see [`load_model`](crate::load_model)) is copied out of the mapped file, wherever and however it lies there, when the model asks for it, converted to the dtype and device on the way, and the
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
    source: Arc<dyn Source>,
    inventory: Inventory,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// The names, as the file has them, of the tensors that were asked for.
    used: HashSet<String>,
    /// The first failure, kept because models hand on errors only as text.
    failure: Option<Error>,
    /// The names, as the file has them, of tensors with values that are infinite or not numbers.
    not_finite: Vec<String>,
}

impl StateDict {
    /// The tensors of `checkpoint`, none of them used yet.
    pub fn new(checkpoint: Checkpoint) -> Self {
        Self::from_source(Arc::new(checkpoint))
    }

    /// The tensors of `source`, by the names that it gives them, none of them used yet.
    pub fn from_source(source: Arc<dyn Source>) -> Self {
        let inventory = source.inventory();
        Self { shared: Arc::new(Shared { source, inventory, progress: Mutex::default() }) }
    }

    /// What the tensors come from.
    pub fn source(&self) -> &dyn Source {
        self.shared.source.as_ref()
    }

    /// The tensors that there are, by the names that the source gives them.
    pub fn inventory(&self) -> &Inventory {
        &self.shared.inventory
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
        let extra: Vec<&str> = self
            .inventory()
            .names()
            .filter(|name| !progress.used.contains(*name) && !is_bookkeeping(name))
            .collect();
        if extra.is_empty() {
            return Ok(());
        }
        let count = extra.len();
        let names = extra.into_iter().take(LISTED_EXTRA_TENSORS).map(str::to_string).collect();
        Err(Error::ExtraTensors { file: self.source().name().to_string(), count, names })
    }

    /// Warns, once, of tensors that were loaded and have values that are infinite or not numbers: the file is damaged, or training
    /// went wrong, and pictures will be black.
    pub(crate) fn warn_of_not_finite(&self) {
        let mut names = std::mem::take(&mut self.progress().not_finite);
        if names.is_empty() {
            return;
        }
        // Several are read at the same time.
        names.sort_unstable();
        let listed = names[..names.len().min(LISTED_NOT_FINITE)].join(", ");
        let rest = match names.len().saturating_sub(LISTED_NOT_FINITE) {
            0 => String::new(),
            rest => format!(" and {rest} more"),
        };
        tracing::warn!("{}: values that are infinite or not numbers in {listed}{rest}", self.source().name());
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
        let (name, entry) = self.find_shaped(name, expected)?;
        let tensor = self.read(&name, entry, dtype, device)?;
        self.progress().used.insert(name);
        Ok(tensor)
    }

    /// As [`load`](Self::load) on the CPU, packed for products without a plain copy in between.
    pub(crate) fn load_packed(&self, name: &str, expected: &[usize], dtype: DType) -> Result<PackedWeight> {
        let (name, entry) = self.find_shaped(name, Some(expected))?;
        let packed = match candle_dtype(entry.dtype) {
            Some(stored) if PackedWeight::packs_dtype(stored) => {
                let bytes = self.source().bytes(&name)?;
                self.note_if_not_finite(&name, entry, &bytes);
                let packed = PackedWeight::pack_bytes(&bytes, stored, &entry.shape, dtype);
                drop(bytes);
                self.source().release(&name);
                packed
            }
            _ => PackedWeight::pack(&self.read(&name, entry, dtype, &Device::Cpu)?),
        };
        let packed = packed.map_err(|source| self.not_read(&name, dtype, source))?;
        self.progress().used.insert(name);
        Ok(packed)
    }

    /// The shape of the tensor called `name`, in either spelling.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.find(name).map(|(_, entry)| entry.shape.as_slice())
    }

    /// Whether there is a tensor called `name`, in either spelling.
    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The tensor called `name` and what the source calls it.
    fn find(&self, name: &str) -> Option<(String, &Entry)> {
        let named = |name: String| self.inventory().get(&name).map(|entry| (name, entry));
        named(name.to_string()).or_else(|| other_names(name).into_iter().find_map(named))
    }

    /// As [`find`](Self::find), of the `expected` shape where there is one.
    fn find_shaped(&self, name: &str, expected: Option<&[usize]>) -> Result<(String, &Entry)> {
        let Some((name, entry)) = self.find(name) else {
            return Err(self.missing(name, expected));
        };
        match expected {
            Some(expected) if expected != entry.shape => Err(Error::WrongShape {
                file: self.file_of(&name),
                tensor: stored_name(&name, entry),
                found: entry.shape.clone(),
                expected: expected.to_vec(),
            }),
            _ => Ok((name, entry)),
        }
    }

    fn note_if_not_finite(&self, name: &str, entry: &Entry, bytes: &[u8]) {
        if has_non_finite(bytes, entry.dtype) {
            self.progress().not_finite.push(stored_name(name, entry));
        }
    }

    /// What goes wrong with a tensor, whose name is the source's, when its bytes are there.
    pub(crate) fn not_read(&self, name: &str, dtype: DType, source: candle_core::Error) -> Error {
        let tensor = match self.inventory().get(name) {
            Some(entry) => stored_name(name, entry),
            None => name.to_string(),
        };
        Error::Tensor { file: self.file_of(name), tensor, dtype, source: Box::new(source) }
    }

    /// Copies a tensor out of its file.
    fn read(&self, name: &str, entry: &Entry, dtype: DType, device: &Device) -> Result<Tensor> {
        let Some(stored) = candle_dtype(entry.dtype) else {
            return Err(Error::UnsupportedDtype {
                file: self.file_of(name),
                tensor: stored_name(name, entry),
                dtype: entry.dtype,
            });
        };
        let bytes = self.source().bytes(name)?;
        self.note_if_not_finite(name, entry, &bytes);
        // Copied in the file's dtype and converted on the device: an accelerator converts faster than this side.
        let tensor = Tensor::from_raw_buffer(&bytes, stored, &entry.shape, device);
        drop(bytes);
        self.source().release(name);
        tensor.and_then(|tensor| tensor.to_dtype(dtype)).map_err(|source| self.not_read(name, dtype, source))
    }

    /// The file that has the tensor: one of several shards.
    fn file_of(&self, name: &str) -> String {
        match self.source().position(name) {
            Some((path, _)) => path.display().to_string(),
            None => self.source().name().to_string(),
        }
    }

    fn missing(&self, name: &str, expected: Option<&[usize]>) -> Error {
        // What the file calls it may begin otherwise than the name that was asked for.
        let mut similar = std::iter::once(name.to_string())
            .chain(other_names(name))
            .map(|spelling| nearest(&spelling, self.inventory().names()));
        Error::MissingTensor {
            file: self.source().name().to_string(),
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

/// What the file itself calls the tensor.
fn stored_name(name: &str, entry: &Entry) -> String {
    entry.stored_as.as_deref().unwrap_or(name).to_string()
}

/// The element types that both sides have.
pub(crate) fn candle_dtype(dtype: Dtype) -> Option<DType> {
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
