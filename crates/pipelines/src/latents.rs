//! The noise that a picture begins as, and the picture that latents decode to.

use candle_core::{DType, Device, Tensor};
use candle_diffusers_models::AutoencoderKL;
use candle_diffusers_schedulers::{NoiseSource, Scheduler};

use crate::error::{Result, argument};

/// Noise to begin with: drawn from `noise` and scaled to what `scheduler` begins with.
///
/// `shape` is `(batch, channels, height, width)`, height and width in latent pixels.
///
/// # Errors
/// When `noise` has another number of generators than there are pictures.
pub fn prepare_latents(
    shape: [usize; 4],
    scheduler: &dyn Scheduler,
    noise: &mut dyn NoiseSource,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let latents = noise.randn(&shape, dtype, device)?;
    scale_initial_latents(&latents, scheduler)
}

/// Standard normal `latents` scaled to what `scheduler` begins with (`init_noise_sigma`).
///
/// # Errors
/// Those of the device.
pub fn scale_initial_latents(latents: &Tensor, scheduler: &dyn Scheduler) -> Result<Tensor> {
    Ok((latents * scheduler.init_noise_sigma())?)
}

/// Latents of pictures `(pictures, 3, height, width)` with values from -1 to 1: one draw from what the VAE says of each, times its
/// `scaling_factor`; `(batch, channels, height / factor, width / factor)`.
///
/// `batch` is a multiple of the pictures, which are taken one after the other, again and again. Where `noise` has a generator for each of the
/// batch, each draws its own latents; where it has one for all, it draws once for each picture, as in diffusers.
///
/// # Errors
/// When shapes do not fit, or `batch` is no multiple of the pictures.
pub fn encode_pictures(
    vae: &AutoencoderKL,
    pictures: &Tensor,
    batch: usize,
    noise: &mut dyn NoiseSource,
) -> Result<Tensor> {
    let count = pictures.dim(0)?;
    check_repeats("pictures", count, batch)?;
    let draws = if noise.generators().is_some() { batch } else { count };
    // One after the other, as they are decoded.
    let distributions =
        (0..count).map(|i| Ok(vae.encode(&pictures.narrow(0, i, 1)?)?)).collect::<Result<Vec<_>>>()?;
    let mean = distributions[0].mean();
    let mut shape = mean.dims().to_vec();
    shape[0] = draws;
    let noise = noise.randn(&shape, mean.dtype(), mean.device())?;
    let draw = |i: usize| Ok(distributions[i % count].sample(&noise.narrow(0, i, 1)?)?);
    let latents = Tensor::cat(&(0..draws).map(draw).collect::<Result<Vec<_>>>()?, 0)?;
    repeat_all(&(latents * vae.config().scaling_factor)?, batch)
}

/// `latents` of one or several pictures as those of a whole batch: all of them, again and again.
///
/// # Errors
/// When `batch` is no multiple of their number.
pub(crate) fn repeat_all(latents: &Tensor, batch: usize) -> Result<Tensor> {
    let count = latents.dim(0)?;
    check_repeats("latents", count, batch)?;
    Ok(Tensor::cat(&vec![latents; batch / count], 0)?)
}

fn check_repeats(what: &'static str, count: usize, batch: usize) -> Result<()> {
    if count > 0 && batch.is_multiple_of(count) && batch > 0 {
        return Ok(());
    }
    argument(what, format!("are {count}, expected 1, or as many as the {batch} pictures to paint"))
}

/// The first of `steps` that image to image takes: the last `strength` of them, rounded down. None where no step is left.
pub fn first_step(steps: usize, strength: f64) -> Option<usize> {
    let taken = ((steps as f64 * strength) as usize).min(steps);
    (taken > 0).then_some(steps - taken)
}

/// Decodes latents `(batch, latent_channels, height, width)` to `(batch, 3, factor * height, factor * width)`, values about -1 to 1.
///
/// Pictures are decoded one after the other: that takes no longer and a batch's memory less.
///
/// # Errors
/// When shapes do not fit.
pub fn decode_latents(vae: &AutoencoderKL, latents: &Tensor) -> Result<Tensor> {
    let latents = (latents / vae.config().scaling_factor)?;
    let picture = |i: usize| -> Result<Tensor> { Ok(vae.decode(&latents.narrow(0, i, 1)?)?) };
    let pictures = (0..latents.dim(0)?).map(picture).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&pictures, 0)?)
}
