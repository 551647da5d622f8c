//! All pictures and captions encoded before the first step, so that what encodes them need not stay in memory.

use anyhow::{Result, ensure};
use candle_diffusers_training::recipes::{Denoising, Example, InstructPix2PixDenoising};

use super::session::{Parts, Stage};
use super::taught::Taught;
use super::{TrainArguments, interrupt};
use crate::progress::Progress;
use crate::terminal;

/// Pictures that are read at once.
const TOGETHER: usize = 8;

/// Encodes everything and frees the encoders, where each picture comes again as it is, all will come, and nothing else needs encoders: no validation picture is painted,
/// and no other stage follows. Text encoders that are trained stay.
pub(super) fn encode_ahead(arguments: &TrainArguments, progress: &Progress, parts: &Parts) -> Result<()> {
    let (models, options) = match &parts.taught {
        Taught::StableDiffusion(models, options)
        | Taught::CustomDiffusion(models, options)
        | Taught::ControlNet(models, _, options) => (models, options),
        Taught::Editing(models, _, options) => (models, &options.denoising),
        Taught::Unconditional(..) => return Ok(()),
    };
    let left = parts.max_steps.saturating_sub(parts.trainer.steps_done());
    // A model that paints into pictures is shown other parts of them each time.
    let paints_into = models.unet.config().in_channels == 2 * models.vae.config().latent_channels + 1;
    if !(parts.data.is_fixed() && parts.data.all_come(left, arguments))
        || paints_into
        || parts.stage == Stage::Word
        || arguments.is_looked_at()
    {
        return Ok(());
    }
    let encode = encoder(&parts.taught)?;
    let count = parts.data.len();
    let bar = progress.steps("encoding pictures and captions", count);
    for first in (0..count).step_by(TOGETHER) {
        ensure!(
            !interrupt::has_come(),
            "interrupted while pictures were encoded, before the first step; the same command begins again"
        );
        bar.set_done(first, count);
        encode(&parts.data.examples(first..(first + TOGETHER).min(count))?)?;
    }
    drop(bar);
    let freed = if options.train_text_encoder {
        options.encoded.free_vae(models)?;
        "the VAE is not kept"
    } else {
        options.encoded.free_encoders(models)?;
        "the VAE and the text encoders are not kept"
    };
    progress.suspend(|| terminal::note(&format!("all pictures are encoded; {freed}")));
    Ok(())
}

/// What encodes the pictures and captions of a batch.
type Encoder<'a> = Box<dyn Fn(&[Example]) -> candle_diffusers_training::Result<()> + 'a>;

fn encoder(taught: &Taught) -> Result<Encoder<'_>> {
    Ok(match taught {
        Taught::StableDiffusion(models, options)
        | Taught::CustomDiffusion(models, options)
        | Taught::ControlNet(models, _, options) => {
            let denoising = Denoising::new(models, options.clone())?;
            Box::new(move |examples| denoising.encode_ahead(examples))
        }
        Taught::Editing(models, _, options) => {
            let denoising = InstructPix2PixDenoising::new(models, options.clone(), 0)?;
            Box::new(move |examples| denoising.encode_ahead(examples))
        }
        Taught::Unconditional(..) => Box::new(|_| Ok(())),
    })
}
