use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;

use super::delta::Delta;
use super::truncate::{Energy, Matrix};
use crate::lora::family::family_of;
use crate::lora::{AdaptedLayer, LoraComponent, LoraFile, LoraFormat, LoraLayout, LoraWeights, TensorRef};
use crate::{Entry, Error, Family, Inventory, Progress, Report, Result, Source, WriteOptions};

/// A LoRA whose tensors are in memory: what [`merge_loras`](super::merge_loras), [`resize_lora`](super::resize_lora) and [`extract_lora`](super::extract_lora)
/// give.
#[derive(Debug)]
pub struct ComputedLora {
    file: LoraFile,
    tensors: BTreeMap<String, (TensorRef, Vec<u8>)>,
    energy: Energy,
}

impl ComputedLora {
    /// A LoRA without layers yet, which messages call `name`.
    pub(super) fn new(name: String, family: Option<Family>) -> Self {
        let file = LoraFile {
            source: name,
            layout: LoraLayout::Kohya,
            family,
            unet: None,
            layers: Vec::new(),
            unmatched: Vec::new(),
            embeddings: Vec::new(),
            metadata: BTreeMap::new(),
            notes: Vec::new(),
        };
        Self { file, tensors: BTreeMap::new(), energy: Energy::default() }
    }

    /// Its layers.
    pub fn layers(&self) -> &[AdaptedLayer] {
        &self.file.layers
    }

    /// The part of the changes' Frobenius norm that is in it, from 0 to 1.
    pub fn kept_norm(&self) -> f64 {
        self.energy.kept_norm()
    }

    /// Keeps what is said in another file beside its tensors, but for what is about its ranks.
    pub(super) fn keep_metadata_of(&mut self, lora: &LoraFile) {
        let about_ranks = |key: &str| {
            ["ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_network_module"].contains(&key)
        };
        let kept = lora.metadata.iter().filter(|(key, _)| !about_ranks(key));
        self.file.metadata = kept.map(|(key, value)| (key.clone(), value.clone())).collect();
    }

    /// Adds one line to what its [`Report`] says.
    pub(super) fn note(&mut self, line: String) {
        self.file.notes.push(line);
    }

    /// Takes the family from the layers, where it is not known yet.
    pub(super) fn find_family(&mut self) {
        let found = self.file.family.or_else(|| family_of(&self.file.layers, &self.file.metadata));
        self.file.family = found;
    }

    pub(super) fn add_energy(&mut self, energy: Energy) {
        self.energy.add(energy);
    }

    /// Notes how much of the changes is kept at a rank that was asked for.
    pub(super) fn note_kept(&mut self, rank: &str) {
        self.note(format!("{rank} keeps {:.1}% of the change (Frobenius norm)", 100.0 * self.kept_norm()));
    }

    /// Adds a layer changed by `up @ down`, in single precision, with alpha equal to the rank.
    pub(super) fn add_product(
        &mut self,
        (component, name): (LoraComponent, &str),
        up: &Matrix,
        down: &Matrix,
        kernel: Option<[usize; 2]>,
    ) {
        let (out, rank, columns) = (up.nrows(), up.ncols(), down.ncols());
        let (mut up_shape, mut down_shape) = (vec![out, rank], vec![rank, columns]);
        if let Some([height, width]) = kernel {
            up_shape.extend([1, 1]);
            down_shape = vec![rank, columns / (height * width).max(1), height, width];
        }
        let prefix = format!("{}.{name}", component.folder());
        let up = self.add_tensor(format!("{prefix}.up"), up_shape, row_major(up));
        let down = self.add_tensor(format!("{prefix}.down"), down_shape, row_major(down));
        self.file.layers.push(AdaptedLayer {
            component,
            name: name.to_string(),
            weights: LoraWeights::Lora { down, up, mid: None },
            alpha: Some(rank as f64),
            rank_stabilized: false,
            dora_scale: None,
        });
    }

    /// Adds a layer changed by a difference of its weight or bias.
    pub(super) fn add_difference(
        &mut self,
        (component, name): (LoraComponent, &str),
        weight: Option<(Vec<usize>, Vec<f64>)>,
        bias: Option<(Vec<usize>, Vec<f64>)>,
    ) {
        let prefix = format!("{}.{name}", component.folder());
        let mut add = |part: &str, values: Option<(Vec<usize>, Vec<f64>)>| {
            values
                .map(|(shape, values)| self.add_tensor(format!("{prefix}.{part}"), shape, values.into_iter()))
        };
        let weights = LoraWeights::Full { weight: add("diff", weight), bias: add("diff_b", bias) };
        self.file.layers.push(AdaptedLayer {
            component,
            name: name.to_string(),
            weights,
            alpha: None,
            rank_stabilized: false,
            dora_scale: None,
        });
    }

    /// Gives the layer that was added last DoRA's lengths.
    pub(super) fn set_dora_scale(&mut self, source: &dyn Source, scale: &TensorRef) -> Result<()> {
        let values = super::delta::read(source, scale)?;
        let Some(last) = self.file.layers.len().checked_sub(1) else { return Ok(()) };
        let layer = &self.file.layers[last];
        let name = format!("{}.{}.dora_scale", layer.component.folder(), layer.name);
        let tensor = self.add_tensor(name, scale.shape.clone(), values.into_iter());
        self.file.layers[last].dora_scale = Some(tensor);
        Ok(())
    }

    fn add_tensor(
        &mut self,
        name: String,
        shape: Vec<usize>,
        values: impl Iterator<Item = f64>,
    ) -> TensorRef {
        let tensor = TensorRef { name: name.clone(), shape, dtype: Dtype::F32 };
        self.tensors
            .insert(name, (tensor.clone(), values.flat_map(|value| (value as f32).to_le_bytes()).collect()));
        tensor
    }

    /// Writes it as [`LoraFile::write`] does, in `options.dtype`, single precision where that is `None`.
    ///
    /// # Errors
    /// As [`LoraFile::write`].
    pub fn write(
        &self,
        destination: &Path,
        format: LoraFormat,
        options: &WriteOptions,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Report> {
        self.file.write(self, destination, format, options, progress)
    }
}

impl Source for ComputedLora {
    fn name(&self) -> &str {
        &self.file.source
    }

    fn inventory(&self) -> Inventory {
        let entry = |(name, (tensor, _)): (&String, &(TensorRef, Vec<u8>))| {
            (name.clone(), Entry::new(tensor.shape.clone(), tensor.dtype))
        };
        self.tensors.iter().map(entry).collect()
    }

    fn bytes(&self, tensor: &str) -> Result<Cow<'_, [u8]>> {
        match self.tensors.get(tensor) {
            Some((_, bytes)) => Ok(Cow::Borrowed(bytes)),
            None => Err(Error::not_readable(self.name(), tensor)),
        }
    }
}

fn row_major(matrix: &Matrix) -> impl Iterator<Item = f64> {
    (0..matrix.nrows()).flat_map(move |row| (0..matrix.ncols()).map(move |column| matrix[(row, column)]))
}

/// `unet.down_blocks.0...`, for messages.
pub(super) fn label(file: &str, component: LoraComponent, name: &str) -> String {
    format!("{file}: layer {}.{name}", component.folder())
}

/// The largest rank that the change of a layer can have.
pub(super) fn largest_rank(delta: &Delta) -> usize {
    let (rows, columns) = delta.shape();
    rows.min(columns)
}
