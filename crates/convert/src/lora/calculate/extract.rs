use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

use super::ComputedLora;
use super::computed::label;
use super::delta::{read, rows};
use super::truncate::{LowRank, truncate};
use crate::lora::{LoraComponent, LoraError, LoraFile, TensorRef};
use crate::{
    ComponentSource, Entry, Inventory, Kind, Model, ModelKind, ReadOptions, Result, Source, open_file,
};

/// How a LoRA is extracted.
#[derive(Debug, Clone)]
pub struct ExtractOptions {
    /// The rank of linear layers and of convolutions of 1x1.
    pub rank: usize,
    /// The rank of other convolutions.
    pub conv_rank: usize,
    /// How single files are understood.
    pub read: ReadOptions,
}

/// The LoRA that makes the model `tuned` of the model `base`, as nearly as its ranks allow: for each linear layer and convolution of the UNet
/// and the text encoders the best product for the difference of the weights.
///
/// Each model is a checkpoint in one file or a diffusers folder. Layers that are equal in both are left out; what differs and is no matrix
/// (biases, normalizations) has no place in a LoRA, and is counted in the report.
///
/// # Errors
/// When a model cannot be opened, they are not built alike, they are equal, or there are values that are no numbers.
pub fn extract_lora(base: &Path, tuned: &Path, options: &ExtractOptions) -> Result<ComputedLora> {
    let (base_model, base_parts) = open(base, &options.read)?;
    let (tuned_model, tuned_parts) = open(tuned, &options.read)?;
    let family = match (tuned_model.kind, base_model.kind) {
        (Kind::Pipeline(family, _), _) | (_, Kind::Pipeline(family, _)) => Some(family),
        _ => None,
    };
    let parts = |parts: &Parts| parts.keys().map(|part| part.folder()).collect::<Vec<_>>().join(", ");
    if base_parts.keys().all(|part| !tuned_parts.contains_key(part)) {
        return Err(LoraError::NothingInCommon {
            base: base.display().to_string(),
            tuned: tuned.display().to_string(),
            in_base: parts(&base_parts),
            in_tuned: parts(&tuned_parts),
        }
        .into());
    }
    let source = format!("{} without {}", tuned.display(), base.display());
    let mut lora = ComputedLora::new(source.clone(), family);
    let mut left_over = Vec::new();
    for component in LoraComponent::ALL {
        let (Some(base_part), Some(tuned_part)) = (base_parts.get(&component), tuned_parts.get(&component))
        else {
            if base_parts.contains_key(&component) != tuned_parts.contains_key(&component) {
                lora.note(format!("only one of the models has a {}, which is left out", component.folder()));
            }
            continue;
        };
        let (base_tensors, tuned_tensors) = (base_part.inventory(), tuned_part.inventory());
        check_alike((base, &base_tensors), (tuned, &tuned_tensors), component)?;
        let names: Vec<&str> = tuned_tensors.names().collect();
        let pair = Pair { base: (base_part, &base_tensors), tuned: (tuned_part, &tuned_tensors) };
        let differences: Vec<Result<Difference>> =
            names.par_iter().map(|name| pair.difference(&source, component, name, options)).collect();
        for (name, difference) in names.iter().zip(differences) {
            match difference? {
                Difference::None => {}
                Difference::NoMatrix => left_over.push(format!("{}.{name}", component.folder())),
                Difference::Product(low, kernel) => {
                    let layer = name.strip_suffix(".weight").unwrap_or(name);
                    lora.add_energy(low.energy);
                    lora.add_product((component, layer), &low.up, &low.down, kernel);
                }
            }
        }
    }
    if let Some(first) = left_over.first() {
        lora.note(format!(
            "{} tensors differ that a LoRA has no place for, the first {first}",
            left_over.len()
        ));
    }
    if lora.layers().is_empty() {
        let (base, tuned) = (base.display().to_string(), tuned.display().to_string());
        return Err(match left_over.first().cloned() {
            None => LoraError::Equal { base, tuned },
            Some(first) => LoraError::NoDifferentMatrix { base, tuned, count: left_over.len(), first },
        }
        .into());
    }
    lora.find_family();
    let rank = match options.conv_rank == options.rank {
        true => format!("rank {}", options.rank),
        false => format!("rank {}, of convolutions {},", options.rank, options.conv_rank),
    };
    lora.note_kept(&rank);
    Ok(lora)
}

type Parts = BTreeMap<LoraComponent, ComponentSource>;

