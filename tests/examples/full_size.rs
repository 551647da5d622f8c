//! This project's side of `cargo xtask parity --full` and `cargo xtask bench`: `full_size FOLDER`.
//!
//! Reads lines from standard input, words separated by tabs, and answers each with a line of JSON. What can be asked is what
//! `xtask/python/full_size.py` can be asked, and `compare ACTUAL EXPECTED`: how far apart two files are that both sides wrote at most, and
//! `mean ACTUAL EXPECTED`: how far on average.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;
use std::{env, io};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use candle_diffusers_kernels::compute_with_this_thread;
use candle_diffusers_loaders::{LoadOptions, Repository, load_unet, load_vae};
use candle_diffusers_models::{AutoencoderKL, UNet2DConditionModel};
use candle_diffusers_pipelines::{Schedule, StableDiffusionPipeline, TextToImage, seeded_generators};
use candle_diffusers_test_support::{peak_bytes, values};
use serde_json::{Value, json};

/// The prompt and seed of the reference's picture.
const PROMPT: &str = "abc def";
const SEED: u64 = 0;

fn main() -> Result<()> {
    compute_with_this_thread();
    let folder = env::args().nth(1).context("usage: full_size FOLDER")?;
    let mut worker = Worker::new(&folder)?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split('\t').collect();
        let answer = match words[..] {
            ["unet", output] => cost(worker.unet(output, DType::F32)?),
            ["vae", output] => cost(worker.vae(output, DType::F32)?),
            ["unet", output, name] => cost(worker.unet(output, dtype(name)?)?),
            ["vae", output, name] => cost(worker.vae(output, dtype(name)?)?),
            ["picture", output, steps] => cost(worker.picture(output, steps.parse()?, None)?),
            ["picture", output, steps, name] => {
                cost(worker.picture(output, steps.parse()?, Some(dtype(name)?))?)
            }
            ["compare", actual, expected] => json!({ "difference": difference(actual, expected)? }),
            ["mean", actual, expected] => mean_differences(actual, expected)?,
            _ => bail!("unknown question {line:?}"),
        };
        println!("{answer}");
        io::stdout().flush()?;
    }
    Ok(())
}

fn cost(seconds: f64) -> Value {
    json!({ "seconds": seconds, "peak_bytes": peak_bytes() })
}

/// The models of a folder, each loaded when it is first asked for.
struct Worker {
    repository: Repository,
    inputs: HashMap<String, Tensor>,
    unet: Option<UNet2DConditionModel>,
    vae: Option<AutoencoderKL>,
    /// Of the models that are loaded.
    dtype: DType,
}

impl Worker {
    fn new(folder: &str) -> Result<Self> {
        let inputs =
            candle_core::safetensors::load(Path::new(folder).join("inputs.safetensors"), &Device::Cpu)?;
        Ok(Self { repository: Repository::folder(folder)?, inputs, unet: None, vae: None, dtype: DType::F32 })
    }

    fn input(&self, name: &str) -> Result<&Tensor> {
        self.inputs.get(name).with_context(|| format!("inputs.safetensors has no {name}"))
    }

    /// An input in the models' dtype.
    fn rounded(&self, name: &str) -> Result<Tensor> {
        Ok(self.input(name)?.to_dtype(self.dtype)?)
    }

    /// Forgets the models of another dtype.
    fn options(&mut self, dtype: DType) -> LoadOptions {
        if self.dtype != dtype {
            (self.unet, self.vae, self.dtype) = (None, None, dtype);
        }
        LoadOptions { dtype, ..Default::default() }
    }

    fn unet(&mut self, output: &str, dtype: DType) -> Result<f64> {
        let options = self.options(dtype);
        if self.unet.is_none() {
            self.unet = Some(load_unet(&self.repository, "unet", &options)?);
        }
        let unet = self.unet.as_ref().context("the UNet has been loaded")?;
        let timestep = values(self.input("timestep")?);
        let start = Instant::now();
        let result = unet.forward(
            &self.rounded("sample")?,
            &timestep,
            &self.rounded("encoder_hidden_states")?,
            Default::default(),
        )?;
        let seconds = start.elapsed().as_secs_f64();
        candle_core::safetensors::save(&HashMap::from([("output", result)]), output)?;
        Ok(seconds)
    }

