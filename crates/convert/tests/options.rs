//! What options, markers and metadata change, and checkpoints with odd element types or with pieces of other things in them.

// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used)]

#[path = "parity/single_file/case.rs"]
mod case;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_diffusers_convert::{
    ConvertOptions, Dtype, Entry, Heads, Layout, Model, Plan, PredictionType, ReadOptions, Report, Result,
    SchedulerChoice, TensorFile, WriteOptions, convert,
};
use case::{Case, values};
use serde_json::{Map, Value, json};

type Tensors = BTreeMap<String, (Vec<usize>, Dtype, Vec<u8>)>;

/// The tensors of a case, as float16.
fn tensors_of(case: &Case) -> Tensors {
    let one = |(name, shape): (&String, &Vec<usize>)| {
        (name.clone(), (shape.clone(), Dtype::F16, values(name, shape.iter().product())))
    };
    case.original.iter().map(one).collect()
}

fn write(tensors: &Tensors, path: &Path) {
    let views = tensors.iter().map(|(name, (shape, dtype, bytes))| {
        (name.as_str(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn run(source: &Path, destination: &Path, options: &ConvertOptions) -> Result<Report> {
    convert(source, destination, options, &|_| {})
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn scheduler(class: &str, settings: Value) -> Option<SchedulerChoice> {
    let settings: Map<String, Value> = settings.as_object().unwrap().clone();
    Some(SchedulerChoice { class_name: class.to_string(), settings })
}

#[test]
fn the_scheduler_that_is_asked_for() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    write(&tensors_of(&Case::read("small_sd1")), &at("model.safetensors"));
    let options = ConvertOptions {
        scheduler: scheduler("EulerDiscreteScheduler", json!({"use_karras_sigmas": true})),
        ..ConvertOptions::default()
    };
    let report = run(&at("model.safetensors"), &at("folder"), &options).unwrap();
    let said = report.lines().join("\n");
    assert!(
        said.contains("EulerDiscreteScheduler, as asked for") && !said.contains("PNDMScheduler"),
        "{said}"
    );
    let config = json(&at("folder/scheduler/scheduler_config.json"));
    assert_eq!(config["_class_name"], "EulerDiscreteScheduler");
    assert_eq!(config["use_karras_sigmas"], true);
    // The model's own noise schedule is kept.
    assert_eq!(config["beta_end"], 0.012);
    assert_eq!(
        json(&at("folder/model_index.json"))["scheduler"],
        json!(["diffusers", "EulerDiscreteScheduler"])
    );
    // A folder is given another in the same way; its other files are copied.
    fs::write(at("folder/README.md"), "what it is").unwrap();
    let options =
        ConvertOptions { scheduler: scheduler("DDIMScheduler", json!({})), ..ConvertOptions::default() };
    run(&at("folder"), &at("other"), &options).unwrap();
    let (before, after) = ("folder/scheduler/scheduler_config.json", "other/scheduler/scheduler_config.json");
    let mut expected = json(&at(before));
    expected["_class_name"] = json!("DDIMScheduler");
    assert_eq!(json(&at(after)), expected);
    assert_eq!(json(&at("other/model_index.json"))["scheduler"], json!(["diffusers", "DDIMScheduler"]));
    assert_eq!(json(&at("other/unet/config.json")), json(&at("folder/unet/config.json")));
    assert_eq!(fs::read(at("other/README.md")).unwrap(), b"what it is");
    // One model alone has none.
    write(&tensors_of(&Case::read("small_vae")), &at("vae.safetensors"));
    let report = run(&at("vae.safetensors"), &at("vae"), &options).unwrap();
    assert!(
        report.lines().iter().any(|line| line.contains("has no scheduler: DDIMScheduler")),
        "{:?}",
        report.lines()
    );
}

#[test]
fn the_schedulers_of_families_can_take_each_others_places() {
    // As the published configs, which say these for whichever scheduler is made from them: DDIM's own default clips samples.
    for name in ["small_sd1", "small_inpainting", "small_sd2", "small_sdxl", "small_refiner"] {
        let scheduler = Case::read(name).model(&ReadOptions::default()).unwrap().scheduler.unwrap();
        assert_eq!(scheduler["clip_sample"], false, "{name}");
        assert_eq!(scheduler["set_alpha_to_one"], false, "{name}");
        assert_eq!(scheduler["skip_prk_steps"], true, "{name}");
        assert_eq!(scheduler["steps_offset"], 1, "{name}");
    }
}

#[test]
fn attention_heads_that_are_asked_for() {
    let heads = |name: &str, heads| {
        Case::read(name).model(&ReadOptions { heads: Some(heads), ..ReadOptions::default() })
    };
    let field =
        |model: &Model, folder: &str| model.component(folder).unwrap().config["attention_head_dim"].clone();
    // In spite of its name the field counts heads, of 32 and 64 channels here.
    assert_eq!(field(&heads("small_sd1", Heads::Count(4)).unwrap(), "unet"), json!(4));
    assert_eq!(field(&heads("small_sd1", Heads::Width(16)).unwrap(), "unet"), json!([2, 4]));
    assert_eq!(field(&heads("small_controlnet", Heads::Width(8)).unwrap(), "controlnet"), json!([4, 8]));
    assert_eq!(field(&heads("small_unet", Heads::Count(2)).unwrap(), "unet"), json!(2));
    for refused in [Heads::Count(0), Heads::Width(0), Heads::Count(3), Heads::Width(128)] {
        let message = heads("small_sd1", refused).unwrap_err().to_string();
        assert!(
            message.contains("a level of 32 channels cannot be split") && message.starts_with("model."),
            "{message}"
        );
    }
}

#[test]
fn options_change_what_a_folder_says() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    write(&tensors_of(&Case::read("small_sd2")), &at("model.safetensors"));
    run(&at("model.safetensors"), &at("folder"), &ConvertOptions::default()).unwrap();
    let read = ReadOptions {
        prediction_type: Some(PredictionType::Epsilon),
        heads: Some(Heads::Count(2)),
        use_ema: true,
        ..ReadOptions::default()
    };
    let options = ConvertOptions { read, ..ConvertOptions::default() };
    let report = run(&at("folder"), &at("other"), &options).unwrap();
    assert!(report.lines().iter().any(|line| line.contains("no EMA weights")), "{:?}", report.lines());
    assert_eq!(json(&at("folder/scheduler/scheduler_config.json"))["prediction_type"], "v_prediction");
    assert_eq!(json(&at("other/scheduler/scheduler_config.json"))["prediction_type"], "epsilon");
    assert_eq!(json(&at("other/unet/config.json"))["attention_head_dim"], 2);
    run(&at("folder"), &at("one.safetensors"), &options).unwrap();
    let metadata = TensorFile::open(at("one.safetensors")).unwrap().metadata().clone();
    assert_eq!(metadata["modelspec.prediction_type"], "epsilon");
    assert_eq!(metadata["modelspec.architecture"], "stable-diffusion-v2-512");
}

/// stable-diffusion.cpp and ComfyUI know SDXL's that predict velocity by a tensor without values, and by nothing else.
#[test]
fn markers_of_velocity_prediction_are_written_for_xl() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let mut tensors = tensors_of(&Case::read("small_sdxl"));
    write(&tensors, &at("plain.safetensors"));
    tensors.insert("v_pred".to_string(), (vec![0], Dtype::F32, Vec::new()));
    write(&tensors, &at("v.safetensors"));
    tensors.insert("ztsnr".to_string(), (vec![0], Dtype::F32, Vec::new()));
    write(&tensors, &at("noise.safetensors"));
    for (name, markers) in [("plain", vec![]), ("v", vec!["v_pred"]), ("noise", vec!["v_pred", "ztsnr"])] {
        let (folder, back) = (at(&format!("{name}-folder")), at(&format!("{name}-back.safetensors")));
        run(&at(&format!("{name}.safetensors")), &folder, &ConvertOptions::default()).unwrap();
        run(&folder, &back, &ConvertOptions::default()).unwrap();
        let file = TensorFile::open(&back).unwrap();
        let found: Vec<_> =
            ["v_pred", "ztsnr"].into_iter().filter(|marker| file.get(marker).is_some()).collect();
        assert_eq!(found, markers, "{name}");
        assert!(found.iter().all(|marker| file.get(marker).unwrap().shape == [0]));
        // As safetensors' own reader has it.
        let bytes = fs::read(&back).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.len(), file.tensors().len());
        let again = at(&format!("{name}-again"));
        run(&back, &again, &ConvertOptions::default()).unwrap();
        let config = "scheduler/scheduler_config.json";
        assert_eq!(json(&again.join(config)), json(&folder.join(config)), "{name}");
    }
}

#[test]
fn doubles_and_eight_bits_are_kept_or_converted() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let whole = tensors_of(&Case::read("small_vae"));
    let stem = "diffusion_pytorch_model.safetensors";
    for (dtype, width) in [(Dtype::F64, 8), (Dtype::F8_E4M3, 1), (Dtype::F8_E5M2, 1), (Dtype::BF16, 2)] {
        let mut tensors = whole.clone();
        for (_, stored, bytes) in tensors.values_mut() {
            // One half in every number: its bytes in each type.
            let half: &[u8] = match dtype {
                Dtype::F64 => &[0, 0, 0, 0, 0, 0, 0xe0, 0x3f],
                Dtype::F8_E4M3 => &[0x30],
                Dtype::F8_E5M2 => &[0x38],
                _ => &[0x00, 0x3f],
            };
            assert_eq!(half.len(), width);
            *bytes = half.repeat(bytes.len() / 2);
            *stored = dtype;
        }
        let file = at(&format!("{dtype}.safetensors"));
        write(&tensors, &file);
        for (wanted, expected) in
            [(None, dtype), (Some(Dtype::F32), Dtype::F32), (Some(Dtype::F16), Dtype::F16)]
        {
            let folder = at(&format!("{dtype}-{wanted:?}"));
            let write = WriteOptions { dtype: wanted, ..WriteOptions::default() };
            run(&file, &folder, &ConvertOptions { write, ..ConvertOptions::default() }).unwrap();
            let converted = TensorFile::open(folder.join(stem)).unwrap();
            assert!(converted.tensors().iter().all(|tensor| tensor.dtype == expected));
            let half: &[u8] = match wanted {
                Some(Dtype::F32) => &[0, 0, 0, 0x3f],
                Some(_) => &[0, 0x38],
                None => continue,
            };
            let bytes = converted.bytes("decoder.conv_in.bias").unwrap();
            assert!(bytes.chunks(half.len()).all(|one| one == half), "{dtype} {wanted:?}");
        }
    }
    // Integers among weights are no weights: they stay what they are, or are told.
    let mut tensors = whole;
    let (_, stored, bytes) = tensors.get_mut("decoder.conv_in.bias").unwrap();
    (*stored, *bytes) = (Dtype::I64, vec![0; bytes.len() * 4]);
    write(&tensors, &at("integers.safetensors"));
    let write_options = WriteOptions { dtype: Some(Dtype::F32), ..WriteOptions::default() };
    let options = ConvertOptions { write: write_options, ..ConvertOptions::default() };
    run(&at("integers.safetensors"), &at("integers"), &options).unwrap();
    let converted = TensorFile::open(at("integers").join(stem)).unwrap();
    assert_eq!(converted.get("decoder.conv_in.bias").unwrap().dtype, Dtype::I64);
    assert_eq!(converted.get("decoder.conv_in.weight").unwrap().dtype, Dtype::F32);
}

#[test]
fn position_ids_of_any_type_are_left_out() {
    let case = Case::read("small_sd1");
    let name = "cond_stage_model.transformer.text_model.embeddings.position_ids";
    assert!(case.original.contains_key(name));
    for (dtype, shape) in [(Dtype::I64, vec![1, 77]), (Dtype::F32, vec![1, 77]), (Dtype::F16, vec![77])] {
        let inventory = case.original.iter().map(|(other, usual)| {
            let entry = if other == name {
                Entry::new(&shape[..], dtype)
            } else {
                Entry::new(&usual[..], Dtype::F16)
            };
            (other.clone(), entry)
        });
        let options = ReadOptions::default();
        let model = Model::from_inventory("model", inventory.collect(), &BTreeMap::new(), &options).unwrap();
        assert!(model.left_out.iter().any(|one| one.name == name && one.reason.contains("positions")));
    }
}

/// What people's tools leave in checkpoints is listed with a reason, and stops nothing.
#[test]
fn pieces_of_other_things_are_left_out_and_told() {
    for (name, extra, reason) in [
        ("small_sd1", "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "LoRA"),
        ("small_sd1", "bundle_emb.badhand.string_to_param.*", "embedding"),
        ("small_sd2", "cond_stage_model.model.visual.conv1.weight", "picture side"),
        ("small_sdxl", "conditioner.embedders.1.model.visual.proj", "picture side"),
        ("small_sdxl", "conditioner.embedders.1.model.logit_scale", "comparing texts"),
        ("small_sd1", "cond_stage_model.logit_scale", "comparing texts"),
        ("small_sd1", "model_ema.num_updates", "EMA"),
        ("small_sd1", "first_stage_model.loss.discriminator.main.0.weight", "training loss"),
        ("small_sd1", "optimizer.param_groups", "no tensor of a known model"),
    ] {
        let mut case = Case::read(name);
        case.original.insert(extra.to_string(), vec![4]);
        let model = case.model(&ReadOptions::default()).unwrap();
        let told = model.left_out.iter().find(|one| one.name == extra).unwrap();
        assert!(told.reason.contains(reason), "{extra}: {}", told.reason);
        assert!(Plan::new(&model, Layout::Original).tensors().all(|(_, tensor)| tensor.name != extra));
    }
}

#[test]
fn a_checkpoint_with_pieces_of_loras_and_embeddings_is_a_checkpoint() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let mut tensors = tensors_of(&Case::read("small_sd1"));
    for part in ["lora_down.weight", "lora_up.weight", "alpha"] {
        let name = format!("lora_unet_mid_block_attentions_0_proj_in.{part}");
        tensors.insert(name, (vec![1, 1], Dtype::F16, vec![0; 2]));
    }
    tensors.insert("bundle_emb.hands.string_to_param.*".to_string(), (vec![1, 1], Dtype::F16, vec![0; 2]));
    write(&tensors, &at("model.safetensors"));
    let report = run(&at("model.safetensors"), &at("folder"), &ConvertOptions::default()).unwrap();
    assert!(at("folder/model_index.json").exists());
    assert!(
        report.lines().iter().any(|line| line.contains("lora_unet_mid") && line.contains("LoRA")),
        "{:?}",
        report.lines()
    );
}
