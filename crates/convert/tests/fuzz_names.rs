//! Random changes to the names, shapes and configs of checkpoints of every family: whatever comes of them is a plan that accounts
//! for all tensors, or an error; never a panic, a hang or a memory that fills.
//!
//! A second each by default; `NAMES_FUZZ_SECONDS` makes it longer. Each case follows from its number, so that one that fails, which
//! the message names, is run again by `NAMES_FUZZ_FIRST`. What was found so is a test of its own in `bad_checkpoints.rs` or
//! `bad_folders.rs`.

// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "parity/single_file/case.rs"]
mod case;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_diffusers_convert::{
    ConvertOptions, Dtype, Entry, Heads, Inventory, Layout, Model, Plan, PredictionType, ReadOptions, Values,
    convert,
};
use case::{Case, values};
use serde_json::{Value, json};

/// The cases that changes begin from: two structures of each family, and all kinds of models alone.
const CASES: [&str; 12] = [
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
    "sd15",
    "sdxl_base",
];

/// No case may take longer, on a machine that does other things as well.
const SLOW: Duration = Duration::from_secs(10);

/// Nor may all of them together take more memory, in kB.
const MOST_MEMORY: u64 = 600_000;

/// Xorshift64* (Vigna 2016).
struct Random(u64);

impl Random {
    fn of_case(number: u64) -> Self {
        let mut random = Self(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit.max(1)
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn pick<'a, T: ?Sized>(&mut self, values: &[&'a T]) -> &'a T {
        values[self.below(values.len())]
    }
}

/// Runs cases for the time that is set.
fn fuzz(mut case: impl FnMut(u64) -> bool) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let time = Duration::from_secs(number("NAMES_FUZZ_SECONDS").unwrap_or(1));
    let first = number("NAMES_FUZZ_FIRST").unwrap_or(1);
    let started = Instant::now();
    let (mut cases, mut good) = (0_u64, 0_u64);
    while started.elapsed() < time {
        let begun = Instant::now();
        let number = first + cases;
        // The closures keep what they change in step with each case, so that none is broken after a panic: it ends the test.
        match catch_unwind(std::panic::AssertUnwindSafe(|| case(number))) {
            Ok(is_good) => good += u64::from(is_good),
            Err(_) => panic!("case {number}: run it again by NAMES_FUZZ_FIRST={number}"),
        }
        assert!(begun.elapsed() < SLOW, "case {number} took {:?}", begun.elapsed());
        assert!(peak_memory() < MOST_MEMORY, "case {number}: {} kB", peak_memory());
        cases += 1;
    }
    println!("{cases} cases, {good} of them models; at most {} kB", peak_memory());
    assert!(good > 0, "all cases are refused: they reach nothing");
}

/// The most memory that this process has held, in kB; 0 where the system does not say.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

const PREFIXES: [&str; 12] = [
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.0.model.",
    "conditioner.embedders.1.model.",
    "control_model.",
    "model_ema.diffusion_model",
    "",
    "vae.",
    "transformer.",
];

const NUMBERS: [&str; 10] =
    ["0", "1", "3", "11", "23", "511", "512", "4294967296", "18446744073709551616", "-1"];

const NAMES: [&str; 12] = [
    "v_pred",
    "ztsnr",
    "betas",
    "",
    ".",
    "model.diffusion_model.",
    "model.diffusion_model.input_blocks.511.0.in_layers.2.weight",
    "model.diffusion_model.output_blocks.99.1.transformer_blocks.511.attn2.to_k.weight",
    "model_ema.diffusion_modelinput_blocks00weight",
    "cond_stage_model.model.transformer.resblocks.23.ln_1.bias",
    "first_stage_model.decoder.up.300.block.300.conv1.weight",
    "\u{fffd}\u{1f600}.weight",
];

fn absurd_length(random: &mut Random) -> usize {
    const LENGTHS: [usize; 14] =
        [0, 1, 2, 3, 4, 5, 7, 9, 64, 77, 1 << 20, 1 << 40, usize::MAX / 3, usize::MAX];
    LENGTHS[random.below(LENGTHS.len())]
}

