//! Which tensors of a checkpoint are its weights, and what they are called.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::{PickleError, Result, check_limit, shown};
use super::limits::{MAX_PICKLE_NAME_BYTES, MAX_PICKLE_TENSORS};
use super::numpy;
use super::value::{Dict, PickledTensor, Value};

/// Something in a checkpoint that is not among its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bookkeeping {
    /// Where it is, with dots between the keys.
    pub name: String,
    /// What it is and why it is not listed with them, for instance `int 470000: not a tensor`.
    pub reason: String,
    /// How many tensors it has in it.
    pub tensors: u64,
}

/// The tensors of a checkpoint by name, sorted by their place in the file.
#[derive(Debug, Default)]
pub(super) struct Flat {
    pub(super) tensors: Vec<(String, Arc<PickledTensor>)>,
    pub(super) bookkeeping: Vec<Bookkeeping>,
    /// Plain numbers and texts beside the weights.
    pub(super) metadata: BTreeMap<String, String>,
}

/// Keys under which training scripts put the weights, in the order in which they are looked for.
const WEIGHTS: &[&str] = &["state_dict", "model_state_dict", "model", "module", "net", "params"];
/// Keys of averaged weights, which are taken when there are no others.
const AVERAGED: &[&str] = &["ema_state_dict", "model_ema", "params_ema", "ema"];
/// Keys of what training needs to go on.
const TRAINING: &[&str] = &[
    "optimizer",
    "optimizers",
    "optimizer_state_dict",
    "optimizer_states",
    "lr_scheduler",
    "lr_schedulers",
    "scheduler",
    "scaler",
    "callbacks",
    "loops",
    "hparams",
    "hyper_parameters",
    "native_amp_scaling_state",
    "rng_state",
];
/// How many dictionaries of the kind `{"state_dict": ...}` may lie in each other.
const WRAPPERS: usize = 4;
/// The longest text that is listed as metadata, in bytes; one that is used in many places is copied for each.
const MAX_METADATA_BYTES: usize = 1024;
/// What torch's DataParallel puts before every name.
const PARALLEL_PREFIX: &str = "module.";

impl Flat {
    /// Lists the tensors of a checkpoint.
    pub(super) fn of(root: &Value) -> Result<Self> {
        let mut flat = Self::default();
        let mut weights = root;
        let mut path = String::new();
        for _ in 0..WRAPPERS {
            let Some((key, inner)) = weights.as_dict().and_then(inner_weights) else { break };
            let siblings = weights.as_dict().into_iter().flat_map(Dict::iter);
            for (name, value) in siblings.filter(|(name, _)| name.as_text() != Some(key)) {
                flat.beside(&join(&path, name)?, value)?;
            }
            path = join(&path, &Value::Text(key.into()))?;
            weights = inner;
        }
        flat.walk(String::new(), weights, true)?;
        flat.strip_parallel_prefix();
        flat.check_names()?;
        flat.tensors.sort_by(|(a_name, a), (b_name, b)| {
            (a.span.start, a_name.as_str()).cmp(&(b.span.start, b_name.as_str()))
        });
        Ok(flat)
    }

