//! The loss that teaches an autoencoder to give pictures back.

use candle_core::Tensor;
use candle_diffusers_models::AutoencoderKL;
use candle_diffusers_training::{RandomSource, Result};

/// How much the latents' divergence from the normal distribution counts.
const KL_WEIGHT: f64 = 1e-6;

/// The mean squared difference of `pictures` `(batch, 3, height, width)` from what the autoencoder makes of their latents, which are drawn once.
pub(crate) fn reconstruction_loss(
    vae: &AutoencoderKL,
    pictures: &Tensor,
    generator: &mut dyn RandomSource,
) -> Result<Tensor> {
    let distribution = vae.encode(pictures)?;
    let mean = distribution.mean();
    let noise = generator.randn(mean.dims(), mean.dtype(), mean.device())?;
    let given_back = vae.decode(&distribution.sample(&noise)?)?;
    let difference = (given_back - pictures)?.sqr()?.mean_all()?;
    Ok((difference + (distribution.kl()?.mean_all()? * KL_WEIGHT)?)?)
}
