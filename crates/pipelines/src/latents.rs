//! The noise that a picture begins as, and the picture that latents decode to.

use candle_core::{DType, Device, Tensor};
use candle_diffusers_models::AutoencoderKL;
use candle_diffusers_schedulers::{NoiseSource, Scheduler};

use crate::error::Result;

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
