//! Single file to folder and back: the same tensors, bit for bit, whole files, and nothing left behind where it fails.

// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used)]

#[path = "parity/single_file/case.rs"]
mod case;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_diffusers_convert::{
    Checkpoint, ConvertOptions, Dtype, Model, PredictionType, ReadOptions, Report, Result, WriteOptions,
    convert,
};
use case::{Case, values};

/// Writes the case as a checkpoint of float16 tensors.
fn write_case(case: &Case, path: &Path) {
    let bytes: BTreeMap<&String, Vec<u8>> =
        case.original.iter().map(|(name, shape)| (name, values(name, shape.iter().product()))).collect();
    write_tensors(
        path,
        bytes.iter().map(|(name, bytes)| (name.as_str(), case.original[*name].clone(), &bytes[..])),
    );
}

fn write_tensors<'a>(path: &Path, tensors: impl Iterator<Item = (&'a str, Vec<usize>, &'a [u8])>) {
    let views: Vec<_> = tensors
        .map(|(name, shape, bytes)| {
            (name, safetensors::tensor::TensorView::new(Dtype::F16, shape, bytes).unwrap())
        })
        .collect();
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn run(source: &Path, destination: &Path, options: &ConvertOptions) -> Result<Report> {
    convert(source, destination, options, &|_| {})
}

fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Dtype, Vec<u8>)> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let one = |info: &candle_diffusers_convert::TensorInfo| {
        let bytes = checkpoint.bytes(&info.name).unwrap().to_vec();
        (info.name.clone(), (info.shape.clone(), info.dtype, bytes))
    };
    checkpoint.tensors().map(|(_, info)| one(info)).collect()
}

/// All files of a folder with their contents.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            all.extend(
                files(&entry.path()).into_iter().map(|(path, bytes)| (format!("{name}/{path}"), bytes)),
            );
        } else {
            all.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    all
}

#[test]
fn folder_to_file_to_folder_is_byte_identical() {
    for name in [
        "small_sd1",
        "small_inpainting",
        "small_sd2",
        "small_sdxl",
        "small_refiner",
        "small_controlnet",
        "small_vae",
        "small_clip",
        "small_open_clip",
        "small_unet",
    ] {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let case = Case::read(name);
        write_case(&case, &at("model.safetensors"));
        let keep = ConvertOptions::default();
        run(&at("model.safetensors"), &at("folder"), &keep).unwrap();
        run(&at("folder"), &at("back.safetensors"), &keep).unwrap();
        run(&at("back.safetensors"), &at("again"), &keep).unwrap();
        let (first, second) = (files(&at("folder")), files(&at("again")));
        assert_eq!(first.keys().collect::<Vec<_>>(), second.keys().collect::<Vec<_>>(), "{name}");
        for (file, bytes) in &first {
            if !file.ends_with(".safetensors") {
                let texts = [bytes, &second[file]].map(|bytes| String::from_utf8_lossy(bytes));
                assert_eq!(texts[0], texts[1], "{name}: {file}");
                continue;
            }
            // The order of tensors is that of the source; all else is the same.
            assert_eq!(tensors(&at("folder").join(file)), tensors(&at("again").join(file)), "{name}: {file}");
        }
        // The file has what the source had, but for what was left out.
        let (source, back) = (tensors(&at("model.safetensors")), tensors(&at("back.safetensors")));
        for (tensor, contents) in &back {
            assert_eq!(source[tensor], *contents, "{name}: {tensor}");
        }
        let left_out = case.model(&ReadOptions::default()).unwrap().left_out;
        assert_eq!(back.len() + left_out.len(), source.len(), "{name}");
    }
}

