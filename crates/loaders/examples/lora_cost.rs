//! What a LoRA costs: a UNet's step without, with one beside the layers and with it fused, timed in turn.
//!
//!     cargo run --release -p candle-diffusers-loaders --example lora_cost -- [CHANNELS] [LATENT_SIDE] [RANK] [REPETITIONS]
//!
//! The UNet is Stable Diffusion 1's with other widths: `CHANNELS` of its first block (160; Stable Diffusion has 320). Its weights are zeros,
//! with which the arithmetic takes as long as with any others.

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use candle_diffusers_kernels::PooledAllocator;
use candle_diffusers_loaders::lora::{LoraAdapters, LoraModels, UnmatchedKeys};
use candle_diffusers_models::layers::Layers;
use candle_diffusers_models::{UNet2DConditionConfig, UNet2DConditionModel};
use candle_nn::VarBuilder;
use serde_json::json;

/// What trainers adapt unless told otherwise: the transformers.
const TRANSFORMERS: &str = "attentions.";

#[global_allocator]
static ALLOCATOR: PooledAllocator = PooledAllocator::new();

fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let mut number = |default| numbers.next().unwrap_or(Ok(default));
    let (channels, side, rank, repetitions) = (number(160)?, number(32)?, number(16)?, number(5)?);
    let unet = unet(channels)?;
    let parameters: usize = unet.layers().iter().map(|(_, layer)| layer.weight().elem_count()).sum();
    println!("{}M parameters, latents of {side}x{side}, rank {rank}, float32", parameters / 1_000_000);
    let folder = tempfile::tempdir()?;
    for (what, part) in [("the transformers' layers", TRANSFORMERS), ("all layers", "")] {
        let path = folder.path().join("lora.safetensors");
        let layers = write_lora(&unet, part, rank, &path)?;
        println!("\na LoRA on {what} ({layers})");
        compare(&unet, &path, side, repetitions)?;
    }
    Ok(())
}

fn unet(channels: usize) -> Result<UNet2DConditionModel, Box<dyn Error>> {
    let config = json!({
        "cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64,
        "block_out_channels": [channels, 2 * channels, 4 * channels, 4 * channels],
    });
    let config = UNet2DConditionConfig::from_json(&config)?;
    Ok(UNet2DConditionModel::new(&config, VarBuilder::zeros(DType::F32, &Device::Cpu))?)
}

/// A LoRA on all layers whose names have `part` in them; says how many those are.
fn write_lora(unet: &dyn Layers, part: &str, rank: usize, path: &Path) -> Result<usize, Box<dyn Error>> {
    let mut tensors = HashMap::new();
    let layers = unet.layers().into_iter().filter(|(name, _)| name.contains(part));
    for (name, layer) in layers {
        let shape = layer.weight().dims().to_vec();
        let down = [&[rank], &shape[1..]].concat();
        let up: Vec<usize> = (0..shape.len()).map(|axis| [shape[0], rank, 1, 1][axis]).collect();
        tensors.insert(format!("unet.{name}.lora_A.weight"), Tensor::randn(0f32, 0.1, down, &Device::Cpu)?);
        tensors.insert(format!("unet.{name}.lora_B.weight"), Tensor::randn(0f32, 0.1, up, &Device::Cpu)?);
    }
    candle_core::safetensors::save(&tensors, path)?;
    Ok(tensors.len() / 2)
}

fn compare(
    unet: &UNet2DConditionModel,
    path: &Path,
    side: usize,
    repetitions: usize,
) -> Result<(), Box<dyn Error>> {
    let models = LoraModels { unet: Some(unet), ..Default::default() };
    let mut adapters = LoraAdapters::new();
    let loading = timed(|| Ok(adapters.load(&models, "lora", path, UnmatchedKeys::Refuse)?))?;
    let (mut setting, mut fusing, mut unfusing) = (Vec::new(), Vec::new(), Vec::new());
    let (mut without, mut beside, mut fused) = (Vec::new(), Vec::new(), Vec::new());
    let none: [(&str, f64); 0] = [];
    step(unet, side)?;
    for _ in 0..repetitions {
        adapters.set_adapters(&none)?;
        without.push(second_step(unet, side)?);
        setting.push(timed(|| Ok(adapters.set_adapters(&[("lora", 0.8)])?))?);
        beside.push(second_step(unet, side)?);
        fusing.push(timed(|| Ok(adapters.fuse()?))?);
        fused.push(second_step(unet, side)?);
        unfusing.push(timed(|| Ok(adapters.unfuse()?))?);
    }
    adapters.unload_all();
    let (without, beside, fused) = (median(without), median(beside), median(fused));
    println!("  a step without   {without:.3} s");
    println!("  beside           {beside:.3} s, {:.3} of that", beside / without);
    println!("  fused            {fused:.3} s, {:.3} of that", fused / without);
    println!(
        "  loading {:.3} s, setting {:.3} s, fusing {:.3} s, unfusing {:.3} s",
        loading.as_secs_f64(),
        median(setting),
        median(fusing),
        median(unfusing)
    );
    Ok(())
}

/// The first step after a change packs the changed weights.
fn second_step(unet: &UNet2DConditionModel, side: usize) -> Result<Duration, Box<dyn Error>> {
    step(unet, side)?;
    step(unet, side)
}

/// One step with guidance: a batch of two.
fn step(unet: &UNet2DConditionModel, side: usize) -> Result<Duration, Box<dyn Error>> {
    let sample = Tensor::randn(0f32, 1.0, (2, 4, side, side), &Device::Cpu)?;
    let text = Tensor::randn(0f32, 1.0, (2, 77, 768), &Device::Cpu)?;
    timed(|| {
        unet.forward(&sample, &[500.0], &text, Default::default())?;
        Ok(())
    })
}

fn timed(work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

/// In seconds.
fn median(mut durations: Vec<Duration>) -> f64 {
    durations.sort_unstable();
    durations.get(durations.len() / 2).map_or(0.0, Duration::as_secs_f64)
}
