//! The noise that a picture begins as, and the picture that latents decode to.

use candle_core::{DType, Device, Tensor};
use candle_diffusers_models::{AutoencoderKL, AutoencoderKLConfig, DiagonalGaussianDistribution};
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

/// Latents of pictures `(pictures, 3, height, width)` with values from -1 to 1: one draw from what the VAE says of each, scaled
/// as diffusion models see them ([`scale_latents`]); `(batch, channels, height / factor, width / factor)`.
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
    repeat_all(&draw_latents(vae, pictures, draws, noise)?, batch)
}

/// Latents of pictures as [`encode_pictures`] gives them, but with one draw for each picture whatever `noise` is, from the first generators where it
/// has several: as diffusers' inpainting encodes.
///
/// # Errors
/// When shapes do not fit, or there are more pictures than generators.
pub fn encode_each(vae: &AutoencoderKL, pictures: &Tensor, noise: &mut dyn NoiseSource) -> Result<Tensor> {
    draw_latents(vae, pictures, pictures.dim(0)?, noise)
}

/// `draws` latents of pictures that are taken one after the other, again and again.
fn draw_latents(
    vae: &AutoencoderKL,
    pictures: &Tensor,
    draws: usize,
    noise: &mut dyn NoiseSource,
) -> Result<Tensor> {
    let count = pictures.dim(0)?;
    let distributions = encode_distributions(vae, pictures)?;
    let mean = distributions[0].mean();
    let mut shape = mean.dims().to_vec();
    shape[0] = draws;
    let noise = noise.randn_of_first(&shape, mean.dtype(), mean.device())?;
    let draw = |i: usize| Ok(distributions[i % count].sample(&noise.narrow(0, i, 1)?)?);
    let latents = Tensor::cat(&(0..draws).map(draw).collect::<Result<Vec<_>>>()?, 0)?;
    scale_latents(vae.config(), &latents)
}

/// What the VAE says of each picture, one after the other, as they are decoded. One that comes out of half precision with infinities or NaN is encoded once
/// more in float32, with a warning; what is said of it is in the VAE's dtype all the same.
///
/// # Errors
/// When shapes do not fit.
pub(crate) fn encode_distributions(
    vae: &AutoencoderKL,
    pictures: &Tensor,
) -> Result<Vec<DiagonalGaussianDistribution>> {
    let mut in_float32 = InFloat32::new(vae);
    let mut distributions = Vec::new();
    for i in 0..pictures.dim(0)? {
        let picture = pictures.narrow(0, i, 1)?;
        let mut distribution = vae.encode(&picture)?;
        if in_float32.may_help() && !is_finite(distribution.mean())? && is_finite(&picture)? {
            in_float32.warn("encoded", i);
            distribution = in_float32.vae()?.encode(&picture.to_dtype(DType::F32)?)?.to_dtype(vae.dtype())?;
        }
        distributions.push(distribution);
    }
    Ok(distributions)
}

/// A VAE in float32, made when it is first needed.
struct InFloat32<'a> {
    half: &'a AutoencoderKL,
    single: Option<AutoencoderKL>,
}

impl<'a> InFloat32<'a> {
    fn new(half: &'a AutoencoderKL) -> Self {
        Self { half, single: None }
    }

    /// Whether the VAE computes in less than float32.
    fn may_help(&self) -> bool {
        self.half.dtype().size_in_bytes() < 4
    }

    fn vae(&mut self) -> Result<&AutoencoderKL> {
        match &mut self.single {
            Some(vae) => Ok(vae),
            none => Ok(none.insert(self.half.to_dtype(DType::F32)?)),
        }
    }

    fn warn(&self, done: &str, index: usize) {
        tracing::warn!(
            "{done} in {}, picture {} has values that are infinite or not numbers: it is {done} again in float32",
            self.half.dtype().as_str(),
            index + 1
        );
    }
}

/// A VAE's latents as a diffusion model sees them: times `scaling_factor`, and brought to mean 0 and deviation 1 where the config knows theirs.
///
/// # Errors
/// When the config has statistics of another number of channels.
pub fn scale_latents(config: &AutoencoderKLConfig, latents: &Tensor) -> Result<Tensor> {
    match latents_statistics(config, latents)? {
        Some([mean, std]) => {
            Ok((latents.broadcast_sub(&mean)? * config.scaling_factor)?.broadcast_div(&std)?)
        }
        None => Ok((latents * config.scaling_factor)?),
    }
}

/// Undoes [`scale_latents`].
///
/// # Errors
/// When the config has statistics of another number of channels.
pub fn unscale_latents(config: &AutoencoderKLConfig, latents: &Tensor) -> Result<Tensor> {
    match latents_statistics(config, latents)? {
        Some([mean, std]) => {
            Ok((latents.broadcast_mul(&std)? / config.scaling_factor)?.broadcast_add(&mean)?)
        }
        None => Ok((latents / config.scaling_factor)?),
    }
}

/// `latents_mean` and `latents_std` as `(1, channels, 1, 1)`, where the config has both.
fn latents_statistics(config: &AutoencoderKLConfig, latents: &Tensor) -> Result<Option<[Tensor; 2]>> {
    let (Some(mean), Some(std)) = (&config.latents_mean, &config.latents_std) else { return Ok(None) };
    let channels = |values: &[f64]| -> Result<Tensor> {
        let values = Tensor::new(values, latents.device())?.to_dtype(latents.dtype())?;
        Ok(values.reshape((1, (), 1, 1))?)
    };
    Ok(Some([channels(mean)?, channels(std)?]))
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

/// Decodes latents `(batch, latent_channels, height, width)` to `(batch, 3, factor * height, factor * width)`, values about -1 to 1.
///
/// Pictures are decoded one after the other: that takes no longer and a batch's memory less. One that comes out of half precision with
/// infinities or NaN, because its numbers have become too large for float16 (SDXL's first VAE is known for it), is decoded once more in
/// float32, with a warning (through `tracing`); its result is in the VAE's dtype all the same. Latents that are no numbers themselves, because the diffusion model
/// has overflowed, give a warning too: no decoder can mend those.
///
/// # Errors
/// When shapes do not fit.
pub fn decode_latents(vae: &AutoencoderKL, latents: &Tensor) -> Result<Tensor> {
    // In the VAE's dtype, which may be a wider one.
    let scaled = unscale_latents(vae.config(), &latents.to_dtype(vae.dtype())?)?;
    let mut in_float32 = InFloat32::new(vae);
    let mut pictures = Vec::new();
    for i in 0..latents.dim(0)? {
        let mut picture = vae.decode(&scaled.narrow(0, i, 1)?)?;
        let latents = latents.narrow(0, i, 1)?;
        if !is_finite(&latents)? {
            let advice = match latents.dtype().size_in_bytes() {
                0..4 => ": the diffusion model needs a wider type",
                _ => "",
            };
            tracing::warn!(
                "the latents of picture {}, in {}, are infinite or not numbers, so that it will be black{advice}",
                i + 1,
                latents.dtype().as_str()
            );
        } else if in_float32.may_help() && !is_finite(&picture)? {
            in_float32.warn("decoded", i);
            let latents = unscale_latents(vae.config(), &latents.to_dtype(DType::F32)?)?;
            picture = in_float32.vae()?.decode(&latents)?.to_dtype(vae.dtype())?;
        }
        pictures.push(picture);
    }
    Ok(Tensor::cat(&pictures, 0)?)
}

pub(crate) fn is_finite(x: &Tensor) -> Result<bool> {
    let values: Vec<f32> = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    Ok(values.into_iter().all(f32::is_finite))
}