    fn vae(&mut self, output: &str, dtype: DType) -> Result<f64> {
        let options = self.options(dtype);
        if self.vae.is_none() {
            self.vae = Some(load_vae(&self.repository, "vae", &options)?);
        }
        let vae = self.vae.as_ref().context("the VAE has been loaded")?;
        let start = Instant::now();
        let result = vae.decode(&self.rounded("latents")?)?;
        let seconds = start.elapsed().as_secs_f64();
        candle_core::safetensors::save(&HashMap::from([("output", result)]), output)?;
        Ok(seconds)
    }

    /// From noise of the seed in float32; in a dtype that is named from the folder's latents, for torch draws other numbers in each.
    fn picture(&self, output: &str, steps: usize, dtype: Option<DType>) -> Result<f64> {
        let options = LoadOptions { dtype: dtype.unwrap_or(DType::F32), ..Default::default() };
        let mut pipeline = StableDiffusionPipeline::load(&self.repository, &options)?;
        let latents = match dtype {
            Some(dtype) => Some(self.input("latents")?.to_dtype(dtype)?),
            None => None,
        };
        let request = TextToImage {
            prompts: vec![PROMPT.into()],
            schedule: Schedule::Steps(steps),
            latents,
            ..Default::default()
        };
        let mut noise = seeded_generators(SEED, 1);
        let start = Instant::now();
        let painted = pipeline.generate(&request, &mut noise, &mut |_| Ok(ControlFlow::Continue(())))?;
        let seconds = start.elapsed().as_secs_f64();
        painted.images.first().context("no picture")?.save(output)?;
        Ok(seconds)
    }
}

/// The largest difference: of pictures in levels of 255, of tensors as a part of the largest expected value.
fn difference(actual: &str, expected: &str) -> Result<f64> {
    if actual.ends_with(".png") {
        let (actual, expected) = (image::open(actual)?.to_rgb8(), image::open(expected)?.to_rgb8());
        ensure!(actual.dimensions() == expected.dimensions(), "pictures of different sizes");
        let differences = actual.as_raw().iter().zip(expected.as_raw()).map(|(a, e)| a.abs_diff(*e));
        return Ok(differences.max().unwrap_or(0).into());
    }
    let (actual, expected) = (read(actual)?, read(expected)?);
    ensure!(actual.len() == expected.len(), "{} values, {} expected", actual.len(), expected.len());
    let scale = expected.iter().fold(0.0, |scale: f64, value| scale.max(value.abs()));
    let mut worst: f64 = 0.0;
    for (actual, expected) in actual.iter().zip(&expected) {
        let difference = (actual - expected).abs();
        ensure!(difference.is_finite(), "{actual} where {expected} is expected");
        worst = worst.max(difference);
    }
    Ok(worst / scale)
}

/// The mean absolute difference: of numbers as a part of their root mean square, and of pictures with values from -1 to 1 in levels of 255.
fn mean_differences(actual: &str, expected: &str) -> Result<Value> {
    let (actual, expected) = (read(actual)?, read(expected)?);
    ensure!(actual.len() == expected.len(), "{} values, {} expected", actual.len(), expected.len());
    let count = expected.len() as f64;
    let mean = |of: &dyn Fn(f64) -> f64| {
        actual.iter().zip(&expected).map(|(a, b)| (of(*a) - of(*b)).abs()).sum::<f64>() / count
    };
    let size = (expected.iter().map(|value| value * value).sum::<f64>() / count).sqrt();
    let pixel = |value: f64| (value.clamp(-1.0, 1.0) + 1.0) * 127.5;
    Ok(json!({ "relative": mean(&|value| value) / size, "pixels": mean(&pixel) }))
}

/// The numbers that a side wrote; of a picture from -1 to 1.
fn read(path: &str) -> Result<Vec<f64>> {
    if path.ends_with(".png") {
        let picture = image::open(path)?.to_rgb8();
        return Ok(picture.as_raw().iter().map(|level| f64::from(*level) / 127.5 - 1.0).collect());
    }
    let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
    Ok(values(tensors.get("output").context("no tensor called output")?))
}

fn dtype(name: &str) -> Result<DType> {
    match name {
        "float32" => Ok(DType::F32),
        "float16" => Ok(DType::F16),
        "bfloat16" => Ok(DType::BF16),
        other => bail!("{other:?} is not float32, float16 or bfloat16"),
    }
}