#[test]
fn shards_variant_and_dtype() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    write_case(&Case::read("small_sdxl"), &at("model.safetensors"));
    let write = WriteOptions {
        dtype: Some(Dtype::F32),
        variant: Some("full".to_string()),
        max_shard_size: Some(1_000_000),
        overwrite: false,
        sync: true,
    };
    let options = ConvertOptions { write, ..ConvertOptions::default() };
    run(&at("model.safetensors"), &at("folder"), &options).unwrap();
    let unet = at("folder").join("unet");
    let index = unet.join("diffusion_pytorch_model.safetensors.index.full.json");
    let whole = tensors(&index);
    let files = files(&unet);
    let shards: Vec<_> = files.keys().filter(|name| name.ends_with(".safetensors")).collect();
    assert!(
        shards.len() > 1 && shards[0].starts_with("diffusion_pytorch_model.full-00001-of-000"),
        "{shards:?}"
    );
    assert!(whole.values().all(|(_, dtype, _)| *dtype == Dtype::F32));
    // From these float32 shards back to the very bytes of the source: every float16 is a float32.
    let halves = WriteOptions { dtype: Some(Dtype::F16), ..WriteOptions::default() };
    let back = ConvertOptions { write: halves, ..ConvertOptions::default() };
    run(&at("folder"), &at("back.safetensors"), &back).unwrap();
    let source = tensors(&at("model.safetensors"));
    for (name, contents) in tensors(&at("back.safetensors")) {
        assert_eq!(source[&name], contents, "{name}");
    }
}

#[test]
fn a_folder_becomes_another_folder_with_all_its_other_files() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    write_case(&Case::read("small_sd1"), &at("model.safetensors"));
    run(&at("model.safetensors"), &at("folder"), &ConvertOptions::default()).unwrap();
    fs::write(at("folder").join("README.md"), "what it is").unwrap();
    let write = WriteOptions { max_shard_size: Some(100_000), ..WriteOptions::default() };
    run(&at("folder"), &at("split"), &ConvertOptions { write, ..ConvertOptions::default() }).unwrap();
    let (before, after) = (files(&at("folder")), files(&at("split")));
    for (name, bytes) in before.iter().filter(|(name, _)| !name.ends_with(".safetensors")) {
        assert_eq!(after.get(name), Some(bytes), "{name}");
    }
    let stem = "unet/diffusion_pytorch_model.safetensors";
    let split = tensors(&at("split").join(format!("{stem}.index.json")));
    assert_eq!(split, tensors(&at("folder").join(stem)));
}

#[test]
fn configs_name_the_dtype_that_the_weights_have() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    write_case(&Case::read("small_sd1"), &at("model.safetensors"));
    run(&at("model.safetensors"), &at("folder"), &ConvertOptions::default()).unwrap();
    let config = |folder: &str| at(folder).join("text_encoder/config.json");
    let mut fields: serde_json::Value = serde_json::from_slice(&fs::read(config("folder")).unwrap()).unwrap();
    fields["dtype"] = "float16".into();
    fs::write(config("folder"), fields.to_string()).unwrap();
    for (to, dtype, expected) in [
        ("same", None, "float16"),
        ("wide", Some(Dtype::F32), "float32"),
        ("brain", Some(Dtype::BF16), "bfloat16"),
    ] {
        let write = WriteOptions { dtype, ..WriteOptions::default() };
        run(&at("folder"), &at(to), &ConvertOptions { write, ..ConvertOptions::default() }).unwrap();
        let written: serde_json::Value = serde_json::from_slice(&fs::read(config(to)).unwrap()).unwrap();
        assert_eq!(written["dtype"], expected);
    }
}

#[test]
fn ema_weights_by_option() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let case = Case::read("small_sd1");
    let mut all: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (name, shape) in &case.original {
        all.insert(name.clone(), (shape.clone(), values(name, shape.iter().product())));
        if let Some(rest) = name.strip_prefix("model.") {
            let ema = format!("model_ema.{}", rest.replace('.', ""));
            all.insert(ema.clone(), (shape.clone(), values(&ema, shape.iter().product())));
        }
    }
    let views = all.iter().map(|(name, (shape, bytes))| (name.as_str(), shape.clone(), &bytes[..]));
    write_tensors(&at("both.safetensors"), views);
    for (use_ema, source) in [
        (false, "model.diffusion_model.input_blocks.0.0.weight"),
        (true, "model_ema.diffusion_modelinput_blocks00weight"),
    ] {
        let read = ReadOptions { use_ema, ..ReadOptions::default() };
        let folder = at(&format!("folder-{use_ema}"));
        let report =
            run(&at("both.safetensors"), &folder, &ConvertOptions { read, ..ConvertOptions::default() })
                .unwrap();
        let unet = tensors(&folder.join("unet/diffusion_pytorch_model.safetensors"));
        assert_eq!(unet["conv_in.weight"].2, all[source].1);
        let other = if use_ema { "live weights" } else { "EMA weights" };
        assert!(report.left_out.iter().filter(|one| one.reason.starts_with(other)).count() > 100);
    }
}

