//! All pictures and captions encoded before the first step, so that what encodes them need not stay in memory.

use anyhow::{Result, ensure};
use candle_diffusers_training::recipes::Denoising;

use super::session::Parts;
use super::taught::Taught;
use super::{TrainArguments, interrupt};
use crate::progress::Progress;
use crate::terminal;

/// Pictures that are read at once.
const TOGETHER: usize = 8;

/// Encodes everything and frees the encoders, where each picture comes again as it is, all will come, and nothing else needs encoders: they are not trained, and no
/// validation picture is painted.
pub(super) fn encode_ahead(arguments: &TrainArguments, progress: &Progress, parts: &Parts) -> Result<()> {
    // The others want encoders for more than pictures and captions, or train them.
    let (Taught::StableDiffusion(models, options) | Taught::ControlNet(models, _, options)) = &parts.taught
    else {
        return Ok(());
    };
    let left = parts.max_steps.saturating_sub(parts.trainer.steps_done());
    let all_come = parts.data.all_come(left, arguments);
    let paints = models.unet.config().in_channels == models.vae.config().latent_channels;
    if !(parts.data.is_fixed() && all_come && paints)
        || options.train_text_encoder
        || arguments.is_looked_at()
    {
        return Ok(());
    }
    let denoising = Denoising::new(models, options.clone())?;
    let count = parts.data.len();
    let bar = progress.steps("encoding pictures and captions", count);
    for first in (0..count).step_by(TOGETHER) {
        ensure!(
            !interrupt::has_come(),
            "interrupted while pictures were encoded, before the first step; the same command begins again"
        );
        bar.set_done(first, count);
        denoising.encode_ahead(&parts.data.examples(first..(first + TOGETHER).min(count))?)?;
    }
    drop(bar);
    options.encoded.free_encoders(models)?;
    progress
        .suspend(|| terminal::note("all pictures are encoded; the VAE and the text encoders are not kept"));
    Ok(())
}
