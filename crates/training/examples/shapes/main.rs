//! Trains the small model that travels with the program, from nothing: draws the pictures, trains the autoencoder, then the UNet and the text encoder together, and
//! writes a folder in diffusers' layout with weights in float16.
//!
//! `shapes TEMPLATE OUTPUT`: of TEMPLATE, a folder of the same layout, only the configs and the tokenizer are taken. `cargo xtask demo` runs it.

mod autoencoder;
mod check;
mod picture;

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor, Var};
use candle_diffusers_kernels::PooledAllocator;
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::{StableDiffusionPipeline, TextEncoders};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_training::recipes::{Denoising, DenoisingOptions, Example};
use candle_diffusers_training::{
    AdamW, AdamWConfig, EmaConfig, EmaModel, LossWeighting, LrSchedule, LrScheduleName, LrScheduleOptions,
    Parameter, ParameterGroup, RandomSource, Trainer, TrainerOptions, new_text_encoder, new_unet, new_vae,
    parameters, save_component,
};
use rayon::prelude::*;
use serde_json::Value;

use picture::{Drawing, NUMBERS, SIDE, draw};

#[global_allocator]
static ALLOCATOR: PooledAllocator = PooledAllocator::new();

const PICTURES: usize = 20_000;
const AUTOENCODER: Phase = Phase { steps: 1_500, batch: 32, learning_rate: 1e-3 };
const DENOISER: Phase = Phase { steps: 4_300, batch: 48, learning_rate: 6e-4 };
const EMPTY_CAPTIONS: f64 = 0.1;
const SEED: u64 = 0;

/// How long something is trained.
struct Phase {
    steps: usize,
    batch: usize,
    learning_rate: f64,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [template, output] = &arguments[..] else { bail!("usage: shapes TEMPLATE OUTPUT") };
    let (template, output) = (Path::new(template), Path::new(output));
    let start = Instant::now();
    let clock = || format!("{:5.1} min", start.elapsed().as_secs_f64() / 60.0);
    // Both phases can be made shorter, to see whether the program runs.
    let share: f64 = match std::env::var("SHAPES_SHARE") {
        Ok(share) => share.parse().context("SHAPES_SHARE is no number")?,
        Err(_) => 1.0,
    };

    let mut generator = TorchGenerator::new(SEED);
    let drawings = draw_all(&mut generator)?;
    println!("{}  drew {PICTURES} pictures", clock());

    for part in ["scheduler", "tokenizer"] {
        copy_folder(&template.join(part), &output.join(part))?;
    }
    let config = |component: &str| read_json(&template.join(component).join("config.json"));
    let options = LoadOptions::default();

    // The autoencoder comes first, and stays what it is.
    let vae = new_vae(&config("vae")?, generator.clone(), &options)?;
    let mut trainer = trainer(vae.parameters, &AUTOENCODER, share, generator)?;
    let mut order = Order::new(AUTOENCODER.batch);
    run("autoencoder", &mut trainer, &AUTOENCODER, share, &clock, |generator| {
        let pictures: Vec<Tensor> = order
            .next(generator)?
            .into_iter()
            .map(|index| pixel_values(&drawings[index]))
            .collect::<Result<_>>()?;
        Ok(autoencoder::reconstruction_loss(&vae.model, &Tensor::stack(&pictures, 0)?, generator)?)
    })?;
    let mut vae_config = config("vae")?;
    vae_config["scaling_factor"] = scaling_factor(&vae.model, &drawings)?.into();
    save("vae", "diffusion_pytorch_model.safetensors", &vae_config, output, &mut trainer)?;
    let mut generator = trainer.generator;

    // The UNet and the text encoder learn together. A folder of all parts is there first, so that the pipeline opens it as any other.
    let (unet_config, text_config) = (config("unet")?, config("text_encoder")?);
    let unet = new_unet(&unet_config, generator.clone(), &options)?;
    let seed = generator.rand(&[1], DType::F64, &Device::Cpu)?.to_vec1::<f64>()?[0];
    let text_encoder = new_text_encoder(&text_config, TorchGenerator::new((seed * 1e9) as u64), &options)?;
    let parts = [("unet", UNET_FILE, &unet_config), ("text_encoder", TEXT_FILE, &text_config)];
    let trained: Vec<Parameter> = unet.parameters.into_iter().chain(text_encoder.parameters).collect();
    for (component, file, config) in parts {
        save_component(&output.join(component), file, config, component, &trained)?;
    }
    fs::copy(template.join("model_index.json"), output.join("model_index.json"))?;
    let mut models = StableDiffusionPipeline::load(&Repository::folder(output)?, &options)?;
    models.unet = unet.model;
    let TextEncoders::Clip(clip) = &mut models.text_encoders else { bail!("this is no Stable Diffusion") };
    clip.text_encoder = text_encoder.model;
    let denoising = Denoising::new(
        &models,
        DenoisingOptions {
            caption_dropout: EMPTY_CAPTIONS,
            train_text_encoder: true,
            weighting: LossWeighting::MinSnr { gamma: 5.0 },
            ..Default::default()
        },
    )?;
    let mut trainer = self::trainer(trained, &DENOISER, share, generator)?;
    let mut order = Order::new(DENOISER.batch);
    run("denoiser", &mut trainer, &DENOISER, share, &clock, |generator| {
        let examples: Vec<Example> = order
            .next(generator)?
            .into_iter()
            .map(|index| {
                Ok(Example {
                    pixel_values: pixel_values(&drawings[index])?,
                    caption: drawings[index].caption.clone(),
                    original_size: (SIDE, SIDE),
                    crop_top_left: (0, 0),
                    key: Some(index as u64),
                    others: Vec::new(),
                    area: None,
                })
            })
            .collect::<Result<_>>()?;
        Ok(denoising.loss(&examples, generator)?)
    })?;
    for (component, file, config) in parts {
        save(component, file, config, output, &mut trainer)?;
    }
    println!("{}  trained", clock());

