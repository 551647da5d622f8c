//! Merged and resized LoRAs, beside what torch makes of the same files.

// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use candle_diffusers_convert::{
    Checkpoint, ComputedLora, LoraComponent, LoraFile, Source, WeightedLora, merge_loras, resize_lora,
};

use super::lora_layouts::{delta::times_vector, folder};

const FILES: [(&str, f64); 2] = [("kohya.safetensors", 0.7), ("kohya_converted.safetensors", -0.3)];

fn open(file: &str) -> (LoraFile, Box<dyn Source>) {
    LoraFile::open(&folder().join(file)).unwrap()
}

/// Fails unless the changes are those that the reference calls `case`.
#[track_caller]
fn check(computed: &ComputedLora, case: &str, rank: Option<usize>) {
    let fixture =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/lora_operations/lora_operations.safetensors");
    let expected = Checkpoint::open(fixture).unwrap();
    assert_eq!(computed.layers().len() * 3, expected.tensors().count());
    for layer in computed.layers() {
        if let Some(rank) = rank {
            assert_eq!(layer.rank(), Some(rank), "{}", layer.name);
        }
        let prefix = if layer.component == LoraComponent::UNet { "lora_unet" } else { "lora_te" };
        let name = format!("{case}|{prefix}_{}", layer.name.replace('.', "_"));
        let bytes = expected.bytes(&name).unwrap_or_else(|| unreachable!("{name}"));
        let wanted: Vec<f64> =
            bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap()).into()).collect();
        let found = times_vector(layer, computed);
        let scale = wanted.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
        assert_eq!(found.len(), wanted.len(), "{name}");
        for (found, wanted) in found.iter().zip(wanted) {
            assert!((found - wanted).abs() <= 1e-5 * scale, "{name}: {found} and {wanted}");
        }
    }
}

#[test]
fn a_resized_lora_is_the_nearest_of_its_rank() {
    let (lora, source) = open(FILES[0].0);
    check(&resize_lora(&lora, source.as_ref(), 1).unwrap(), "resized", Some(1));
}

#[test]
fn a_merged_lora_changes_as_all_do() {
    let opened = FILES.map(|(file, scale)| (open(file), scale));
    let loras = opened.each_ref().map(|((lora, source), scale)| WeightedLora {
        lora,
        source: source.as_ref(),
        scale: *scale,
    });
    check(&merge_loras(&loras, None).unwrap(), "sum", None);
    check(&merge_loras(&loras, Some(64)).unwrap(), "sum", None);
    check(&merge_loras(&loras, Some(1)).unwrap(), "merged", Some(1));
}
