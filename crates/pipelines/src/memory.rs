//! How much memory a picture takes, so that one too large is refused before the work.

use candle_core::{DType, Device};
use candle_diffusers_models::{AutoencoderKLConfig, UNet2DConditionConfig, UNet2DConfig};
use sysinfo::{MemoryRefreshKind, System};

use crate::error::{Result, argument};

/// What the VAE's full-size layers hold at a time, as a multiple of the narrowest one. Measured at 512x512 with Stable
/// Diffusion 1.5's VAE in float32: 1.12 GB above the weights, where one copy is 134 MB.
const DECODER_COPIES: f64 = 9.0;
/// The same for the UNet, where it sees one picture. Measured with Stable Diffusion 1.5's UNet on a batch of 2: 0.51 GB above the
/// weights, where one copy of both is 10.5 MB.
const UNET_COPIES: f64 = 50.0;

/// Bytes that painting takes besides the weights, roughly: what the largest layers of UNet and VAE hold at a time.
///
/// Each model comes with the dtype that it computes in. `batch` is the number of pictures; with guidance the UNet sees each twice. `width` and `height` are in pixels.
pub fn working_memory(
    (unet, unet_dtype): (&UNet2DConditionConfig, DType),
    (vae, vae_dtype): (&AutoencoderKLConfig, DType),
    batch: usize,
    width: usize,
    height: usize,
) -> f64 {
    let (unet_bytes, vae_bytes) = (unet_dtype.size_in_bytes() as f64, vae_dtype.size_in_bytes() as f64);
    let pixels = width as f64 * height as f64;
    let factor = vae.vae_scale_factor() as f64;
    let latent_pixels = pixels / (factor * factor);
    // Pictures are decoded one after the other.
    let decoder = DECODER_COPIES * pixels * vae.block_out_channels[0] as f64 * vae_bytes;
    let unet =
        UNET_COPIES * 2.0 * batch as f64 * latent_pixels * unet.block_out_channels[0] as f64 * unet_bytes;
    let pictures = batch as f64 * pixels * 3.0 * 4.0;
    decoder.max(unet) + pictures
}

/// The same for a UNet that paints without a text: it sees each picture once.
pub(crate) fn unconditional_memory(
    unet: &UNet2DConfig,
    dtype: DType,
    batch: usize,
    width: usize,
    height: usize,
) -> f64 {
    let numbers = batch as f64 * width as f64 * height as f64 * unet.block_out_channels[0] as f64;
    UNET_COPIES * numbers * dtype.size_in_bytes() as f64
}

/// An error where `bytes` are more than this machine has.
///
/// # Errors
/// When `device` is the CPU and the machine's memory is known and smaller.
pub(crate) fn check_memory(device: &Device, bytes: f64, what: &str) -> Result<()> {
    if !matches!(device, Device::Cpu) {
        return Ok(());
    }
    // Where the system does not tell, the attempt will.
    let Ok(mut system) = System::new() else { return Ok(()) };
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let total = system.total_memory() as f64;
    if total > 0.0 && bytes > total {
        let problem = format!(
            "{what} would need about {} of memory, and this machine has {}; ask for less",
            gigabytes(bytes),
            gigabytes(total)
        );
        return argument("width, height", problem);
    }
    Ok(())
}

fn gigabytes(bytes: f64) -> String {
    format!("{:.1} GB", bytes / 1e9)
}