    fn walk(&mut self, path: String, value: &Value, top: bool) -> Result<()> {
        match value {
            Value::Tensor(tensor) => {
                let name = if path.is_empty() { "tensor".to_string() } else { path };
                self.tensors.push((name, tensor.clone()));
                check_limit("tensors", self.tensors.len(), MAX_PICKLE_TENSORS)
            }
            _ if value.tensor_count() == 0 => self.beside(&path, value),
            Value::Dict(dict) => {
                for (key, value) in dict.iter() {
                    let is_training = key.as_text().is_some_and(|key| TRAINING.contains(&key));
                    let path = join(&path, key)?;
                    if top && is_training && value.as_tensor().is_none() {
                        self.beside(&path, value)?;
                    } else {
                        self.walk(path, value, false)?;
                    }
                }
                match dict.state() {
                    Some(state) if state.tensor_count() > 0 => {
                        self.leave(&path, state, "attributes of a dict")
                    }
                    _ => Ok(()),
                }
            }
            Value::List(values) | Value::Tuple(values) | Value::Set(values) => {
                for (position, value) in values.iter().enumerate() {
                    self.walk(join(&path, &Value::Int(position as i64))?, value, false)?;
                }
                Ok(())
            }
            Value::Object(object) => {
                // torch.nn's containers keep their tensors under these attributes.
                let state = object.state();
                let parts = ["_parameters", "_buffers"].map(|part| state.and_then(|state| state.get(part)));
                let counted: u64 = parts.iter().flatten().map(|part| part.tensor_count()).sum();
                if counted == 0 {
                    return self.leave(&path, value, "an object that is not a container of tensors");
                }
                for part in parts.into_iter().flatten() {
                    self.walk(path.clone(), part, false)?;
                }
                Ok(())
            }
            _ => self.beside(&path, value),
        }
    }

    /// Notes a value that is not among the weights.
    fn beside(&mut self, path: &str, value: &Value) -> Result<()> {
        let text = match value {
            Value::Bool(value) => Some(value.to_string()),
            Value::Int(value) => Some(value.to_string()),
            Value::Float(value) => Some(value.to_string()),
            Value::Text(text) if text.len() <= MAX_METADATA_BYTES => Some(text.to_string()),
            Value::Object(object) => numpy::number(object),
            _ => None,
        };
        if let Some(text) = text {
            self.metadata.insert(path.to_string(), text);
        }
        let why = if value.tensor_count() == 0 { "not a tensor" } else { "not part of the weights" };
        self.leave(path, value, why)
    }

    fn leave(&mut self, path: &str, value: &Value, why: &str) -> Result<()> {
        let reason = format!("{}: {why}", value.summary());
        self.bookkeeping.push(Bookkeeping { name: path.to_string(), reason, tensors: value.tensor_count() });
        check_limit("values beside the tensors", self.bookkeeping.len(), MAX_PICKLE_TENSORS)
    }

    fn strip_parallel_prefix(&mut self) {
        if self.tensors.iter().all(|(name, _)| name.starts_with(PARALLEL_PREFIX)) {
            for (name, _) in &mut self.tensors {
                name.drain(..PARALLEL_PREFIX.len());
            }
        }
    }

    fn check_names(&mut self) -> Result<()> {
        self.tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        match self.tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(PickleError::Duplicate { tensor: shown(&pair[0].0) }),
            None => Ok(()),
        }
    }
}

/// The entry of `dict` that holds the weights, when the rest is known to be something else.
fn inner_weights(dict: &Dict) -> Option<(&'static str, &Value)> {
    let holds = |key: &&'static str| {
        let value = dict.get(key)?;
        (value.as_dict().is_some() && value.tensor_count() > 0).then_some((*key, value))
    };
    if let Some(found) = WEIGHTS.first().and_then(holds) {
        return Some(found);
    }
    let known = |key: &str| [WEIGHTS, AVERAGED, TRAINING].iter().any(|keys| keys.contains(&key));
    let is_aside = |(key, value): (&Value, &Value)| {
        value.tensor_count() == 0 || (value.as_tensor().is_none() && key.as_text().is_some_and(known))
    };
    if !dict.iter().all(is_aside) {
        return None;
    }
    WEIGHTS.iter().chain(AVERAGED).find_map(holds)
}

/// The name of what lies under `key` of the container at `path`.
fn join(path: &str, key: &Value) -> Result<String> {
    let key = match key {
        Value::Text(text) => {
            check_limit("bytes in one name", path.len().saturating_add(text.len()), MAX_PICKLE_NAME_BYTES)?;
            text.to_string()
        }
        Value::Int(number) => number.to_string(),
        other => other.summary(),
    };
    let joined = if path.is_empty() { key } else { format!("{path}.{key}") };
    check_limit("bytes in one name", joined.len(), MAX_PICKLE_NAME_BYTES)?;
    Ok(joined)
}
