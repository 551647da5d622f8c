//! Small checkpoints in the original single-file layout: names and shapes are kept, values follow from the names.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Read;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use flate2::Crc;
use flate2::read::GzDecoder;
use half::{bf16, f16};

/// A checkpoint whose values all follow from the names and shapes of its tensors, as in
/// `crates/pipelines/tests/parity/single_file/export.py`.
#[derive(Clone)]
pub struct OriginalCheckpoint {
    /// The shapes of its tensors by their names.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Values that do not follow from the name.
    pub replaced: BTreeMap<String, Vec<f32>>,
}

impl OriginalCheckpoint {
    /// Reads a compressed list of lines `original NAME SHAPE`; other lines are passed over.
    pub fn read(list: impl AsRef<Path>) -> Self {
        let mut text = String::new();
        GzDecoder::new(fs::File::open(list).unwrap()).read_to_string(&mut text).unwrap();
        let mut shapes = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("original ")) {
            let (name, shape) = line.split_once(' ').unwrap();
            let shape =
                shape.split(',').filter(|word| *word != "-").map(|word| word.parse().unwrap()).collect();
            shapes.insert(name.to_string(), shape);
        }
        Self { shapes, replaced: BTreeMap::new() }
    }

    /// Leaves out the tensors whose names begin with `prefix`.
    pub fn without(mut self, prefix: &str) -> Self {
        self.shapes.retain(|name, _| !name.starts_with(prefix));
        self
    }

    /// Writes it as a safetensors file with floats of `dtype`.
    pub fn write_safetensors(&self, path: impl AsRef<Path>, dtype: DType) {
        let tensors: HashMap<&str, Tensor> =
            self.shapes.keys().map(|name| (name.as_str(), self.tensor(name, dtype))).collect();
        candle_core::safetensors::save(&tensors, path).unwrap();
    }

    /// Writes it as torch saves checkpoints of a training run: a zip archive with the tensors under `state_dict`.
    pub fn write_ckpt(&self, path: impl AsRef<Path>, dtype: DType) {
        let mut entries = Vec::new();
        let mut pickle = b"\x80\x02}(X\x0b\0\0\0global_stepK\x03X\x0a\0\0\0state_dict}(".to_vec();
        for (index, (name, shape)) in self.shapes.iter().enumerate() {
            let tensor = self.tensor(name, dtype);
            pickle.extend(text(name));
            pickle.extend(rebuild_tensor(index, &tensor, shape));
            entries.push((format!("archive/data/{index}"), bytes(&tensor)));
        }
        pickle.extend(b"uu.");
        entries.insert(0, ("archive/data.pkl".to_string(), pickle));
        fs::write(path, archive(&entries)).unwrap();
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str, dtype: DType) -> Tensor {
        let shape = self.shapes[name].as_slice();
        let count: usize = shape.iter().product();
        if name.ends_with("position_ids") {
            return Tensor::arange(0, count as i64, &Device::Cpu).unwrap().reshape(shape).unwrap();
        }
        let values = self.replaced.get(name).cloned().unwrap_or_else(|| values(name, shape));
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    }
}

/// `values` of export.py.
fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let mut crc = Crc::new();
    crc.update(name.as_bytes());
    let fan_in: usize = shape.iter().skip(1).product();
    let number = |index: usize| {
        let mut bits = (index as u32).wrapping_mul(0x9e37_79b1).wrapping_add(crc.sum());
        bits = (bits ^ (bits >> 15)).wrapping_mul(0x85eb_ca6b);
        bits = (bits ^ (bits >> 13)).wrapping_mul(0xc2b2_ae35);
        ((bits ^ (bits >> 16)) >> 21) as f32 - 1024.0
    };
    let spread = |exponent: u32| (-(exponent as f32)).exp2();
    let count: usize = shape.iter().product();
    let is_norm_weight = shape.len() == 1 && name.ends_with(".weight");
    (0..count)
        .map(number)
        .map(|number| match shape.len() {
            0 | 1 if !is_norm_weight => number * spread(14),
            0 | 1 => 1.0 + (number / 16.0).floor() * spread(10),
            _ => number * spread(9 + (usize::BITS - fan_in.leading_zeros()) / 2),
        })
        .collect()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let flat = tensor.flatten_all().unwrap();
    match tensor.dtype() {
        DType::F16 => flat.to_vec1::<f16>().unwrap().into_iter().flat_map(f16::to_le_bytes).collect(),
        DType::BF16 => flat.to_vec1::<bf16>().unwrap().into_iter().flat_map(bf16::to_le_bytes).collect(),
        DType::I64 => flat.to_vec1::<i64>().unwrap().into_iter().flat_map(i64::to_le_bytes).collect(),
        _ => flat.to_vec1::<f32>().unwrap().into_iter().flat_map(f32::to_le_bytes).collect(),
    }
}

/// A text as bytes of a pickle.
fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// A tensor whose storage is the entry `index`, as bytes of a pickle.
fn rebuild_tensor(index: usize, tensor: &Tensor, shape: &[usize]) -> Vec<u8> {
    let class = match tensor.dtype() {
        DType::F16 => "HalfStorage",
        DType::BF16 => "BFloat16Storage",
        DType::I64 => "LongStorage",
        _ => "FloatStorage",
    };
    let int = |value: usize| [b"J".as_slice(), &(value as u32).to_le_bytes()].concat();
    let ints = |values: &[usize]| {
        let values: Vec<u8> = values.iter().flat_map(|value| int(*value)).collect();
        [b"(".as_slice(), &values, b"t"].concat()
    };
    let strides: Vec<usize> = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".as_slice(),
        &text("storage"),
        format!("ctorch\n{class}\n").as_bytes(),
        &text(&index.to_string()),
        &text("cpu"),
        &int(tensor.elem_count()),
        b"tQ",
        &int(0),
        &ints(shape),
        &ints(&strides),
        b"\x89NtR",
    ]
    .concat()
}

/// A zip archive of entries that are stored as they are.
fn archive(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut directory = Vec::new();
    for (name, data) in entries {
        let offset = file.len() as u32;
        let mut crc = Crc::new();
        crc.update(data);
        let mut fields = [20_u16, 0, 0, 0, 0].map(u16::to_le_bytes).concat();
        fields.extend([crc.sum(), data.len() as u32, data.len() as u32].map(u32::to_le_bytes).concat());
        fields.extend((name.len() as u16).to_le_bytes());
        file.extend([b"PK\x03\x04", fields.as_slice(), &[0; 2], name.as_bytes(), data].concat());
        directory.extend(
            [b"PK\x01\x02\x14\0", fields.as_slice(), &[0; 12], &offset.to_le_bytes(), name.as_bytes()]
                .concat(),
        );
    }
    let count = (entries.len() as u16).to_le_bytes();
    let (size, start) = ((directory.len() as u32).to_le_bytes(), (file.len() as u32).to_le_bytes());
    [file, directory, [b"PK\x05\x06\0\0\0\0", &count[..], &count, &size, &start, &[0; 2]].concat()].concat()
}
