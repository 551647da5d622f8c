//! The lists that export.py writes, and checkpoints with the values that it gives their tensors.

// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used)]
// Each test uses some of it.
#![allow(dead_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use candle_diffusers_convert::{Dtype, Entry, Error, Inventory, Model, ReadOptions, Result, Source};
use flate2::Crc;
use flate2::read::GzDecoder;

/// What a case file lists.
pub(crate) struct Case {
    pub(crate) original: BTreeMap<String, Vec<usize>>,
    /// Folder and name to shape and, for small ones, checksum.
    pub(crate) diffusers: BTreeMap<String, (Vec<usize>, Option<u32>)>,
}

impl Case {
    pub(crate) fn read(name: &str) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/single_file");
        let path = Path::new(folder).join(format!("{name}.txt.gz"));
        let mut text = String::new();
        GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
        let mut case = Self::empty();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let shape: Vec<usize> =
                words[2].split(',').filter(|word| *word != "-").map(|word| word.parse().unwrap()).collect();
            match words[0] {
                "original" => _ = case.original.insert(words[1].to_string(), shape),
                _ => _ = case.diffusers.insert(words[1].to_string(), (shape, words[3].parse().ok())),
            }
        }
        case
    }

    /// A case to be filled.
    pub(crate) fn empty() -> Self {
        Self { original: BTreeMap::new(), diffusers: BTreeMap::new() }
    }

    pub(crate) fn inventory(&self) -> Inventory {
        let entry =
            |(name, shape): (&String, &Vec<usize>)| (name.clone(), Entry::new(shape.clone(), Dtype::F16));
        self.original.iter().map(entry).collect()
    }

    pub(crate) fn model(&self, options: &ReadOptions) -> Result<Model> {
        Model::from_inventory("model.safetensors", self.inventory(), &BTreeMap::new(), options)
    }
}

/// Every tensor has the bytes that the exporter gives it.
impl Source for Case {
    fn name(&self) -> &str {
        "model.safetensors"
    }

    fn inventory(&self) -> Inventory {
        self.inventory()
    }

    fn bytes(&self, tensor: &str) -> Result<Cow<'_, [u8]>> {
        let shape = self
            .original
            .get(tensor)
            .ok_or_else(|| Error::Unreadable { file: self.name().to_string(), tensor: tensor.to_string() })?;
        Ok(Cow::Owned(values(tensor, shape.iter().product())))
    }
}

/// `values` of export.py.
pub(crate) fn values(name: &str, count: usize) -> Vec<u8> {
    let mut crc = Crc::new();
    crc.update(name.as_bytes());
    let seed = u64::from(crc.sum());
    (0..count as u64).flat_map(|i| (((i * 40503 + seed) % 0x7800) as u16).to_le_bytes()).collect()
}
