//! Small checkpoints in the original single-file layout: names and shapes are kept, values follow from the names.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
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
        self.write_archive(path, dtype, |name| Data::Bytes(bytes(&self.tensor(name, dtype))));
    }

    /// Writes a safetensors file of full size whose values are holes that take no place on disk.
    pub fn write_hollow_safetensors(&self, path: impl AsRef<Path>, dtype: DType) {
        let (mut entries, mut end) = (Vec::new(), 0);
        for (name, shape) in &self.shapes {
            let (start, type_name) = (end, format!("{:?}", self.dtype(name, dtype)));
            end += shape.iter().product::<usize>() * self.dtype(name, dtype).size_in_bytes();
            entries.push(format!(
                r#""{name}":{{"dtype":"{type_name}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
            ));
        }
        let header = format!("{{{}}}", entries.join(","));
        let mut file = fs::File::create(path).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file.set_len((8 + header.len() + end) as u64).unwrap();
    }

    /// As [`write_ckpt`](Self::write_ckpt), with holes as values; smaller than 4 GB.
    pub fn write_hollow_ckpt(&self, path: impl AsRef<Path>, dtype: DType) {
        let size = |name: &str| {
            self.shapes[name].iter().product::<usize>() * self.dtype(name, dtype).size_in_bytes()
        };
        self.write_archive(path, dtype, |name| Data::Hole(size(name)));
    }

    fn write_archive(&self, path: impl AsRef<Path>, dtype: DType, data: impl Fn(&str) -> Data) {
        let mut pickle = b"\x80\x02}(X\x0b\0\0\0global_stepK\x03X\x0a\0\0\0state_dict}(".to_vec();
        for (index, (name, shape)) in self.shapes.iter().enumerate() {
            pickle.extend(text(name));
            pickle.extend(rebuild_tensor(index, self.dtype(name, dtype), shape));
        }
        pickle.extend(b"uu.");
        let mut archive = Archive { file: fs::File::create(path).unwrap(), directory: Vec::new(), count: 0 };
        archive.add("archive/data.pkl", Data::Bytes(pickle));
        for (index, name) in self.shapes.keys().enumerate() {
            archive.add(&format!("archive/data/{index}"), data(name));
        }
        archive.finish();
    }

    fn dtype(&self, name: &str, of_floats: DType) -> DType {
        if name.ends_with("position_ids") { DType::I64 } else { of_floats }
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str, dtype: DType) -> Tensor {
        let shape = self.shapes[name].as_slice();
        let count: usize = shape.iter().product();
        if self.dtype(name, dtype) == DType::I64 {
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
fn rebuild_tensor(index: usize, dtype: DType, shape: &[usize]) -> Vec<u8> {
    let class = match dtype {
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
        &int(shape.iter().product()),
        b"tQ",
        &int(0),
        &ints(shape),
        &ints(&strides),
        b"\x89NtR",
    ]
    .concat()
}

/// What an entry of an archive holds.
enum Data {
    Bytes(Vec<u8>),
    /// So many zeros.
    Hole(usize),
}

/// A zip archive of entries that are stored as they are.
struct Archive {
    file: fs::File,
    directory: Vec<u8>,
    count: u16,
}

impl Archive {
    fn add(&mut self, name: &str, data: Data) {
        let offset = self.file.stream_position().unwrap() as u32;
        let mut crc = Crc::new();
        let size = match &data {
            Data::Bytes(bytes) => {
                crc.update(bytes);
                bytes.len()
            }
            Data::Hole(size) => *size,
        };
        let mut fields = [20_u16, 0, 0, 0, 0].map(u16::to_le_bytes).concat();
        fields.extend([crc.sum(), size as u32, size as u32].map(u32::to_le_bytes).concat());
        fields.extend((name.len() as u16).to_le_bytes());
        let local = [b"PK\x03\x04", fields.as_slice(), &[0; 2], name.as_bytes()].concat();
        self.file.write_all(&local).unwrap();
        match &data {
            Data::Bytes(bytes) => self.file.write_all(bytes).unwrap(),
            Data::Hole(size) => _ = self.file.seek(SeekFrom::Current(*size as i64)).unwrap(),
        }
        let listed =
            [b"PK\x01\x02\x14\0", fields.as_slice(), &[0; 12], &offset.to_le_bytes(), name.as_bytes()];
        self.directory.extend(listed.concat());
        self.count += 1;
    }

    fn finish(mut self) {
        let start = (self.file.stream_position().unwrap() as u32).to_le_bytes();
        let (count, size) = (self.count.to_le_bytes(), (self.directory.len() as u32).to_le_bytes());
        let end = [b"PK\x05\x06\0\0\0\0".as_slice(), &count, &count, &size, &start, &[0; 2]].concat();
        self.file.write_all(&[self.directory, end].concat()).unwrap();
    }
}
