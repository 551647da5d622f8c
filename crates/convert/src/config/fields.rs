use serde_json::{Map, Value};

use crate::{Error, Result};

/// The largest number that a size in a config may be: beyond any model, and small enough that products of a few stay countable.
const LARGEST: usize = 1 << 24;

/// The longest list in a config.
const LONGEST: usize = 64;

/// The fields of one `config.json`, for reading with errors that name file and field.
pub(crate) struct Fields<'a> {
    file: &'a str,
    fields: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(file: &'a str, config: &'a Value) -> Result<Self> {
        let fields = config.as_object().ok_or_else(|| Error::Config {
            file: file.to_string(),
            message: "it should be a JSON object".to_string(),
        })?;
        Ok(Self { file, fields })
    }

    /// What the field has; `None` where it is absent or null.
    pub(crate) fn value(&self, field: &str) -> Option<&'a Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    pub(crate) fn is_null(&self, field: &str) -> bool {
        self.fields.get(field).is_some_and(Value::is_null)
    }

    pub(crate) fn error(&self, field: &str, expected: &str) -> Error {
        let found = self.fields.get(field).map_or("absent".to_string(), Value::to_string);
        Error::Config {
            file: self.file.to_string(),
            message: format!("`{field}` is {found}, expected {expected}"),
        }
    }

    pub(crate) fn size(&self, field: &str, default: usize) -> Result<usize> {
        Ok(self.optional_size(field)?.unwrap_or(default))
    }

    pub(crate) fn optional_size(&self, field: &str) -> Result<Option<usize>> {
        self.value(field).map(|value| self.as_size(field, value)).transpose()
    }

    pub(crate) fn bool(&self, field: &str, default: bool) -> Result<bool> {
        match self.value(field) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.error(field, "true or false")),
        }
    }

    pub(crate) fn text(&self, field: &str, default: &'a str) -> Result<&'a str> {
        match self.value(field) {
            None => Ok(default),
            Some(value) => value.as_str().ok_or_else(|| self.error(field, "text")),
        }
    }

    pub(crate) fn texts(&self, field: &str, default: &[&'a str]) -> Result<Vec<&'a str>> {
        let Some(value) = self.value(field) else {
            return Ok(default.to_vec());
        };
        let texts = value.as_array().filter(|values| (1..=LONGEST).contains(&values.len()));
        let texts = texts.and_then(|values| values.iter().map(Value::as_str).collect());
        texts.ok_or_else(|| self.error(field, "a list of names"))
    }

    pub(crate) fn sizes(&self, field: &str, default: &[usize]) -> Result<Vec<usize>> {
        let Some(value) = self.value(field) else {
            return Ok(default.to_vec());
        };
        let values = value.as_array().filter(|values| (1..=LONGEST).contains(&values.len()));
        let values = values.ok_or_else(|| self.error(field, "a list of sizes"))?;
        values.iter().map(|value| self.as_size(field, value)).collect()
    }

    /// A size for all blocks or a list with one for each.
    pub(crate) fn sizes_per_block(&self, field: &str, default: usize, blocks: usize) -> Result<Vec<usize>> {
        match self.value(field) {
            None => Ok(vec![default; blocks]),
            Some(value @ Value::Number(_)) => Ok(vec![self.as_size(field, value)?; blocks]),
            Some(_) => match self.sizes(field, &[])? {
                sizes if sizes.len() == blocks => Ok(sizes),
                _ => Err(self.error(field, &format!("a size or a list of {blocks}"))),
            },
        }
    }

    /// A size for all blocks, or a list with, for each, a size or a list of them.
    pub(crate) fn depths(&self, field: &str, blocks: usize) -> Result<Option<Vec<Depth>>> {
        let one = |value: &Value| match value {
            Value::Array(values) if (1..=LONGEST).contains(&values.len()) => {
                values.iter().map(|value| self.as_size(field, value)).collect::<Result<_>>().map(Depth::Each)
            }
            value => self.as_count(field, value).map(Depth::All),
        };
        match self.value(field) {
            None => Ok(None),
            Some(Value::Array(values)) if values.len() == blocks => {
                values.iter().map(one).collect::<Result<_>>().map(Some)
            }
            Some(Value::Array(_)) => Err(self.error(field, &format!("a list of {blocks}"))),
            Some(value) => Ok(Some(vec![one(value)?; blocks])),
        }
    }

    fn as_size(&self, field: &str, value: &Value) -> Result<usize> {
        match self.as_count(field, value)? {
            0 => Err(self.error(field, "more than 0")),
            size => Ok(size),
        }
    }

    fn as_count(&self, field: &str, value: &Value) -> Result<usize> {
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.filter(|size| *size <= LARGEST)
            .ok_or_else(|| self.error(field, "a whole number of a sensible size"))
    }
}

/// How many transformer layers follow the residual blocks of one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Depth {
    /// The same after each.
    All(usize),
    /// One number for each.
    Each(Vec<usize>),
}
