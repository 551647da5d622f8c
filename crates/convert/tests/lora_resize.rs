//! Resizing LoRAs of every kind: at their full rank the change is the same, in the form that the layer's weight has.

// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used)]

#[path = "parity/lora_layouts/delta.rs"]
mod delta;

use std::path::Path;

use candle_diffusers_convert::{
    AdaptedLayer, Family, LoraFile, LoraWeights, Source, WeightedLora, merge_loras, resize_lora,
};

/// A file that the loaders are tested with, for a small model that is built as Stable Diffusion 1 is.
fn open(kind: &str) -> (LoraFile, Box<dyn Source>) {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../loaders/tests/parity/lora"));
    let (mut lora, source) = LoraFile::open(&folder.join(kind)).unwrap();
    // Its widths do not tell.
    lora.family = Some(Family::StableDiffusion1);
    (lora, source)
}

/// The kernel that a layer of Stable Diffusion 1 has.
fn kernel(name: &str) -> &'static [usize] {
    match name.rsplit('.').next().unwrap() {
        "proj_in" | "proj_out" | "conv_shortcut" => &[1, 1],
        last if last.starts_with("conv") => &[3, 3],
        _ => &[],
    }
}

#[track_caller]
fn check(found: &AdaptedLayer, computed: &dyn Source, wanted: &AdaptedLayer, source: &dyn Source) {
    let LoraWeights::Lora { down, up, mid: None } = &found.weights else { unreachable!("{found:?}") };
    assert_eq!(&down.shape[2..], kernel(&found.name), "{}", found.name);
    assert_eq!(up.shape.len(), down.shape.len(), "{}", found.name);
    let wanted = delta::times_vector(wanted, source);
    let values = delta::times_vector(found, computed);
    let scale = wanted.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    assert_eq!(values.len(), wanted.len(), "{}", found.name);
    for (value, wanted) in values.iter().zip(wanted) {
        assert!((value - wanted).abs() <= 1e-5 * scale, "{}: {value} and {wanted}", found.name);
    }
}

#[test]
fn at_full_rank_every_kind_is_the_same_change() {
    let kinds =
        ["plain", "locon", "locon_mid", "loha", "lokr", "dora"].map(|kind| format!("{kind}.safetensors"));
    for kind in kinds.iter().map(String::as_str).chain(["peft_loha", "peft_lokr"]) {
        let (lora, source) = open(kind);
        let resized = resize_lora(&lora, source.as_ref(), 1000).unwrap();
        assert_eq!(resized.layers().len(), lora.layers.len());
        for (found, wanted) in resized.layers().iter().zip(&lora.layers) {
            check(found, &resized, wanted, source.as_ref());
            let dora = |layer: &AdaptedLayer| layer.dora_scale.as_ref().map(|scale| scale.shape.clone());
            assert_eq!(dora(found), dora(wanted), "{}", found.name);
        }
        assert!((resized.kept_norm() - 1.0).abs() < 1e-9, "{kind}: {}", resized.kept_norm());
        if kind == "dora.safetensors" {
            continue;
        }
        let once = WeightedLora { lora: &lora, source: source.as_ref(), scale: 1.0 };
        let merged = merge_loras(&[once], Some(1000)).unwrap();
        for found in merged.layers() {
            let wanted = lora.layers.iter().find(|layer| layer.name == found.name).unwrap();
            check(found, &merged, wanted, source.as_ref());
        }
    }
}

#[test]
fn a_merged_rank_is_not_higher_than_that_of_the_weight() {
    let (lora, source) = open("locon.safetensors");
    let once = WeightedLora { lora: &lora, source: source.as_ref(), scale: 0.25 };
    let merged = merge_loras(&[once; 4], None).unwrap();
    for (found, wanted) in merged.layers().iter().zip(&lora.layers) {
        check(found, &merged, wanted, source.as_ref());
        let LoraWeights::Lora { down, up, .. } = &found.weights else { unreachable!() };
        let largest = up.shape[0].min(down.shape[1..].iter().product());
        assert_eq!(found.rank(), Some((4 * wanted.rank().unwrap()).min(largest)));
    }
}

#[test]
fn lengths_of_dora_are_not_merged() {
    let (lora, source) = open("dora.safetensors");
    let once = WeightedLora { lora: &lora, source: source.as_ref(), scale: 1.0 };
    for rank in [None, Some(4)] {
        let error = merge_loras(&[once], rank).unwrap_err().to_string();
        assert!(error.contains("dora.safetensors") && error.contains("lengths of DoRA"), "{error}");
    }
}
