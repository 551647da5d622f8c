//! This project's side of `cargo xtask bench`: `bench MODELS NAME f32|bf16`, where MODELS is `xtask/bench/models.json`, or the folder of a
//! pipeline where NAME is `picture`.
//!
//! Answers as `xtask/python/bench.py` does: a line of JSON once the model is there and has run twice, and one for each line on standard input.

use std::cell::RefCell;
use std::io::{BufRead, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;
use std::{env, fs, io};

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_diffusers_kernels::{
    PooledAllocator, add, compute_with_this_thread, keep_transposed_weights, linear,
};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_models::layers::{Layer, LayerAdapter, Layers};
use candle_diffusers_models::{
    AutoencoderKL, AutoencoderKLConfig, ClipTextConfig, ClipTextModel, TextTime, UNet2DConditionConfig,
    UNet2DConditionModel, UNetConditions,
};
use candle_diffusers_pipelines::{Schedule, StableDiffusionPipeline, TextToImage, seeded_generators};
use candle_diffusers_test_support::peak_bytes;
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{AdamW, Init, Optimizer, ParamsAdamW, VarBuilder};
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: PooledAllocator = PooledAllocator::new();

const TIMESTEP: f64 = 500.0;
const PROMPT: &str = "a lighthouse at night, oil on canvas";
const STEPS: usize = 4;

fn main() -> Result<()> {
    compute_with_this_thread();
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [models, name, dtype] = &arguments[..] else { bail!("usage: bench MODELS NAME f32|bf16") };
    let dtype = match dtype.as_str() {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        other => bail!("{other:?} is not f32 or bf16"),
    };
    let run = match name.as_str() {
        "picture" => prepare_picture(models, dtype)?,
        _ => {
            let models: Value = serde_json::from_str(&fs::read_to_string(models)?)?;
            let run = prepare(name, &models[name], dtype)?;
            run()?;
            run
        }
    };
    run()?;
    println!("{}", json!({ "ready": true }));
    io::stdout().flush()?;
    for line in io::stdin().lock().lines() {
        line?;
        let start = Instant::now();
        run()?;
        let seconds = start.elapsed().as_secs_f64();
        println!("{}", json!({ "seconds": seconds, "peak_bytes": peak_bytes() }));
        io::stdout().flush()?;
    }
    Ok(())
}

type Run = Box<dyn Fn() -> Result<()>>;

fn prepare(name: &str, model: &Value, dtype: DType) -> Result<Run> {
    let weights = VarBuilder::from_backend(Box::new(RandomWeights), dtype, Device::Cpu);
    let config = &model["config"];
    let input = |input: &str| -> Result<Tensor> {
        let shape: Vec<usize> =
            serde_json::from_value(model["inputs"][input].clone()).context("no such input")?;
        Ok(Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?.to_dtype(dtype)?)
    };
    if name.ends_with("_vae_decode") {
        let vae = AutoencoderKL::new(&AutoencoderKLConfig::from_json(config)?, weights)?;
        let latents = input("latents")?;
        return Ok(Box::new(move || vae.decode(&latents).map(drop).map_err(Into::into)));
    }
    if name.ends_with("_vae_encode") {
        let vae = AutoencoderKL::new(&AutoencoderKLConfig::from_json(config)?, weights)?;
        let picture = input("picture")?;
        return Ok(Box::new(move || vae.encode(&picture).map(drop).map_err(Into::into)));
    }
    if name.contains("_text_encoder") {
        let encoder = ClipTextModel::new(&ClipTextConfig::from_json(config)?, weights)?;
        let ids = Tensor::arange(0u32, 2 * 77, &Device::Cpu)?.reshape((2, 77))?;
        return Ok(Box::new(move || encoder.forward(&ids).map(drop).map_err(Into::into)));
    }
    let unet = UNet2DConditionModel::new(&UNet2DConditionConfig::from_json(config)?, weights)?;
    let (sample, text) = (input("sample")?, input("encoder_hidden_states")?);
    let added = match model["inputs"].get("time_ids") {
        Some(_) => Some((input("text_embeds")?, input("time_ids")?)),
        None => None,
    };
    if name.ends_with("_train_step") {
        let target = input("target")?;
        // As `diffuse train` does.
        keep_transposed_weights(true);
        let optimizer =
            add_loras(&unet, &model["lora_layers"], model["lora_rank"].as_u64().unwrap_or(4) as usize)?;
        return Ok(Box::new(move || {
            let predicted = unet.forward(&sample, &[TIMESTEP], &text, UNetConditions::default())?;
            let (predicted, target) = (predicted.to_dtype(DType::F32)?, target.to_dtype(DType::F32)?);
            let loss = (predicted - target)?.sqr()?.mean_all()?;
            optimizer.borrow_mut().backward_step(&loss)?;
            Ok(())
        }));
    }
    Ok(Box::new(move || {
        let added = added.as_ref().map(|(text_embeds, time_ids)| TextTime { text_embeds, time_ids });
        let conditions = UNetConditions { added, ..Default::default() };
        unet.forward(&sample, &[TIMESTEP], &text, conditions)?;
        Ok(())
    }))
}

/// A LoRA in float32 on each linear layer whose name ends with one of these, and what trains them.
fn add_loras(unet: &UNet2DConditionModel, names: &Value, rank: usize) -> Result<RefCell<AdamW>> {
    let names: Vec<String> = serde_json::from_value(names.clone()).context("no lora_layers")?;
    let mut variables = Vec::new();
    for (name, layer) in unet.layers() {
        if !names.iter().any(|ending| name.ends_with(&format!(".{ending}"))) {
            continue;
        }
        let (features, in_features) = layer.shape().dims2()?;
        let down = Var::randn(0f32, 1.0 / rank as f32, (rank, in_features), &Device::Cpu)?;
        let up = Var::zeros((features, rank), DType::F32, &Device::Cpu)?;
        layer.set_adapter(Some(Arc::new(TrainedLora { down: down.clone(), up: up.clone() })));
        variables.extend([down, up]);
    }
    let parameters = ParamsAdamW { lr: 1e-4, weight_decay: 0.01, ..Default::default() };
    Ok(RefCell::new(AdamW::new(variables, parameters)?))
}

/// A LoRA (Hu et al., 2021) of alpha equal to its rank.
#[derive(Debug)]
struct TrainedLora {
    down: Var,
    up: Var,
}

impl LayerAdapter for TrainedLora {
    fn forward(&self, _: &Layer, input: &Tensor, output: Tensor) -> candle_diffusers_models::Result<Tensor> {
        let hidden = linear(input, &self.down.to_dtype(input.dtype())?, None)?;
        Ok(add(&output, &linear(&hidden, &self.up.to_dtype(input.dtype())?, None)?)?)
    }
}

/// From a prompt to pixels; without loading.
fn prepare_picture(folder: &str, dtype: DType) -> Result<Run> {
    let options = LoadOptions { dtype, ..Default::default() };
    let pipeline = RefCell::new(StableDiffusionPipeline::load(&Repository::folder(folder)?, &options)?);
    let request =
        TextToImage { prompts: vec![PROMPT.into()], schedule: Schedule::Steps(STEPS), ..Default::default() };
    Ok(Box::new(move || {
        let mut noise = seeded_generators(0, 1);
        pipeline.borrow_mut().generate(&request, &mut noise, &mut |_| Ok(ControlFlow::Continue(())))?;
        Ok(())
    }))
}

/// Weights of the size that models begin their training with, so that no number grows or vanishes on its way through them.
struct RandomWeights;

impl SimpleBackend for RandomWeights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = match shape.dims() {
            [length] if name.ends_with("bias") => Tensor::zeros(*length, DType::F32, device)?,
            [length] => Tensor::ones(*length, DType::F32, device)?,
            [_, inputs @ ..] => {
                let bound = (inputs.iter().product::<usize>() as f32).powf(-0.5);
                Tensor::rand(-bound, bound, shape.clone(), device)?
            }
            [] => Tensor::zeros((), DType::F32, device)?,
        };
        tensor.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name}: a random weight needs a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