#[test]
fn what_the_model_predicts_is_told_by_flag_marker_or_family() {
    let case = Case::read("small_sd2");
    let assumed = case.model(&ReadOptions::default()).unwrap();
    assert_eq!(assumed.scheduler.as_ref().unwrap()["prediction_type"], "v_prediction");
    assert!(
        assumed.notes.iter().any(|note| note.contains("--prediction-type epsilon")),
        "{:?}",
        assumed.notes
    );
    let asked = ReadOptions { prediction_type: Some(PredictionType::Epsilon), ..ReadOptions::default() };
    let base = case.model(&asked).unwrap();
    assert_eq!(base.scheduler.unwrap()["prediction_type"], "epsilon");
    assert_eq!(base.components[0].config["sample_size"], 64);
    let mut marked = Case::read("small_sdxl");
    marked.original.insert("v_pred".to_string(), vec![]);
    marked.original.insert("ztsnr".to_string(), vec![]);
    let model = marked.model(&ReadOptions::default()).unwrap();
    let scheduler = model.scheduler.unwrap();
    assert_eq!(scheduler["prediction_type"], "v_prediction");
    assert_eq!(scheduler["rescale_betas_zero_snr"], true);
}

#[test]
fn values_that_are_not_numbers_are_told() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let case = Case::read("small_vae");
    let all: BTreeMap<&String, Vec<u8>> = case
        .original
        .iter()
        .map(|(name, shape)| {
            let mut bytes = values(name, shape.iter().product());
            if name == "decoder.conv_in.weight" {
                bytes[2..4].copy_from_slice(&0x7e00_u16.to_le_bytes());
            }
            (name, bytes)
        })
        .collect();
    let views = all.iter().map(|(name, bytes)| (name.as_str(), case.original[*name].clone(), &bytes[..]));
    write_tensors(&at("model.safetensors"), views);
    for (dtype, folder) in [(None, "kept"), (Some(Dtype::BF16), "converted")] {
        let write = WriteOptions { dtype, ..WriteOptions::default() };
        let options = ConvertOptions { write, ..ConvertOptions::default() };
        let report = run(&at("model.safetensors"), &at(folder), &options).unwrap();
        assert_eq!(report.not_finite, ["decoder.conv_in.weight"]);
        let warned = report
            .lines()
            .iter()
            .any(|line| line.starts_with("warning:") && line.contains("decoder.conv_in"));
        assert!(warned);
    }
}

#[test]
fn a_destination_that_exists_is_kept_unless_overwritten() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    write_case(&Case::read("small_vae"), &at("model.safetensors"));
    let keep = ConvertOptions::default();
    let overwrite =
        ConvertOptions { write: WriteOptions { overwrite: true, ..WriteOptions::default() }, ..keep.clone() };
    run(&at("model.safetensors"), &at("folder"), &keep).unwrap();
    fs::write(at("folder").join("mine.txt"), "old").unwrap();
    let refused = run(&at("model.safetensors"), &at("folder"), &keep).unwrap_err().to_string();
    assert!(refused.contains("exists already"), "{refused}");
    assert!(at("folder").join("mine.txt").exists());
    run(&at("model.safetensors"), &at("folder"), &overwrite).unwrap();
    assert!(!at("folder").join("mine.txt").exists());
    // A folder that is no model's is never replaced, nor is one by a file.
    fs::create_dir(at("home")).unwrap();
    fs::write(at("home").join("letter.txt"), "dear").unwrap();
    assert!(run(&at("model.safetensors"), &at("home"), &overwrite).is_err());
    assert!(at("home").join("letter.txt").exists());
    fs::create_dir(at("home.safetensors")).unwrap();
    assert!(run(&at("folder"), &at("home.safetensors"), &overwrite).is_err());
    // The source is not replaced by what is made of it.
    for destination in ["folder", "folder/inside", "."] {
        assert!(run(&at("folder"), &at(destination), &overwrite).is_err(), "{destination}");
    }
    assert_eq!(leftovers(place.path()), Vec::<String>::new());
}