/// Changes a checkpoint in one of many ways.
fn change(random: &mut Random, shapes: &mut BTreeMap<String, Vec<usize>>, others: &[Case]) {
    let names: Vec<String> = shapes.keys().cloned().collect();
    let Some(name) = names.get(random.below(names.len())).cloned() else { return };
    let mut cut = random.below(name.len() + 1);
    while !name.is_char_boundary(cut) {
        cut -= 1;
    }
    match random.below(12) {
        0 => _ = shapes.remove(&name),
        1 => shapes.retain(|other, _| !other.starts_with(&name[..cut.max(2).min(name.len())])),
        2 => shapes.retain(|other, _| other.starts_with(&name[..cut])),
        3 => {
            let length = absurd_length(random);
            let shape = shapes.get_mut(&name).unwrap();
            match random.below(4) {
                0 => shape.push(length),
                1 => _ = shape.pop(),
                2 => *shape = vec![length; random.below(6)],
                _ if shape.is_empty() => {}
                _ => {
                    let axis = random.below(shape.len());
                    shape[axis] = length;
                }
            }
        }
        4 => {
            let digit = random.below(10).to_string();
            let changed = name.replacen(&digit, random.pick(&NUMBERS), 1 + random.below(3));
            let shape = if random.one_in(2) { shapes.remove(&name) } else { shapes.get(&name).cloned() };
            shapes.insert(changed, shape.unwrap());
        }
        5 => {
            // All of one model under the names of another.
            let (from, to) = (random.pick(&PREFIXES), random.pick(&PREFIXES));
            let moved: Vec<String> = names.iter().filter(|name| name.starts_with(from)).cloned().collect();
            let keep = random.one_in(2);
            for name in moved {
                let shape = if keep { shapes.get(&name).cloned() } else { shapes.remove(&name) };
                shapes.insert(format!("{to}{}", &name[from.len()..]), shape.unwrap_or_default());
            }
        }
        6 => {
            let other = &others[random.below(others.len())].original;
            let prefix = random.pick(&PREFIXES);
            let taken = other.iter().filter(|(name, _)| name.starts_with(prefix));
            shapes.extend(taken.map(|(name, shape)| (name.clone(), shape.clone())));
        }
        7 => {
            let length = absurd_length(random);
            shapes.insert(random.pick(&NAMES).to_string(), vec![length; random.below(5)]);
        }
        8 => _ = shapes.insert(format!("{}{}", &name[..cut], random.pick(&NAMES)), vec![random.below(9)]),
        9 => {
            // One part many times: deep, wide or both.
            let count = 1 + random.below(600);
            let digit = random.below(10).to_string();
            let shape = shapes[&name].clone();
            for number in 0..count {
                shapes.insert(name.replacen(&digit, &number.to_string(), 1), shape.clone());
            }
        }
        10 => {
            // One length in all shapes, as of a model of another width.
            let (from, to) = (shapes[&name].first().copied().unwrap_or(1), absurd_length(random));
            for length in shapes.values_mut().flatten().filter(|length| **length == from) {
                *length = to;
            }
        }
        _ => {
            let live: Vec<String> =
                names.iter().filter(|name| name.starts_with("model.diffusion_model.")).cloned().collect();
            let alone = random.one_in(2);
            for name in live {
                let flat = name["model.diffusion_model.".len()..].replace('.', "");
                let shape = if alone { shapes.remove(&name) } else { shapes.get(&name).cloned() };
                shapes.insert(format!("model_ema.diffusion_model{flat}"), shape.unwrap_or_default());
            }
        }
    }
}

fn options(random: &mut Random) -> ReadOptions {
    ReadOptions {
        use_ema: random.one_in(2),
        prediction_type: random.one_in(3).then_some(PredictionType::VPrediction),
        heads: match random.below(6) {
            0 => Some(Heads::Count(absurd_length(random))),
            1 => Some(Heads::Width(absurd_length(random))),
            _ => None,
        },
        allow_unknown: random.one_in(2),
    }
}

/// Fails unless each tensor of the source has a place or a reason why it has none, and none has both.
fn check_accounts(number: u64, model: &Model, all: &BTreeSet<String>) {
    let mut used = BTreeSet::new();
    for layout in [Layout::Diffusers, Layout::Original] {
        let plan = Plan::new(model, layout);
        let mut names = BTreeSet::new();
        for (folder, tensor) in plan.tensors() {
            assert!(names.insert((folder, &tensor.name)), "case {number}: {} twice", tensor.name);
            used.extend(tensor.values.tensors().iter().cloned());
            assert!(!matches!(&tensor.values, Values::Joined(parts) if parts.is_empty()));
        }
    }
    // A folder's left-out components are listed beside tensors.
    let is_tensor =
        |name: &&String| !["safety_checker", "feature_extractor", "image_encoder"].contains(&name.as_str());
    let left_out = model.left_out.iter().map(|one| &one.name).filter(is_tensor).cloned().collect();
    assert!(used.is_disjoint(&left_out), "case {number}");
    assert!(
        &(&used | &left_out) == all,
        "case {number}: not accounted for: {:?}",
        all - &(&used | &left_out)
    );
    assert!(!model.title().is_empty());
    if number.is_multiple_of(50) {
        // The tokenizer's files take longer than all else.
        assert!(model.text_files().iter().all(|(_, text)| !text.is_empty()));
    }
}

