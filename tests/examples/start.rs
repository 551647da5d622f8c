//! This project's side of `sd15_start` in `cargo xtask bench`: `start FOLDER f32|bf16`.
//!
//! Does what comes before the first step of a picture, says that with a line of JSON, and ends.

use std::env;
use std::time::Instant;

use anyhow::{Result, bail};
use candle_core::DType;
use candle_diffusers_kernels::{PooledAllocator, compute_with_this_thread};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::{StableDiffusionPipeline, TextToImage, seeded_generators};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: PooledAllocator = PooledAllocator::new();

fn main() -> Result<()> {
    compute_with_this_thread();
    let start = Instant::now();
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [folder, dtype] = &arguments[..] else { bail!("usage: start FOLDER f32|bf16") };
    let dtype = match dtype.as_str() {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        other => bail!("{other:?} is not f32 or bf16"),
    };
    let options = LoadOptions { dtype, ..Default::default() };
    let pipeline = StableDiffusionPipeline::load(&Repository::folder(folder)?, &options)?;
    let loaded = start.elapsed().as_secs_f64();
    let request =
        TextToImage { prompts: vec!["a lighthouse at night, oil on canvas".into()], ..Default::default() };
    pipeline.encode_prompt(&request)?;
    let (width, height) = pipeline.picture_size(&request)?;
    pipeline.prepare_latents(1, width, height, &mut seeded_generators(0, 1))?;
    let ready = start.elapsed().as_secs_f64();
    println!("{}", json!({ "ready": true, "loaded_after_s": loaded, "ready_after_s": ready }));
    Ok(())
}
