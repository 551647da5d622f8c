//! Extracting a LoRA: a change of low rank comes back, whichever layouts the two models are in.

// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used)]

#[path = "parity/single_file/case.rs"]
mod case;
#[path = "parity/lora_layouts/delta.rs"]
mod delta;

use std::collections::BTreeMap;
use std::path::Path;

use candle_diffusers_convert::{
    ConvertOptions, Dtype, ExtractOptions, LoraFile, LoraFormat, ReadOptions, WriteOptions, convert,
    extract_lora, open_file,
};
use case::Case;

/// Layers by their names in both layouts; the rows and columns of their weights are those of the file.
const CHANGED: [(&str, &str); 3] = [
    (
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    ),
    ("model.diffusion_model.input_blocks.1.0.in_layers.2.weight", "down_blocks.0.resnets.0.conv1"),
    (
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
        "text_model.encoder.layers.0.mlp.fc1",
    ),
];

fn number(seed: usize) -> f32 {
    ((seed * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5
}

/// A change of rank 2, row by row.
fn change(shape: &[usize], layer: usize) -> Vec<f32> {
    let (rows, columns) = (shape[0], shape[1..].iter().product::<usize>());
    let factor = |part: usize, index: usize| number(part * 131 + index * 17 + layer * 1201);
    let value = |row, column| factor(1, row) * factor(2, column) + factor(3, row) * factor(4, column);
    (0..rows)
        .flat_map(|row| (0..columns).map(move |column| (row, column)))
        .map(|(row, column)| value(row, column))
        .collect()
}

/// A small Stable Diffusion 1 in single precision; `norm` is added to one normalization's weights.
fn write_model(path: &Path, is_tuned: bool, norm: f32) -> BTreeMap<String, Vec<usize>> {
    let case = Case::read("small_sd1");
    let bytes: BTreeMap<&String, Vec<u8>> = case
        .original
        .iter()
        .map(|(name, shape)| {
            let mut values: Vec<f32> =
                (0..shape.iter().product()).map(|index| number(index + name.len())).collect();
            if let Some(layer) =
                CHANGED.iter().position(|(original, _)| original == name).filter(|_| is_tuned)
            {
                values.iter_mut().zip(change(shape, layer)).for_each(|(value, change)| *value += change);
            }
            if name.ends_with("input_blocks.1.0.in_layers.0.weight") {
                values[0] += norm;
            }
            (name, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        })
        .collect();
    let views = bytes.iter().map(|(name, bytes)| {
        let shape = case.original[*name].clone();
        (name.as_str(), safetensors::tensor::TensorView::new(Dtype::F32, shape, bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
    case.original
}

fn options(rank: usize) -> ExtractOptions {
    ExtractOptions { rank, conv_rank: rank, read: ReadOptions::default() }
}

#[test]
fn a_change_of_low_rank_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let shapes = write_model(&path("base.safetensors"), false, 0.0);
    write_model(&path("tuned.safetensors"), true, 1.0);
    convert(&path("base.safetensors"), &path("base"), &ConvertOptions::default(), &|_| {}).unwrap();
    let extracted = extract_lora(&path("base"), &path("tuned.safetensors"), &options(2)).unwrap();
    let report = extracted
        .write(&path("lora.safetensors"), LoraFormat::Kohya, &WriteOptions::default(), &|_| {})
        .unwrap();
    let lines = report.lines().join("\n");
    assert!(lines.contains("keeps 100.0%") && lines.contains("1 tensors differ"), "{lines}");
    assert!(lines.contains("unet.down_blocks.0.resnets.0.norm1.weight"), "{lines}");

    let source = open_file(&path("lora.safetensors")).unwrap();
    let lora = LoraFile::read(source.as_ref()).unwrap();
    assert_eq!(lora.layers.len(), CHANGED.len());
    for (index, (original, layer)) in CHANGED.iter().enumerate() {
        let found = lora.layers.iter().find(|found| found.name == *layer).unwrap();
        assert_eq!((found.rank(), found.scaling()), (Some(2), 1.0));
        let columns = shapes[*original][1..].iter().product::<usize>();
        let vector = |row: &[f32]| -> f64 {
            row.iter().enumerate().map(|(column, value)| f64::from(*value) / (column + 1) as f64).sum()
        };
        let wanted: Vec<f64> = change(&shapes[*original], index).chunks(columns).map(vector).collect();
        let scale = wanted.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
        for (found, wanted) in delta::times_vector(found, source.as_ref()).iter().zip(wanted) {
            assert!((found - wanted).abs() <= 1e-5 * scale, "{layer}: {found} and {wanted}");
        }
    }
}

#[test]
fn what_cannot_be_extracted_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write_model(&path("base.safetensors"), false, 0.0);
    let refused = |base: &str, tuned: &str, words: &[&str]| {
        let error = extract_lora(&path(base), &path(tuned), &options(4)).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    refused("base.safetensors", "base.safetensors", &["the same weights"]);
    refused("base.safetensors", "missing.safetensors", &["missing.safetensors"]);
}
