use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;

use crate::{Entry, Error, Inventory, Result, Source};

/// A tensor that the source does not have.
#[derive(Debug)]
pub(super) enum Made {
    /// One number in single precision.
    Number(f32),
    /// A tensor of the source with every value multiplied.
    Scaled { tensor: String, dtype: Dtype, factor: f64 },
}

/// A source with tensors that are made when they are asked for.
pub(super) struct WithMade<'s> {
    source: &'s dyn Source,
    made: Vec<Made>,
}

/// No tensor of a file is called so.
const PREFIX: &str = "\0made ";

impl<'s> WithMade<'s> {
    pub(super) fn new(source: &'s dyn Source) -> Self {
        Self { source, made: Vec::new() }
    }

    /// Adds a tensor; gives the name that it is asked for by.
    pub(super) fn add(&mut self, made: Made) -> String {
        self.made.push(made);
        format!("{PREFIX}{}", self.made.len() - 1)
    }

    fn get(&self, tensor: &str) -> Option<&Made> {
        self.made.get(tensor.strip_prefix(PREFIX)?.parse::<usize>().ok()?)
    }
}

impl Source for WithMade<'_> {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn inventory(&self) -> Inventory {
        let entry = |(number, made): (usize, &Made)| match made {
            Made::Number(_) => Some((format!("{PREFIX}{number}"), Entry::new([], Dtype::F32))),
            Made::Scaled { .. } => None,
        };
        self.made.iter().enumerate().filter_map(entry).collect()
    }

    fn bytes(&self, tensor: &str) -> Result<Cow<'_, [u8]>> {
        match self.get(tensor) {
            None => self.source.bytes(tensor),
            Some(Made::Number(number)) => Ok(Cow::Owned(number.to_le_bytes().to_vec())),
            Some(Made::Scaled { tensor, dtype, factor }) => {
                let scaled = scaled(&self.source.bytes(tensor)?, *dtype, *factor);
                scaled.map(Cow::Owned).ok_or_else(|| Error::not_readable(self.name(), tensor))
            }
        }
    }

    fn position(&self, tensor: &str) -> Option<(&Path, Range<u64>)> {
        match self.get(tensor) {
            None => self.source.position(tensor),
            Some(_) => None,
        }
    }

    fn release(&self, tensor: &str) {
        match self.get(tensor) {
            None => self.source.release(tensor),
            Some(Made::Scaled { tensor, .. }) => self.source.release(tensor),
            Some(Made::Number(_)) => {}
        }
    }
}

/// The numbers of `bytes` multiplied in double precision and rounded once.
fn scaled(bytes: &[u8], dtype: Dtype, factor: f64) -> Option<Vec<u8>> {
    Some(match dtype {
        Dtype::F64 => bytes
            .as_chunks()
            .0
            .iter()
            .flat_map(|word| (f64::from_le_bytes(*word) * factor).to_le_bytes())
            .collect(),
        Dtype::F32 => {
            let value = |word: &[u8; 4]| (f64::from(f32::from_le_bytes(*word)) * factor) as f32;
            bytes.as_chunks().0.iter().flat_map(|word| value(word).to_le_bytes()).collect()
        }
        Dtype::F16 => {
            let value = |word: &[u8; 2]| f16::from_f64(f64::from(f16::from_le_bytes(*word)) * factor);
            bytes.as_chunks().0.iter().flat_map(|word| value(word).to_le_bytes()).collect()
        }
        Dtype::BF16 => {
            let value = |word: &[u8; 2]| bf16::from_f64(f64::from(bf16::from_le_bytes(*word)) * factor);
            bytes.as_chunks().0.iter().flat_map(|word| value(word).to_le_bytes()).collect()
        }
        _ => return None,
    })
}
