//! Models loaded straight from single files of every family, beside those of the folders that the files convert to.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_diffusers_convert::{ConvertOptions, Kind, convert};
use candle_diffusers_loaders::{
    ClipTokenizer, Error, LoadOptions, ModelIndex, PredictionType, ReadOptions, Repository, find_weights,
    load_text_encoder, load_text_encoder_with_projection, load_unet, load_vae,
};
use candle_diffusers_models::{TextTime, UNetConditions};
use candle_diffusers_test_support::{OriginalCheckpoint, values};
use serde_json::Value;
use tempfile::TempDir;

const LISTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../convert/tests/parity/single_file");

fn checkpoint(case: &str) -> OriginalCheckpoint {
    OriginalCheckpoint::read(format!("{LISTS}/{case}.txt.gz"))
}

/// A checkpoint as a file, pickled or not, and as the folder that it converts to.
struct Forms {
    folder: Repository,
    files: Vec<Repository>,
    _workplace: TempDir,
}

fn forms(case: &str, dtype: DType) -> Forms {
    let workplace = tempfile::tempdir().unwrap();
    let path = |name: &str| workplace.path().join(name);
    let (safetensors, ckpt, folder) = (path("model.safetensors"), path("model.ckpt"), path("folder"));
    checkpoint(case).write_safetensors(&safetensors, dtype);
    checkpoint(case).write_ckpt(&ckpt, dtype);
    convert(&safetensors, &folder, &ConvertOptions::default(), &|_| {}).unwrap();
    let open = |path: PathBuf| Repository::single_file(path, &ReadOptions::default()).unwrap();
    Forms {
        folder: Repository::folder(folder).unwrap(),
        files: vec![open(safetensors), open(ckpt)],
        _workplace: workplace,
    }
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    values(tensor).into_iter().map(f64::to_bits).collect()
}

/// Every tensor of every component, in each dtype, and every text file.
#[track_caller]
fn check_equal(case: &str, components: &[&str]) {
    for stored in [DType::F32, DType::F16] {
        let Forms { folder, files, _workplace } = forms(case, stored);
        for file in &files {
            for component in components {
                check_component(&folder, file, component);
            }
            let root = folder.path().unwrap();
            let model = file.single_file_model().unwrap();
            for (path, text) in model.text_files() {
                assert!(fs::read(root.join(&path)).unwrap() == text, "{case}: {path}");
                assert!(file.exists(&path) && file.read(&path).unwrap() == text);
            }
            let subfolders = if matches!(model.kind, Kind::Alone(_)) { 0 } else { components.len() };
            assert!(file.list("").len() > subfolders);
        }
    }
}

#[track_caller]
fn check_component(folder: &Repository, file: &Repository, component: &str) {
    let (expected, found) =
        (folder.state_dict(component, None).unwrap(), file.state_dict(component, None).unwrap());
    let names: Vec<&str> = expected.inventory().names().collect();
    assert_eq!(found.inventory().names().collect::<Vec<_>>(), names, "{component}");
    for name in names {
        let shape = &expected.inventory().get(name).unwrap().shape;
        for dtype in [DType::F32, DType::BF16] {
            let load = |state_dict: &candle_diffusers_loaders::StateDict| {
                state_dict.load(name, Some(shape), dtype, &Device::Cpu).unwrap()
            };
            let (expected, found) = (load(&expected), load(&found));
            assert_eq!((found.dims(), found.dtype()), (expected.dims(), dtype), "{component}/{name}");
            assert!(bits(&found) == bits(&expected), "{component}/{name}");
        }
    }
    found.check_all_used().unwrap();
}

#[test]
fn every_family_equals_its_folder_bit_for_bit() {
    let unet_vae_text = ["unet", "vae", "text_encoder"];
    check_equal("small_sd1", &unet_vae_text);
    check_equal("small_inpainting", &unet_vae_text);
    check_equal("small_sd2", &unet_vae_text);
    check_equal("small_sdxl", &["unet", "vae", "text_encoder", "text_encoder_2"]);
    check_equal("small_refiner", &["unet", "vae", "text_encoder_2"]);
    check_equal("small_controlnet", &[""]);
    check_equal("small_vae", &[""]);
}

#[test]
fn the_models_of_sdxl_compute_the_same_bits() {
    let Forms { folder, files, _workplace } = forms("small_sdxl", DType::F32);
    let run = |repository: &Repository| -> Vec<Vec<u64>> {
        let options = LoadOptions::default();
        let random = |shape: &[usize]| {
            let count: usize = shape.iter().product();
            let values: Vec<f32> = (0..count).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 504.0).collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        let ids = Tensor::from_vec((1..78_u32).collect::<Vec<_>>(), (1, 77), &Device::Cpu).unwrap();
        let first = load_text_encoder(repository, "text_encoder", &options).unwrap();
        let second = load_text_encoder_with_projection(repository, "text_encoder_2", &options).unwrap();
        let unet = load_unet(repository, "unet", &options).unwrap();
        let vae = load_vae(repository, "vae", &options).unwrap();
        let first = first.forward(&ids).unwrap().last_hidden_state;
        let second = second.forward(&ids).unwrap();
        let (text_embeds, time_ids) = (random(&[1, 32]), random(&[1, 6]));
        let added = Some(TextTime { text_embeds: &text_embeds, time_ids: &time_ids });
        let conditions = UNetConditions { added, ..Default::default() };
        let latents = random(&[1, 4, 8, 8]);
        let noise = unet.forward(&latents, &[500.0], &random(&[1, 77, 160]), conditions).unwrap();
        let picture = vae.decode(&latents).unwrap();
        [&first, &second.text_embeds, &noise, &picture].map(bits).to_vec()
    };
    let expected = run(&folder);
    assert!(expected.iter().flatten().all(|bits| f64::from_bits(*bits).is_finite()));
    for file in &files {
        assert!(run(file) == expected);
    }
}

