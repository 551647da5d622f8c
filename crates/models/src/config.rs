//! Reading a model's `config.json`: every field is used, or refused by name.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// No size in a config may be larger: real ones stay far below, and products of several of these still fit a usize.
const MAX_SIZE: u64 = 1 << 20;

/// Reads the fields of one config and remembers which, so that [`ConfigReader::finish`] can name the one that nobody read.
pub(crate) struct ConfigReader<'a> {
    model: &'static str,
    fields: &'a Map<String, Value>,
    read: BTreeSet<String>,
}

impl<'a> ConfigReader<'a> {
    pub(crate) fn new(model: &'static str, config: &'a Value) -> Result<Self> {
        let Value::Object(fields) = config else {
            return Err(Error::Config {
                model,
                field: "(the whole file)".into(),
                found: brief(config),
                expected: "an object".into(),
            });
        };
        Ok(Self { model, fields, read: BTreeSet::new() })
    }

    /// The error that `field` is not as expected.
    pub(crate) fn error(&self, field: &str, expected: impl Into<String>) -> Error {
        let found = self.fields.get(field).map_or("missing".into(), brief);
        Error::Config { model: self.model, field: field.into(), found, expected: expected.into() }
    }

    /// The field's value; `None` where it is missing or null.
    pub(crate) fn value(&mut self, field: &str) -> Option<&'a Value> {
        self.read.insert(field.into());
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// A field that has no influence here, whatever it says.
    pub(crate) fn ignore(&mut self, field: &str) {
        self.read.insert(field.into());
    }

    /// Leaves out what diffusers' `EMAModel` writes into the config of the averaged model: it tells of the training alone.
    pub(crate) fn ignore_training_state(&mut self) {
        const EMA_FIELDS: [&str; 8] = [
            "decay",
            "inv_gamma",
            "min_decay",
            "min_value",
            "optimization_step",
            "power",
            "update_after_step",
            "use_ema_warmup",
        ];
        EMA_FIELDS.iter().for_each(|field| self.ignore(field));
    }

    pub(crate) fn optional_size(&mut self, field: &str) -> Result<Option<usize>> {
        match self.value(field) {
            None => Ok(None),
            Some(value) => match as_size(value) {
                Some(size) => Ok(Some(size)),
                None => Err(self.error(field, SIZE)),
            },
        }
    }

    pub(crate) fn size(&mut self, field: &str, default: usize) -> Result<usize> {
        self.not_null(field, SIZE)?;
        Ok(self.optional_size(field)?.unwrap_or(default))
    }

    /// Height and width: one size for both, or a list of two.
    pub(crate) fn sides(&mut self, field: &str) -> Result<Option<(usize, usize)>> {
        match self.value(field) {
            Some(Value::Array(values)) if values.len() == 2 => {
                let sizes = self.sizes(field, &[])?;
                Ok(Some((sizes[0], sizes[1])))
            }
            _ => Ok(self.optional_size(field)?.map(|size| (size, size))),
        }
    }

    /// Whether the field is there and null.
    pub(crate) fn is_null(&mut self, field: &str) -> bool {
        self.read.insert(field.into());
        matches!(self.fields.get(field), Some(Value::Null))
    }

    /// A size that may be 0.
    pub(crate) fn count(&mut self, field: &str, default: usize) -> Result<usize> {
        match self.value(field) {
            Some(value) if value.as_u64() == Some(0) => Ok(0),
            _ => self.size(field, default),
        }
    }

    /// An error where the field is there and null: in the reference that means "none", not "the default".
    fn not_null(&self, field: &str, expected: &str) -> Result<()> {
        match self.fields.get(field) {
            Some(Value::Null) => Err(self.error(field, expected)),
            _ => Ok(()),
        }
    }

    /// A list of sizes.
    pub(crate) fn sizes(&mut self, field: &str, default: &[usize]) -> Result<Vec<usize>> {
        match self.value(field) {
            None => Ok(default.to_vec()),
            Some(Value::Array(values)) if !values.is_empty() => values
                .iter()
                .map(as_size)
                .collect::<Option<_>>()
                .ok_or_else(|| self.error(field, format!("a list of numbers, each {SIZE}"))),
            Some(_) => Err(self.error(field, "a list of whole numbers")),
        }
    }

    /// One size for all of `count` blocks, or a list with one for each.
    pub(crate) fn sizes_per_block(
        &mut self,
        field: &str,
        default: usize,
        count: usize,
    ) -> Result<Vec<usize>> {
        match self.value(field) {
            Some(Value::Array(values)) => {
                if values.len() != count {
                    return Err(self.error(field, format!("a number, or a list of {count} (one a block)")));
                }
                self.sizes(field, &[])
            }
            _ => Ok(vec![self.size(field, default)?; count]),
        }
    }