    let right = check::check(output, template)?;
    println!("{}  {right} of 32 prompts are painted as they say", clock());
    // What travels with the program now gets all right.
    ensure!(right == 32 || share < 1.0, "{}: is no better than what there is", output.display());
    Ok(())
}

const UNET_FILE: &str = "diffusion_pytorch_model.safetensors";
const TEXT_FILE: &str = "model.safetensors";

fn draw_all(generator: &mut dyn RandomSource) -> Result<Vec<Drawing>> {
    let numbers = generator.rand(&[PICTURES * NUMBERS], DType::F32, &Device::Cpu)?.to_vec1::<f32>()?;
    let (rows, _) = numbers.as_chunks::<NUMBERS>();
    Ok(rows.par_iter().map(draw).collect())
}

/// `(3, SIDE, SIDE)`, from -1 to 1.
fn pixel_values(drawing: &Drawing) -> Result<Tensor> {
    let values: Vec<f32> =
        drawing.picture.as_raw().iter().map(|value| f32::from(*value) / 127.5 - 1.0).collect();
    let side = SIDE as usize;
    Ok(Tensor::from_vec(values, (side, side, 3), &Device::Cpu)?.permute((2, 0, 1))?.contiguous()?)
}

fn trainer(
    parameters: Vec<Parameter>,
    phase: &Phase,
    share: f64,
    generator: TorchGenerator,
) -> Result<Trainer> {
    let groups = vec![ParameterGroup { parameters, learning_rate: phase.learning_rate, weight_decay: 1e-2 }];
    let schedule = LrScheduleOptions {
        num_warmup_steps: 100,
        num_training_steps: phase.steps(share),
        ..Default::default()
    };
    let schedule = LrSchedule::new(LrScheduleName::Cosine, schedule)?;
    let average = EmaConfig { decay: 0.999, ..Default::default() };
    let ema = EmaModel::new(&groups, average)?;
    let optimizer = Box::new(AdamW::new(AdamWConfig::default())?);
    Ok(Trainer::new(groups, optimizer, schedule, Some(ema), TrainerOptions::default(), generator)?)
}

impl Phase {
    fn steps(&self, share: f64) -> usize {
        ((self.steps as f64 * share) as usize).max(1)
    }
}

/// Takes all steps of a phase, and says every now and then where it is.
fn run(
    name: &str,
    trainer: &mut Trainer,
    phase: &Phase,
    share: f64,
    clock: &dyn Fn() -> String,
    mut loss: impl FnMut(&mut dyn RandomSource) -> Result<Tensor>,
) -> Result<()> {
    let (steps, mut sum) = (phase.steps(share), 0.0);
    for step in 1..=steps {
        let mut failure = None;
        let report = trainer.step(|generator| {
            loss(generator).map_err(|error| {
                failure = Some(error);
                candle_diffusers_training::Error::ReadingEnded
            })
        });
        if let Some(error) = failure {
            return Err(error);
        }
        sum += report?.loss;
        if step % 100 == 0 || step == steps {
            let count = (step - 1) % 100 + 1;
            println!("{}  {name}: step {step} of {steps}, loss {:.5}", clock(), sum / count as f64);
            sum = 0.0;
        }
    }
    Ok(())
}

/// Which pictures come next: all of them in an order that is drawn, then all in another.
struct Order {
    batch: usize,
    left: Vec<usize>,
}

impl Order {
    fn new(batch: usize) -> Self {
        Self { batch, left: Vec::new() }
    }

    fn next(&mut self, generator: &mut dyn RandomSource) -> Result<Vec<usize>> {
        if self.left.len() < self.batch {
            let keys = generator.rand(&[PICTURES], DType::F32, &Device::Cpu)?.to_vec1::<f32>()?;
            self.left = (0..PICTURES).collect();
            self.left.sort_by(|a, b| keys[*a].total_cmp(&keys[*b]));
        }
        Ok(self.left.split_off(self.left.len() - self.batch))
    }
}

/// What makes the latents' standard deviation 1.
fn scaling_factor(vae: &candle_diffusers_models::AutoencoderKL, drawings: &[Drawing]) -> Result<f64> {
    let pictures: Vec<Tensor> = drawings.iter().take(256).map(pixel_values).collect::<Result<_>>()?;
    let latents = vae.encode(&Tensor::stack(&pictures, 0)?)?.mean().detach().flatten_all()?;
    let mean = latents.mean_all()?.to_scalar::<f32>()?;
    let variance = (latents - f64::from(mean))?.sqr()?.mean_all()?.to_scalar::<f32>()?;
    Ok((1.0 / f64::from(variance.sqrt()) * 1e5).round() / 1e5)
}

/// Writes a component with the average of its weights, in float16.
fn save(component: &str, file: &str, config: &Value, output: &Path, trainer: &mut Trainer) -> Result<()> {
    if let Some(ema) = &trainer.ema {
        ema.copy_to(&trainer.groups)?;
    }
    let half = |parameter: &Parameter| -> Result<Parameter> {
        let rounded = parameter.var.as_detached_tensor().to_dtype(DType::F16)?;
        Ok(Parameter { name: parameter.name.clone(), var: Var::from_tensor(&rounded)? })
    };
    let halves = parameters(&trainer.groups).map(half).collect::<Result<Vec<_>>>()?;
    Ok(save_component(&output.join(component), file, config, component, &halves)?)
}

fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("writing {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let path = entry?.path();
        if let Some(name) = path.file_name() {
            fs::copy(&path, to.join(name)).with_context(|| format!("copying {}", path.display()))?;
        }
    }
    Ok(())
}