#[test]
fn a_vae_alone_is_the_top_of_its_repository() {
    let Forms { folder, files, _workplace } = forms("small_vae", DType::F16);
    for repository in files.iter().chain([&folder]) {
        let vae = load_vae(repository, "", &LoadOptions::default()).unwrap();
        assert_eq!(vae.config().block_out_channels, [32, 64]);
    }
    assert_says(ModelIndex::load(&files[0]), &["model.safetensors is a VAE alone", "diffuse convert"]);
    assert_says(load_unet(&files[0], "unet", &LoadOptions::default()), &["model.safetensors", "config.json"]);
    assert_says(files[0].state_dict("unet", None), &["model.safetensors", "unet", "it is a VAE"]);
}

#[test]
fn averaged_weights_and_what_the_model_predicts_are_taken_as_asked_for() {
    let workplace = tempfile::tempdir().unwrap();
    let path = workplace.path().join("model.safetensors");
    let mut both = checkpoint("small_sd1");
    let ema = |name: &str| format!("model_ema.{}", name["model.".len()..].replace('.', ""));
    let live: Vec<(String, Vec<usize>)> = both
        .shapes
        .iter()
        .filter(|(name, _)| name.starts_with("model.diffusion_model."))
        .map(|(name, shape)| (name.clone(), shape.clone()))
        .collect();
    both.shapes.extend(live.iter().map(|(name, shape)| (ema(name), shape.clone())));
    both.write_safetensors(&path, DType::F32);
    let options = [
        ReadOptions::default(),
        ReadOptions {
            use_ema: true,
            prediction_type: Some(PredictionType::VPrediction),
            ..Default::default()
        },
    ];
    let (original, prediction_types) = ("model.diffusion_model.out.2.weight", ["epsilon", "v_prediction"]);
    for (options, (name, prediction_type)) in
        options.iter().zip([original, &ema(original)].into_iter().zip(prediction_types))
    {
        let repository = Repository::single_file(&path, options).unwrap();
        let unet = repository.state_dict("unet", None).unwrap();
        let found = unet.load("conv_out.weight", None, DType::F32, &Device::Cpu).unwrap();
        assert!(bits(&found) == bits(&both.tensor(name, DType::F32)), "{name}");
        let scheduler: Value = repository.read_json("scheduler/scheduler_config.json").unwrap();
        assert_eq!(scheduler["prediction_type"], prediction_type);
    }
}

#[test]
fn the_tokenizer_is_that_of_clip() {
    let Forms { folder: _, files, _workplace } = forms("small_sdxl", DType::F16);
    for (folder, pad) in [("tokenizer", 49407), ("tokenizer_2", 0)] {
        let ids = ClipTokenizer::load(&files[0], folder).unwrap().encode("a photo of a cat").unwrap().ids;
        assert_eq!(ids[..8], [49406, 320, 1125, 539, 320, 2368, 49407, pad], "{folder}");
    }
}

#[track_caller]
fn assert_says<T>(result: Result<T, Error>, parts: &[&str]) {
    let message = result.err().unwrap().to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn what_is_no_model_is_named_with_what_to_do() {
    let workplace = tempfile::tempdir().unwrap();
    let open = |names: &[&str]| {
        let shapes = names.iter().map(|name| (name.to_string(), vec![4, 2])).collect();
        let path = workplace.path().join("model.safetensors");
        OriginalCheckpoint { shapes, replaced: Default::default() }.write_safetensors(&path, DType::F32);
        Repository::single_file(path, &ReadOptions::default())
    };
    assert_says(
        open(&["lora_unet_mid_block.lora_down.weight", "lora_unet_mid_block.lora_up.weight"]),
        &["model.safetensors is a LoRA file", "--lora FILE"],
    );
    assert_says(open(&["emb_params"]), &["is a textual inversion embedding", "--embedding FILE"]);
    assert_says(open(&["down_blocks.0.resnets.0.conv1.weight"]), &["diffusers' layout", "model_index.json"]);
    assert_says(
        open(&["double_blocks.0.img_attn.qkv.weight"]),
        &["is a Flux checkpoint", "Stable Diffusion"],
    );
    assert_says(open(&["anything"]), &["model.safetensors is not a checkpoint that is known", "anything"]);
    let missing = workplace.path().join("nowhere.ckpt");
    assert_says(Repository::single_file(missing, &ReadOptions::default()), &["nowhere.ckpt"]);
}

#[test]
fn a_single_file_has_no_files_of_weights() {
    let Forms { folder: _, files, _workplace } = forms("small_sd1", DType::F16);
    assert_says(find_weights(&files[0], "unet", None), &["model.safetensors", "state_dict"]);
    let weights = "unet/diffusion_pytorch_model.safetensors";
    assert_says(files[0].open_checkpoint(weights), &["model.safetensors has no unet/"]);
    assert_says(files[0].read("unet/nothing.json"), &["model.safetensors has no unet/nothing.json"]);
    assert_says(Repository::folder(Path::new(files[0].name())), &["is a single file"]);
}

#[cfg(feature = "hub")]
#[test]
fn open_takes_single_files() {
    let Forms { folder: _, files, _workplace } = forms("small_sd1", DType::F16);
    for file in &files {
        let opened = Repository::open(file.name(), None, &mut |_| {}).unwrap();
        assert_eq!(opened.single_file_model().unwrap().title(), "Stable Diffusion 1");
    }
    assert_says(Repository::open("nowhere.bin", None, &mut |_| {}), &["nowhere.bin: there is no such file"]);
}
