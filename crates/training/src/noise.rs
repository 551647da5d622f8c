//! The noise and the timesteps of a training step, drawn in the order of diffusers' scripts.

use candle_core::{Device, Tensor};
use candle_diffusers_schedulers::NoiseSource;

use crate::error::{Error, Result};
use crate::processes::RandomSource;

/// What is done to noise before it is added; nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NoiseOptions {
    /// How much of one more random number for each channel is added to all of its noise, so that a model learns dark and bright pictures
    /// (<https://www.crosslabs.org/blog/diffusion-with-offset-noise>); 0.1 is usual.
    pub noise_offset: f64,
    /// How much more noise the latents get than the model is to find (<https://arxiv.org/abs/2301.11706>); 0.1 is usual.
    pub input_perturbation: f64,
}

/// The noise of a training step.
#[derive(Clone, Debug)]
pub struct Noise {
    /// What the model is to find.
    pub target: Tensor,
    /// What the latents get.
    pub added: Tensor,
}

/// Draws noise for `latents`, shaped (batch, channels, ...), in their dtype.
///
/// # Errors
/// If the latents have fewer than two dimensions or a dtype that torch draws no noise in.
pub fn draw_noise(latents: &Tensor, options: &NoiseOptions, source: &mut dyn NoiseSource) -> Result<Noise> {
    let (shape, dtype, device) = (latents.dims(), latents.dtype(), latents.device());
    let [batch, channels, ..] = *shape else {
        let expected = "(batch, channels, ...)".to_string();
        return Err(Error::Shape { what: "latents", found: shape.to_vec(), expected });
    };
    let mut target = source.randn(shape, dtype, device)?;
    if options.noise_offset != 0.0 {
        let mut offset_shape = vec![1; shape.len()];
        offset_shape[..2].copy_from_slice(&[batch, channels]);
        let offset = source.randn(&offset_shape, dtype, device)?;
        target = target.broadcast_add(&(offset * options.noise_offset)?)?;
    }
    let added = if options.input_perturbation == 0.0 {
        target.clone()
    } else {
        (&target + (source.randn(shape, dtype, device)? * options.input_perturbation)?)?
    };
    Ok(Noise { target, added })
}

/// A random timestep below `num_train_timesteps` for each of `batch` pictures, as `torch.randint`.
///
/// # Errors
/// If `num_train_timesteps` is 0.
pub fn draw_timesteps(
    batch: usize,
    num_train_timesteps: usize,
    generator: &mut dyn RandomSource,
) -> Result<Vec<f64>> {
    let high = i64::try_from(num_train_timesteps).unwrap_or(i64::MAX);
    let timesteps = generator.randint(0, high, &[batch], &Device::Cpu)?.to_vec1::<i64>()?;
    Ok(timesteps.into_iter().map(|timestep| timestep as f64).collect())
}

/// How many of the timesteps are drawn from where only a share of them is, from the first: `int(num_train_timesteps * t_mutliplier)` in `loss_step` of cloneofsimo's
/// `lora_diffusion/cli_lora_pti.py`.
///
/// # Errors
/// If the share is more than 1 or leaves no timestep.
pub(crate) fn drawn_timesteps(num_train_timesteps: usize, share: Option<f64>) -> Result<usize> {
    let Some(share) = share else { return Ok(num_train_timesteps) };
    let drawn = (num_train_timesteps as f64 * share) as usize;
    if (1..=num_train_timesteps).contains(&drawn) {
        return Ok(drawn);
    }
    let expected = format!("at most 1, and enough for one of {num_train_timesteps} timesteps");
    Err(Error::Field { field: "t_multiplier", found: share.to_string(), expected })
}

#[cfg(test)]
mod tests {
    use candle_diffusers_schedulers::TorchGenerator;

    use super::*;

    #[test]
    fn a_share_of_the_timesteps_is_drawn_from() {
        let drawn = |share| drawn_timesteps(1000, share);
        let found = [None, Some(1.0), Some(0.8), Some(0.0015)].map(|share| drawn(share).unwrap());
        assert_eq!(found, [1000, 1000, 800, 1]);
        for wrong in [0.0, 0.0009, -0.5, 1.1, f64::NAN] {
            let error = drawn(Some(wrong)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("t_multiplier is {wrong}; expected at most 1")), "{error}");
        }
        let timesteps = draw_timesteps(2000, 800, &mut TorchGenerator::new(0)).unwrap();
        assert!(timesteps.iter().all(|timestep| *timestep < 800.0));
        assert!(timesteps.iter().any(|timestep| *timestep > 780.0));
    }
}
