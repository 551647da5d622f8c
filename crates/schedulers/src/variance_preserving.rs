//! What DDPM, DDIM and PNDM share: noise levels looked up by training timestep.

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::linear_combination::{LinearCombination, check_like_sample, promoted};
use crate::scheduler::PredictionType;

/// sqrt(ᾱ) original_samples + sqrt(1 - ᾱ) noise.
pub(crate) fn add_noise(
    class: &'static str,
    alphas_cumprod: &[f32],
    original_samples: &Tensor,
    noise: &Tensor,
    timesteps: &[f64],
) -> Result<Tensor> {
    let alphas = training_alphas(class, alphas_cumprod, timesteps)?;
    let (signal, noise_level) = signal_and_noise(&alphas, original_samples.dtype())?;
    combine(original_samples, signal, noise, noise_level, timesteps)
}

/// sqrt(ᾱ) noise - sqrt(1 - ᾱ) sample.
pub(crate) fn get_velocity(
    class: &'static str,
    alphas_cumprod: &[f32],
    sample: &Tensor,
    noise: &Tensor,
    timesteps: &[f64],
) -> Result<Tensor> {
    let alphas = training_alphas(class, alphas_cumprod, timesteps)?;
    velocity(&alphas, sample, noise, timesteps)
}

/// The velocity for the ᾱ of each timestep.
pub(crate) fn velocity(alphas: &[f32], sample: &Tensor, noise: &Tensor, timesteps: &[f64]) -> Result<Tensor> {
    let (signal, noise_level) = signal_and_noise(alphas, sample.dtype())?;
    let negative = noise_level.into_iter().map(|level| -level).collect();
    combine(sample, negative, noise, signal, timesteps)
}

/// A weighted sum of two tensors with one weight for each timestep.
pub(crate) fn combine(
    sample: &Tensor,
    sample_weights: Vec<f64>,
    noise: &Tensor,
    noise_weights: Vec<f64>,
    timesteps: &[f64],
) -> Result<Tensor> {
    check_like_sample("noise", noise, sample)?;
    let batch = sample.dims().first().copied().unwrap_or(1);
    if timesteps.len() != 1 && timesteps.len() != batch {
        let expected = format!("{batch}, one for each picture, or 1");
        let found = format!("{} numbers", timesteps.len());
        return Err(Error::Argument { argument: "timesteps", found, expected });
    }
    let weights = vec![sample_weights, noise_weights];
    let dtype = promoted(sample.dtype(), noise.dtype());
    LinearCombination::with_batch(weights).apply(&[sample, noise], dtype)
}

/// sqrt(ᾱ) and sqrt(1 - ᾱ), rounded to `dtype` after each operation as the reference does.
fn signal_and_noise(alphas: &[f32], dtype: DType) -> Result<(Vec<f64>, Vec<f64>)> {
    let root = |values: &[f64]| rounded(values.iter().map(|value| value.sqrt()).collect(), dtype);
    let alphas = rounded(alphas.iter().copied().map(f64::from).collect(), dtype)?;
    let rest = rounded(alphas.iter().map(|alpha| 1.0 - alpha).collect(), dtype)?;
    Ok((root(&alphas)?, root(&rest)?))
}

/// The values as a tensor of `dtype` holds them.
pub(crate) fn rounded(values: Vec<f64>, dtype: DType) -> Result<Vec<f64>> {
    if !matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16) {
        return Err(Error::DType { what: "sample", found: dtype });
    }
    Ok(Tensor::new(values, &Device::Cpu)?.to_dtype(dtype)?.to_dtype(DType::F64)?.to_vec1()?)
}

fn training_alphas(class: &'static str, alphas_cumprod: &[f32], timesteps: &[f64]) -> Result<Vec<f32>> {
    timesteps
        .iter()
        .map(|&timestep| Ok(alphas_cumprod[training_index(class, timestep, alphas_cumprod.len())?]))
        .collect()
}

/// The index of an integer training timestep.
pub(crate) fn training_index(
    class: &'static str,
    timestep: f64,
    num_train_timesteps: usize,
) -> Result<usize> {
    if timestep.fract() == 0.0 && timestep >= 0.0 && timestep < num_train_timesteps as f64 {
        return Ok(timestep as usize);
    }
    let expected = format!("expected an integer from 0 to {}", num_train_timesteps.saturating_sub(1));
    Err(Error::UnknownTimestep { scheduler: class, timestep, expected })
}

/// The predicted original sample, formula (15) of DDPM and (12) of DDIM, clamped to ±`limit` in the same pass.
pub(crate) fn predict_original(
    prediction_type: PredictionType,
    sample: &Tensor,
    model_output: &Tensor,
    alpha_prod_t: f32,
    limit: Option<f64>,
) -> Result<Tensor> {
    let dtype = promoted(model_output.dtype(), sample.dtype());
    let alpha_root = f64::from(alpha_prod_t.sqrt());
    let beta_root = f64::from((1.0 - alpha_prod_t).sqrt());
    let (weights, tensors) = match prediction_type {
        PredictionType::Sample => (LinearCombination::new(&[1.0]), vec![model_output]),
        PredictionType::VPrediction => {
            (LinearCombination::new(&[alpha_root, -beta_root]), vec![sample, model_output])
        }
        _ => (LinearCombination::new(&[1.0, -beta_root]).divided_by(alpha_root), vec![sample, model_output]),
    };
    weights.clamped(limit).apply(&tensors, dtype)
}

/// A few of the timesteps, for error messages.
pub(crate) fn describe_timesteps(timesteps: &[f64]) -> String {
    match timesteps {
        [first, second, .., last] => format!("expected one of {first}, {second}, ..., {last}"),
        all => format!("expected one of {all:?}"),
    }
}