#[test]
fn what_a_killed_run_left_goes_with_the_next() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    write_case(&Case::read("small_vae"), &at("model.safetensors"));
    let stale = at(".folder.partial-1");
    fs::create_dir_all(stale.join("content")).unwrap();
    fs::write(stale.join("content/half"), "half").unwrap();
    // Of another destination, and at work.
    fs::create_dir(at(".other.partial-2")).unwrap();
    fs::create_dir(at(".folder.partial-3")).unwrap();
    let lock = fs::File::create(at(".folder.partial-3").join("lock")).unwrap();
    lock.lock().unwrap();
    run(&at("model.safetensors"), &at("folder"), &ConvertOptions::default()).unwrap();
    assert_eq!(leftovers(place.path()), [".folder.partial-3", ".other.partial-2"]);
    // Killed between the two steps of replacing a folder: the old one comes back.
    drop(lock);
    fs::rename(at("folder"), at(".folder.partial-3").join("replaced")).unwrap();
    let refused = run(&at("model.safetensors"), &at("folder"), &ConvertOptions::default()).unwrap_err();
    assert!(refused.to_string().contains("exists already"), "{refused}");
    assert!(at("folder").join("config.json").exists());
}

#[test]
fn nothing_is_left_of_what_cannot_be_read() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::write(at("page.safetensors"), "<!DOCTYPE html><html>Not found</html>").unwrap();
    assert!(run(&at("page.safetensors"), &at("folder"), &ConvertOptions::default()).is_err());
    assert!(run(&at("absent.safetensors"), &at("folder"), &ConvertOptions::default()).is_err());
    assert!(run(place.path(), &at("folder"), &ConvertOptions::default()).is_err());
    let bad = ConvertOptions {
        write: WriteOptions { variant: Some("../x".to_string()), ..WriteOptions::default() },
        ..ConvertOptions::default()
    };
    assert!(run(&at("page.safetensors"), &at("folder"), &bad).is_err());
    assert_eq!(leftovers(place.path()), Vec::<String>::new());
    assert!(!at("folder").exists());
}

fn leftovers(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains(".partial-"))
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn notes_say_what_was_assumed() {
    let model: Model = Case::read("sd15").model(&ReadOptions::default()).unwrap();
    let said = model.notes.join("\n");
    for expected in ["epsilon", "PNDMScheduler", "8 attention heads"] {
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn metadata_tells_what_the_model_predicts() {
    let case = Case::read("small_sd2");
    let predicts = |key: &str, value: &str| {
        let metadata = BTreeMap::from([(key.to_string(), value.to_string())]);
        let options = ReadOptions::default();
        let model = Model::from_inventory("model.ckpt", case.inventory(), &metadata, &options).unwrap();
        model.scheduler.unwrap()["prediction_type"].as_str().unwrap().to_string()
    };
    assert_eq!(predicts("global_step", "875000"), "epsilon");
    assert_eq!(predicts("global_step", "110000"), "v_prediction");
    assert_eq!(predicts("modelspec.prediction_type", "epsilon"), "epsilon");
    assert_eq!(predicts("modelspec.architecture", "stable-diffusion-v2-512"), "epsilon");
    // Configs that are of another model, or no configs at all, change nothing.
    assert_eq!(
        predicts("diffusers.configs", r#"{"unet": {"in_channels": 9}, "scheduler": 3}"#),
        "v_prediction"
    );
    assert_eq!(predicts("diffusers.configs", "{"), "v_prediction");
}

#[test]
fn a_variant_that_is_read_is_not_written() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    write_case(&Case::read("small_sd1"), &at("model.safetensors"));
    let write = WriteOptions { variant: Some("half".to_string()), ..WriteOptions::default() };
    run(&at("model.safetensors"), &at("folder"), &ConvertOptions { write, ..ConvertOptions::default() })
        .unwrap();
    let stem = "unet/diffusion_pytorch_model";
    for other in ["", ".other"] {
        fs::write(at(&format!("folder/{stem}{other}.safetensors")), "other weights").unwrap();
    }
    let options = ConvertOptions { source_variant: Some("half".to_string()), ..ConvertOptions::default() };
    run(&at("folder"), &at("plain"), &options).unwrap();
    let unet = |folder: &str, variant: &str| tensors(&at(&format!("{folder}/{stem}{variant}.safetensors")));
    assert_eq!(unet("plain", ""), unet("folder", ".half"));
}
