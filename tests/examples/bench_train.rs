//! This project's side of `cargo xtask bench train`: whole steps of training, from the files of the pictures to the changed weights.
//!
//! `bench_train FOLDER PICTURES lora|whole f32|bf16 keep|recompute`: FOLDER is a Stable Diffusion 1.5, PICTURES a folder with captions. Answers as
//! `xtask/python/bench_train.py` does: a line of JSON after two steps, and one after each further step, of which there is one for each line on standard input.
//!
//! `bench_train make PICTURES` draws the pictures.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use std::{env, fs, io};

use anyhow::{Result, bail};
use candle_core::DType;
use candle_diffusers_kernels::{PooledAllocator, compute_with_this_thread, keep_transposed_weights};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::StableDiffusionPipeline;
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::peak_bytes;
use candle_diffusers_training::dataset::{BatchLoader, BatchOptions, Dataset, DatasetOptions, Position};
use candle_diffusers_training::recipes::{Denoising, DenoisingOptions, Example};
use candle_diffusers_training::{
    AdamW, AdamW8bit, AdamWConfig, LoraConfig, LrSchedule, LrScheduleName, Optimizer, ParameterGroup,
    TrainedLora, Trainer, TrainerOptions, UNET_TARGETS, trainable_unet,
};
use image::{Rgb, RgbImage};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: PooledAllocator = PooledAllocator::new();

const RANK: usize = 4;
const PICTURES: u32 = 16;
/// Larger than what is trained at, as pictures are.
const SIDE: u32 = 768;

fn main() -> Result<()> {
    compute_with_this_thread();
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (folder, pictures, trained, dtype, memory) = match arguments[..] {
        ["make", pictures] => return make(Path::new(pictures)),
        [folder, pictures, trained, dtype, memory] => (folder, pictures, trained, dtype, memory),
        _ => bail!(
            "usage: bench_train FOLDER PICTURES lora|whole f32|bf16 keep|recompute, or bench_train make PICTURES"
        ),
    };
    keep_transposed_weights(memory == "keep");
    let dtype = if dtype == "bf16" { DType::BF16 } else { DType::F32 };
    let repository = Repository::folder(folder)?;
    let options = LoadOptions { dtype, ..Default::default() };
    let mut models = StableDiffusionPipeline::load(&repository, &options)?;
    let mut generator = TorchGenerator::new(0);
    let (parameters, optimizer): (_, Box<dyn Optimizer>) = match trained {
        "lora" => {
            let config = LoraConfig::new(RANK, &UNET_TARGETS);
            let lora = TrainedLora::attach(&models.unet, "unet", &config, &mut generator)?;
            (lora.parameters(), Box::new(AdamW::new(AdamWConfig::default())?))
        }
        "whole" => {
            let options = LoadOptions::default();
            let whole = trainable_unet(&repository, "unet", &options)?;
            models.unet = whole.model;
            (whole.parameters, Box::new(AdamW8bit::new(AdamWConfig::default())?))
        }
        other => bail!("{other:?} is not lora or whole"),
    };
    let groups = vec![ParameterGroup { parameters, learning_rate: 1e-4, weight_decay: 1e-2 }];
    let schedule = LrSchedule::new(LrScheduleName::Constant, Default::default())?;
    let mut trainer = Trainer::new(groups, optimizer, schedule, None, TrainerOptions::default(), generator)?;
    let gradient_checkpointing = memory == "recompute";
    let denoising =
        Denoising::new(&models, DenoisingOptions { gradient_checkpointing, ..Default::default() })?;
    let dataset = Arc::new(Dataset::open(pictures, DatasetOptions::default())?);
    let mut loader = BatchLoader::new(dataset, BatchOptions::default(), Position::default(), 2)?;
    let mut step = || -> Result<()> {
        let batch = loader.next_batch()?;
        let pixel_values = batch.pixel_values()?;
        let mut examples = Vec::new();
        for (index, sample) in batch.samples.iter().enumerate() {
            examples.push(Example {
                pixel_values: pixel_values.get(index)?,
                caption: sample.caption.clone(),
                original_size: sample.original_size,
                crop_top_left: sample.crop_top_left,
                // The crops are random, so that nothing of the VAE can be kept.
                key: None,
                others: Vec::new(),
                area: None,
            });
        }
        trainer.step(|generator| denoising.loss(&examples, generator))?;
        Ok(())
    };
    step()?;
    step()?;
    say(&json!({ "ready": true }))?;
    for line in io::stdin().lock().lines() {
        line?;
        let start = Instant::now();
        step()?;
        let seconds = start.elapsed().as_secs_f64();
        say(&json!({ "seconds": seconds, "peak_bytes": peak_bytes() }))?;
    }
    eprintln!("waited for pictures: {:.2}% of the time", 100.0 * loader.waiting().share());
    Ok(())
}

fn say(answer: &serde_json::Value) -> Result<()> {
    println!("{answer}");
    Ok(io::stdout().flush()?)
}

/// Pictures that JPEG has something to do with, each with a caption.
fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for number in 0..PICTURES {
        let wave = |a: u32, b: u32| (127.5 + 127.5 * (f64::from(a * (number + 1) + b) / 40.0).sin()) as u8;
        let picture = RgbImage::from_fn(SIDE, SIDE, |x, y| Rgb([wave(x, y), wave(y, 2 * x), wave(x + y, 0)]));
        picture.save(folder.join(format!("{number}.jpg")))?;
        fs::write(folder.join(format!("{number}.txt")), format!("a pattern of {number} waves"))?;
    }
    Ok(())
}