#[test]
fn names_and_shapes() {
    const DTYPES: [Dtype; 6] = [Dtype::F16, Dtype::F32, Dtype::BF16, Dtype::F64, Dtype::F8_E4M3, Dtype::I64];
    let cases: Vec<Case> = CASES.iter().map(|name| Case::read(name)).collect();
    fuzz(|number| {
        let random = &mut Random::of_case(number);
        let mut shapes = cases[random.below(cases.len())].original.clone();
        for _ in 0..random.below(5) {
            change(random, &mut shapes, &cases);
        }
        let dtype = DTYPES[random.below(2)];
        let odd = random.one_in(4);
        let all: BTreeSet<String> = shapes.keys().cloned().collect();
        let entry = |(name, shape): (String, Vec<usize>)| {
            let dtype = if odd && random.one_in(50) { DTYPES[random.below(DTYPES.len())] } else { dtype };
            (name, Entry::new(shape, dtype))
        };
        let inventory: Inventory = shapes.into_iter().map(entry).collect();
        let options = options(random);
        match Model::from_inventory("model.safetensors", inventory, &BTreeMap::new(), &options) {
            Ok(model) => check_accounts(number, &model, &all),
            Err(error) => {
                let message = error.to_string();
                assert!(!message.contains('\n') && message.len() < 4000, "case {number}: {message}");
                return false;
            }
        }
        true
    });
}

/// Puts something else in one place of a JSON value.
fn change_json(random: &mut Random, value: &mut Value) {
    let odd = |random: &mut Random| match random.below(14) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(0),
        4 => json!(1),
        5 => json!(511),
        6 => json!(1_u64 << 40),
        7 => json!(u64::MAX),
        8 => json!(1e300),
        9 => json!("CrossAttnDownBlock2D"),
        10 => json!([]),
        11 => json!({}),
        12 => json!([[1, 2], 3, vec![400; 60]]),
        _ => json!(vec![500; 64]),
    };
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let name = fields.keys().nth(random.below(fields.len())).unwrap().clone();
            match random.below(4) {
                0 => _ = fields.remove(&name),
                1 => _ = fields.insert(name, odd(random)),
                _ => change_json(random, &mut fields[&name]),
            }
        }
        Value::Array(values) if !values.is_empty() => {
            let index = random.below(values.len());
            match random.below(4) {
                0 => _ = values.remove(index),
                1 => {
                    let copy = values[index].clone();
                    values.insert(index, copy);
                }
                _ => change_json(random, &mut values[index]),
            }
        }
        value => *value = odd(random),
    }
}

#[test]
fn configs_in_metadata() {
    let cases: Vec<(Case, BTreeMap<String, String>)> = CASES[..10]
        .iter()
        .map(|name| {
            let place = tempfile::tempdir().unwrap();
            let folder = folder_of(name, place.path());
            let back = place.path().join("back.safetensors");
            convert(&folder, &back, &ConvertOptions::default(), &|_| {}).unwrap();
            (Case::read(name), candle_diffusers_convert::TensorFile::open(back).unwrap().metadata().clone())
        })
        .collect();
    fuzz(|number| {
        let random = &mut Random::of_case(number);
        let (case, metadata) = &cases[random.below(cases.len())];
        let mut metadata = metadata.clone();
        let mut configs: Value = serde_json::from_str(&metadata["diffusers.configs"]).unwrap();
        for _ in 0..=random.below(4) {
            change_json(random, &mut configs);
        }
        metadata.insert("diffusers.configs".to_string(), configs.to_string());
        let all = case.original.keys().cloned().collect();
        match Model::from_inventory("model.safetensors", case.inventory(), &metadata, &options(random)) {
            Ok(model) => check_accounts(number, &model, &all),
            Err(_) => return false,
        }
        true
    });
}

fn folder_of(name: &str, place: &Path) -> std::path::PathBuf {
    let case = Case::read(name);
    let bytes: Vec<_> = case
        .original
        .iter()
        .map(|(name, shape)| (name, shape, values(name, shape.iter().product())))
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (name.as_str(), safetensors::tensor::TensorView::new(Dtype::F16, shape.to_vec(), bytes).unwrap())
    });
    let file = place.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &file).unwrap();
    let folder = place.join("folder");
    convert(&file, &folder, &ConvertOptions::default(), &|_| {}).unwrap();
    folder
}

#[test]
fn configs_of_folders() {
    let place = tempfile::tempdir().unwrap();
    let folders: Vec<_> = CASES[..10]
        .iter()
        .map(|name| {
            let place = place.path().join(name);
            fs::create_dir(&place).unwrap();
            folder_of(name, &place)
        })
        .collect();
    fuzz(|number| {
        let random = &mut Random::of_case(number);
        let folder = &folders[random.below(folders.len())];
        let mut files = Vec::new();
        for sub in ["", "unet", "vae", "text_encoder", "text_encoder_2", "scheduler"] {
            for name in ["model_index.json", "config.json", "scheduler_config.json"] {
                files.push(folder.join(sub).join(name));
            }
        }
        files.retain(|file| file.is_file());
        let file = &files[random.below(files.len())];
        let whole = fs::read(file).unwrap();
        let mut json: Value = serde_json::from_slice(&whole).unwrap();
        for _ in 0..=random.below(3) {
            change_json(random, &mut json);
        }
        fs::write(file, json.to_string()).unwrap();
        let read = Model::from_folder_with(folder, None, &options(random));
        fs::write(file, whole).unwrap();
        let Ok((model, source)) = read else { return false };
        let all = candle_diffusers_convert::Source::inventory(&source).names().map(str::to_string).collect();
        check_accounts(number, &model, &all);
        true
    });
}
