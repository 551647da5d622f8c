//! Every file written in every layout and read again: the same layers, the same changes.
//!
//! What is written stays in cargo's folder for tests; `python check_written.py THAT_FOLDER` opens it in the reference libraries.

// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use candle_diffusers_convert::{
    ConvertOptions, Dtype, LoraFile, LoraFormat, LoraLayout, Report, WriteOptions, convert,
};

use super::{check_deltas, folder};

fn place(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("lora_layouts");
    fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

#[track_caller]
fn write(file: &str, format: LoraFormat, to: &str) -> (LoraFile, Report) {
    let destination = place(to);
    let write = WriteOptions { overwrite: true, ..WriteOptions::default() };
    let options = ConvertOptions { write, lora_format: Some(format), ..ConvertOptions::default() };
    let report = convert(&folder().join(file), &destination, &options, &|_| {}).unwrap();
    let (back, source) = LoraFile::open(&destination).unwrap();
    assert_eq!(back.unmatched, Vec::<String>::new());
    check_deltas(&back, source.as_ref(), file);
    (back, report)
}

/// Each file of plain products, with the name that it has in the names of what is written.
const PLAIN: [(&str, &str); 9] = [
    ("diffusers.safetensors", "diffusers"),
    ("diffusers_xl.safetensors", "diffusers_xl"),
    ("unet_adapter.safetensors", "unet_adapter"),
    ("diffusers_dora.safetensors", "diffusers_dora"),
    ("kohya.safetensors", "kohya"),
    ("kohya_original_xl.safetensors", "kohya_original_xl"),
    ("peft", "peft"),
    ("diffusers_oldest.bin", "diffusers_oldest"),
    ("attn_procs.bin", "attn_procs"),
];

fn fixture(file: &str) -> &str {
    if file == "peft" { "peft/adapter_model.safetensors" } else { file }
}

#[test]
fn kohya() {
    for (file, name) in PLAIN {
        let (back, _) = write(fixture(file), LoraFormat::Kohya, &format!("{name}.kohya.safetensors"));
        let is_xl = name.ends_with("_xl");
        let layout = if is_xl { LoraLayout::KohyaOriginal } else { LoraLayout::Kohya };
        assert_eq!(back.layout, layout, "{file}");
        assert!(back.layers.iter().all(|layer| layer.alpha.is_some()), "{file}");
    }
}

#[test]
fn diffusers() {
    for (file, name) in PLAIN {
        let (back, _) = write(fixture(file), LoraFormat::Diffusers, &format!("{name}.diffusers.safetensors"));
        assert_eq!(back.layout, LoraLayout::Diffusers, "{file}");
    }
}

#[test]
fn peft() {
    for (file, name) in PLAIN {
        let (back, _) = write(fixture(file), LoraFormat::Peft, &format!("{name}.peft"));
        assert_eq!((back.layout, back.notes), (LoraLayout::Peft, Vec::new()), "{file}");
    }
}

#[test]
fn peft_in_one_file_has_alpha_folded_in() {
    let (back, report) = write("peft/adapter_model.safetensors", LoraFormat::Peft, "peft.folded.safetensors");
    assert!(back.layers.iter().all(|layer| layer.alpha.is_none()));
    assert!(
        report.notes.iter().any(|note| note.contains("multiplied into the weights of 37 layers")),
        "{report:?}"
    );
}

#[test]
fn lycoris_kinds_have_a_place_in_kohyas_layout_only() {
    for kind in ["loha", "lokr"] {
        let file = format!("peft_{kind}/adapter_model.safetensors");
        write(&file, LoraFormat::Kohya, &format!("{kind}.kohya.safetensors"));
        for format in [LoraFormat::Diffusers, LoraFormat::Peft] {
            let options = ConvertOptions { lora_format: Some(format), ..ConvertOptions::default() };
            let to = place(&format!("{kind}.{}.safetensors", format.name()));
            let error = convert(&folder().join(&file), &to, &options, &|_| {}).unwrap_err().to_string();
            assert!(error.contains("the first unet.down_blocks.0.") && error.contains("kohya"), "{error}");
            assert!(!to.exists());
        }
    }
}

#[test]
fn what_needs_no_change_is_not_changed() {
    let (_, report) = write("kohya.safetensors", LoraFormat::Kohya, "same.kohya.safetensors");
    assert_eq!((report.notes, report.left_out), (Vec::new(), Vec::new()));
    let (original, written) = (folder().join("kohya.safetensors"), place("same.kohya.safetensors"));
    let (original, written) =
        (LoraFile::open_source(&original).unwrap(), LoraFile::open_source(&written).unwrap());
    let (before, after) = (original.inventory(), written.inventory());
    assert_eq!(before.names().collect::<Vec<_>>(), after.names().collect::<Vec<_>>());
    for name in before.names().filter(|name| !name.ends_with(".alpha")) {
        assert_eq!(original.bytes(name).unwrap(), written.bytes(name).unwrap(), "{name}");
    }
    // What the trainer wrote is kept.
    let (before, after) = (original.metadata(), written.metadata());
    assert!(before.iter().all(|(key, value)| after.get(key) == Some(value)), "{after:?}");
}

#[test]
fn other_element_types_leave_alpha_as_it_is() {
    let destination = place("halves.safetensors");
    let write = WriteOptions { overwrite: true, dtype: Some(Dtype::F16), ..WriteOptions::default() };
    let options = ConvertOptions { write, lora_format: Some(LoraFormat::Kohya), ..ConvertOptions::default() };
    convert(&folder().join("kohya.safetensors"), &destination, &options, &|_| {}).unwrap();
    let source = LoraFile::open_source(&destination).unwrap();
    let inventory = source.inventory();
    for name in inventory.names() {
        let dtype = if name.ends_with(".alpha") { Dtype::F32 } else { Dtype::F16 };
        assert_eq!(inventory.get(name).unwrap().dtype, dtype, "{name}");
    }
}

#[test]
fn a_folder_is_for_peft_alone() {
    for format in [None, Some(LoraFormat::Kohya), Some(LoraFormat::Diffusers)] {
        let options = ConvertOptions { lora_format: format, ..ConvertOptions::default() };
        let to = place("no_such_folder");
        let error =
            convert(&folder().join("kohya.safetensors"), &to, &options, &|_| {}).unwrap_err().to_string();
        assert!(error.contains("not a folder") && error.contains("--lora-format peft"), "{error}");
        assert!(!to.exists());
    }
    let options = ConvertOptions { lora_format: Some(LoraFormat::Peft), ..ConvertOptions::default() };
    let to = place("two_models.safetensors");
    let error = convert(&folder().join("kohya.safetensors"), &to, &options, &|_| {}).unwrap_err().to_string();
    assert!(error.contains("unet, text_encoder") && error.contains("folder"), "{error}");
}