/// A model's parts that LoRAs change, by the names that tensors have in diffusers.
fn open(path: &Path, options: &ReadOptions) -> Result<(Model, Parts)> {
    let (model, source): (Model, Arc<dyn Source>) = if path.is_dir() {
        let (model, source) = Model::from_folder(path, None)?;
        (model, Arc::new(source))
    } else {
        let source: Arc<dyn Source> = Arc::from(open_file(path)?);
        if LoraFile::looks_like_one(&source.inventory()) {
            let (file, title) = (path.display().to_string(), "a LoRA".to_string());
            return Err(LoraError::NothingToAdapt { file, title }.into());
        }
        (Model::from_single_file(source.as_ref(), options)?, source)
    };
    let parts = model.components.iter().zip(ComponentSource::all(&model, &source));
    let parts: Parts = parts
        .filter_map(|(component, (folder, part))| match component.place.model {
            ModelKind::UNet => Some((LoraComponent::UNet, part)),
            ModelKind::ClipText { .. } if folder == LoraComponent::TextEncoder2.folder() => {
                Some((LoraComponent::TextEncoder2, part))
            }
            ModelKind::ClipText { .. } => Some((LoraComponent::TextEncoder, part)),
            ModelKind::Vae | ModelKind::ControlNet => None,
        })
        .collect();
    if parts.is_empty() {
        let (file, title) = (path.display().to_string(), model.title());
        return Err(LoraError::NothingToAdapt { file, title }.into());
    }
    Ok((model, parts))
}

/// Fails unless both have the same tensors with the same shapes.
fn check_alike(
    (base, base_tensors): (&Path, &Inventory),
    (tuned, tuned_tensors): (&Path, &Inventory),
    component: LoraComponent,
) -> Result<()> {
    let shape = |tensors: &Inventory, name: &str| tensors.get(name).map(|entry| entry.shape.clone());
    let mut names = base_tensors.names().chain(tuned_tensors.names());
    let Some(name) = names.find(|name| shape(base_tensors, name) != shape(tuned_tensors, name)) else {
        return Ok(());
    };
    let said =
        |tensors| shape(tensors, name).map_or("no such tensor".to_string(), |shape| format!("{shape:?}"));
    Err(LoraError::NotAlike {
        base: base.display().to_string(),
        tuned: tuned.display().to_string(),
        tensor: format!("{}.{name}", component.folder()),
        in_base: said(base_tensors),
        in_tuned: said(tuned_tensors),
    }
    .into())
}

enum Difference {
    None,
    /// There is one, of a tensor that is no linear layer's or convolution's weight.
    NoMatrix,
    Product(LowRank, Option<[usize; 2]>),
}

struct Pair<'a> {
    base: (&'a ComponentSource, &'a Inventory),
    tuned: (&'a ComponentSource, &'a Inventory),
}

impl Pair<'_> {
    fn difference(
        &self,
        source: &str,
        component: LoraComponent,
        name: &str,
        options: &ExtractOptions,
    ) -> Result<Difference> {
        let tensor = |(_, inventory): (&ComponentSource, &Inventory)| {
            let Entry { shape, dtype, .. } = inventory.get(name)?.clone();
            dtype_is_float(dtype).then(|| TensorRef { name: name.to_string(), shape, dtype })
        };
        let (Some(base), Some(tuned)) = (tensor(self.base), tensor(self.tuned)) else {
            return Ok(Difference::None);
        };
        if base.dtype == tuned.dtype && self.base.0.bytes(name)? == self.tuned.0.bytes(name)? {
            self.base.0.release(name);
            self.tuned.0.release(name);
            return Ok(Difference::None);
        }
        if !is_layer(component, name, &tuned.shape) {
            let equal = read(self.base.0, &base)? == read(self.tuned.0, &tuned)?;
            return Ok(if equal { Difference::None } else { Difference::NoMatrix });
        }
        let difference = rows(self.tuned.0, &tuned)? - rows(self.base.0, &base)?;
        if difference.iter().all(|value| *value == 0.0) {
            return Ok(Difference::None);
        }
        let kernel = match tuned.shape[..] {
            [_, _, height, width] => Some([height, width]),
            _ => None,
        };
        let rank = match kernel {
            None | Some([1, 1]) => options.rank,
            Some(_) => options.conv_rank,
        };
        let rank = rank.min(difference.nrows()).min(difference.ncols());
        let what = label(source, component, name);
        Ok(Difference::Product(truncate(&difference, rank, &what)?, kernel))
    }
}

fn dtype_is_float(dtype: safetensors::Dtype) -> bool {
    use safetensors::Dtype::{BF16, F8_E4M3, F8_E5M2, F16, F32, F64};
    matches!(dtype, F64 | F32 | F16 | BF16 | F8_E4M3 | F8_E5M2)
}

/// Whether a tensor is the weight of a linear layer or a convolution that LoRAs change: of text encoders those of the transformer's layers.
fn is_layer(component: LoraComponent, name: &str, shape: &[usize]) -> bool {
    let is_matrix = matches!(shape.len(), 2 | 4) && name.ends_with(".weight");
    is_matrix && (component == LoraComponent::UNet || name.contains("encoder.layers."))
}