    /// As [`sizes_per_block`](Self::sizes_per_block), where a size may be 0.
    pub(crate) fn counts_per_block(
        &mut self,
        field: &str,
        default: usize,
        count: usize,
    ) -> Result<Vec<usize>> {
        let Some(Value::Array(values)) = self.value(field) else {
            self.not_null(field, SIZE)?;
            return Ok(vec![self.count(field, default)?; count]);
        };
        let counts =
            values.iter().map(|value| if value.as_u64() == Some(0) { Some(0) } else { as_size(value) });
        match counts.collect::<Option<Vec<usize>>>() {
            Some(counts) if counts.len() == count => Ok(counts),
            _ => Err(self.error(field, format!("a number, or a list of {count} (one a block)"))),
        }
    }

    /// One bool for all of `count` blocks, or a list with one for each.
    pub(crate) fn bools_per_block(&mut self, field: &str, default: bool, count: usize) -> Result<Vec<bool>> {
        match self.value(field) {
            None => Ok(vec![default; count]),
            Some(Value::Bool(value)) => Ok(vec![*value; count]),
            Some(Value::Array(values)) if values.len() == count => values
                .iter()
                .map(Value::as_bool)
                .collect::<Option<_>>()
                .ok_or_else(|| self.error(field, "a list of true and false")),
            Some(_) => {
                Err(self.error(field, format!("true, false, or a list of {count} of them (one a block)")))
            }
        }
    }

    /// True or false; null counts as false, as it does in Python.
    pub(crate) fn bool(&mut self, field: &str, default: bool) -> Result<bool> {
        match self.value(field) {
            None => Ok(default && !self.fields.contains_key(field)),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => Err(self.error(field, "true or false")),
        }
    }

    pub(crate) fn number(&mut self, field: &str, default: f64) -> Result<f64> {
        self.not_null(field, "a finite number")?;
        match self.value(field) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() => Ok(number),
                _ => Err(self.error(field, "a finite number")),
            },
        }
    }

    pub(crate) fn optional_string(&mut self, field: &str) -> Result<Option<&'a str>> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.error(field, "a string")),
        }
    }

    pub(crate) fn strings(&mut self, field: &str, default: &[&str]) -> Result<Vec<String>> {
        match self.value(field) {
            None => Ok(default.iter().map(|text| text.to_string()).collect()),
            Some(Value::Array(values)) if !values.is_empty() => values
                .iter()
                .map(|value| value.as_str().map(str::to_string))
                .collect::<Option<_>>()
                .ok_or_else(|| self.error(field, "a list of strings")),
            Some(_) => Err(self.error(field, "a list of strings")),
        }
    }

    /// One of several words; `parse` gives `None` for a word it does not know.
    pub(crate) fn choice<T>(
        &mut self,
        field: &str,
        default: &str,
        known: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T> {
        let word = self.optional_string(field)?.unwrap_or(default);
        parse(word).ok_or_else(|| self.error(field, known))
    }

    /// A field of which only one value is supported; missing and null count as that value where it is the default.
    pub(crate) fn only(&mut self, field: &str, supported: Value) -> Result<()> {
        match self.value(field) {
            None => Ok(()),
            Some(value) if same(value, &supported) => Ok(()),
            Some(_) => Err(self.error(field, format!("{supported} (nothing else is supported)"))),
        }
    }

    /// Fields that diffusers has and this crate does not support: fine while they are missing, null or false.
    pub(crate) fn unsupported(&mut self, fields: &[&str]) -> Result<()> {
        for field in fields {
            if self.value(field).is_some_and(|value| value != &Value::Bool(false)) {
                return Err(self.error(field, "null (this field is not supported)"));
            }
        }
        Ok(())
    }

    /// The field that nobody read, if there is one that is set. Names that begin with an underscore are bookkeeping.
    pub(crate) fn finish(&self) -> Result<()> {
        for (field, value) in self.fields {
            if !field.starts_with('_') && !self.read.contains(field) && !value.is_null() {
                return Err(self.error(field, "no such field (it is not known and could change the result)"));
            }
        }
        Ok(())
    }
}

const SIZE: &str = "a whole number from 1 to 1048576";

fn as_size(value: &Value) -> Option<usize> {
    value.as_u64().filter(|size| (1..=MAX_SIZE).contains(size)).map(|size| size as usize)
}

/// Equal, with 1 and 1.0 the same.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| Some(a) == b.as_f64())
}

/// A value as JSON, cut where it is long.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
