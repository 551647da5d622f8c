//! What a run leaves.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use candle_diffusers_convert::{
    ConvertOptions, Dtype, LoraFile, LoraFormat, Structure, WriteOptions, convert,
};
use candle_diffusers_loaders::Repository;
use candle_diffusers_loaders::lora::unet_structure;
use candle_diffusers_models::layers::Layers;
use candle_diffusers_training::recipes::{
    CustomDiffusion, TrainedControlNet, TrainedToken, UnconditionalDenoising, save_unconditional,
};
use candle_diffusers_training::{TrainedLora, parameters, save_component, save_lora};
use serde_json::Value;

use super::TrainedLoraFormat;
use super::model::{open_component, vae_folder};
use super::session::{Learned, Session};
use super::taught::Taught;
use crate::terminal;

/// Begins as those of checkpoints that are not whole yet: what a run that was killed leaves of it, the next one removes.
pub(super) const PARTIAL: &str = ".checkpoint-result-";

/// The name that diffusers looks for.
const LORA_FILE: &str = "pytorch_lora_weights.safetensors";

/// The name that diffusers' script gives to the same in kohya's layout.
const KOHYA_FILE: &str = "pytorch_lora_weights_kohya.safetensors";

/// Writes a LoRA in diffusers' layout and the vectors of words into a folder, where there are such.
pub(super) fn write_learned(folder: &Path, learned: &Learned) -> candle_diffusers_training::Result<()> {
    TrainedToken::save_all(&learned.tokens, folder)?;
    if let Some(custom) = &learned.custom {
        custom.save(folder)?;
        custom.save_as_lora(&folder.join(LORA_FILE))?;
    }
    write_lora(folder, &learned.loras)
}

fn write_lora(folder: &Path, loras: &[TrainedLora]) -> candle_diffusers_training::Result<()> {
    if loras.is_empty() {
        return Ok(());
    }
    save_lora(&folder.join(LORA_FILE), loras)
}

/// Writes what was learned: a LoRA's file, or a whole model's folder.
pub(super) fn write(session: &mut Session, repository: Option<&Repository>) -> Result<()> {
    let folder = &session.parts.folder;
    for path in TrainedToken::save_all(&session.parts.learned.tokens, folder)? {
        terminal::note(&format!("wrote {}", path.display()));
    }
    if let Taught::ControlNet(_, trained, _) = &session.parts.taught {
        return write_controlnet(folder, trained);
    }
    if let Some(custom) = &session.parts.learned.custom {
        return write_custom_diffusion(session, custom);
    }
    if session.parts.learned.loras.is_empty() {
        return match (session.parts.learned.tokens.is_empty(), repository) {
            (true, Some(repository)) => write_whole(session, repository),
            (true, None) => write_unconditional(session),
            (false, _) => Ok(()),
        };
    }
    let write = |path: &Path| Ok(save_lora(path, &session.parts.learned.loras)?);
    write_in_layout(session, &folder.join(LORA_FILE), write)
}

/// What diffusers' script writes, and a LoRA of the same change, which other programs read.
fn write_custom_diffusion(session: &Session, custom: &CustomDiffusion) -> Result<()> {
    let folder = &session.parts.folder;
    custom.save(folder)?;
    terminal::note(&format!(
        "wrote {}",
        folder.join("pytorch_custom_diffusion_weights.safetensors").display()
    ));
    for token in &custom.tokens {
        terminal::note(&format!("wrote {}", token.file_in(folder).display()));
    }
    write_in_layout(session, &folder.join(LORA_FILE), |path| Ok(custom.save_as_lora(path)?))
}

/// Writes a LoRA's file in the layout that was asked for, and in kohya's beside it where that was asked for too.
fn write_in_layout(session: &Session, path: &Path, write: impl Fn(&Path) -> Result<()>) -> Result<()> {
    let arguments = &session.arguments.lora;
    let structures: Vec<Structure> = session
        .parts
        .taught
        .pipeline()
        .map(|models| unet_structure(&models.unet.layers()))
        .into_iter()
        .collect();
    match arguments.lora_format {
        TrainedLoraFormat::Kohya => write_kohya(path, &structures, &write)?,
        TrainedLoraFormat::Diffusers => write(path)?,
    }
    terminal::note(&format!("wrote {}", path.display()));
    if arguments.output_kohya_format {
        let second = path.with_file_name(KOHYA_FILE);
        write_kohya(&second, &structures, &write)?;
        terminal::note(&format!("wrote {}", second.display()));
    }
    Ok(())
}

/// Writes a LoRA's file in kohya's layout, for models of these structures.
fn write_kohya(path: &Path, structures: &[Structure], write: impl Fn(&Path) -> Result<()>) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(folder)?;
    let first = temporary.path().join(LORA_FILE);
    write(&first)?;
    let source = LoraFile::open_source(&first)?;
    let lora = LoraFile::read_for(source.as_ref(), structures)?;
    let options = WriteOptions { overwrite: true, ..Default::default() };
    lora.write(source.as_ref(), path, LoraFormat::Kohya, &options, &|_| ())?;
    Ok(())
}

/// The folder of a ControlNet alone, as they are published.
fn write_controlnet(folder: &Path, trained: &TrainedControlNet) -> Result<()> {
    let temporary = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(folder)?;
    let whole = temporary.path().join("controlnet");
    trained.save(&whole)?;
    put_in_place(&whole, &folder.join("controlnet"))
}

/// A pipeline's folder for a UNet that paints without a text.
fn write_unconditional(session: &Session) -> Result<()> {
    let Taught::Unconditional(unet, config, options) = &session.parts.taught else { return Ok(()) };
    let scheduler = UnconditionalDenoising::new(unet, options)?;
    let trained: Vec<_> = parameters(&session.parts.trainer.groups).cloned().collect();
    let temporary = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(&session.parts.folder)?;
    let whole = temporary.path().join("model");
    save_unconditional(&whole, config, &trained, scheduler.scheduler())?;
    put_in_place(&whole, &session.parts.folder.join("model"))
}

/// The folder of the model that the run began with, with the weights that were trained.
fn write_whole(session: &Session, repository: &Repository) -> Result<()> {
    let folder = &session.parts.folder;
    // A model from the hub lies in a folder of the cache; one in a single file has none.
    let given = session.arguments.pretrained_model_name_or_path.as_deref().map(Path::new);
    let source = repository.path().or(given).context("there is no folder to begin with")?;
    let model = folder.join("model");
    // All of it in the dtype of what was trained: diffusers computes with each part in that of its file.
    let options = ConvertOptions {
        source_variant: session.arguments.variant.clone(),
        write: WriteOptions { overwrite: true, dtype: Some(Dtype::F32), ..Default::default() },
        ..Default::default()
    };
    let temporary = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(folder)?;
    let whole = temporary.path().join("model");
    convert(source, &whole, &options, &|_| ())?;
    if let Some(name) = &session.arguments.pretrained_vae_model_name_or_path {
        // Latents are of this VAE now.
        let vae = open_component(name, session.progress)?;
        let given = vae.path().unwrap_or(Path::new(name));
        let folder = vae_folder(&vae);
        let given = if folder.is_empty() { given.to_path_buf() } else { given.join(folder) };
        replace_vae(&given, &whole.join("vae"), &options)?;
    }
    let trained: Vec<_> = parameters(&session.parts.trainer.groups).cloned().collect();
    let components = [("unet", "diffusion_pytorch_model.safetensors"), ("text_encoder", "model.safetensors")];
    for (component, weights) in components {
        let prefix = format!("{component}.");
        if !trained.iter().any(|parameter| parameter.name.starts_with(&prefix)) {
            continue;
        }
        let config = match &session.parts.taught {
            Taught::Editing(_, unet, _) => unet.clone(),
            _ => repository.read_json(&format!("{component}/config.json"))?,
        };
        let place = whole.join(component);
        fs::remove_dir_all(&place).with_context(|| format!("writing {}", place.display()))?;
        save_component(&place, weights, &config, component, &trained)?;
    }
    if let Taught::Editing(..) = &session.parts.taught {
        let class = "StableDiffusionInstructPix2PixPipeline";
        change_index(&whole.join("model_index.json"), |index| index["_class_name"] = class.into())?;
    }
    write_noise_schedule(session, &whole)?;
    put_in_place(&whole, &model)
}

/// Puts another VAE, a folder or a file, in the place of a pipeline's.
fn replace_vae(given: &Path, place: &Path, options: &ConvertOptions) -> Result<()> {
    fs::remove_dir_all(place).with_context(|| format!("writing {}", place.display()))?;
    convert(given, place, options, &|_| ())?;
    Ok(())
}

/// Changes a pipeline's index.
fn change_index(path: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let name = || format!("writing {}", path.display());
    let mut index = serde_json::from_slice(&fs::read(path).with_context(name)?).with_context(name)?;
    change(&mut index);
    fs::write(path, format!("{index:#}\n")).with_context(name)
}

/// A model that was taught by another noise schedule than its own must be painted with by that.
fn write_noise_schedule(session: &Session, folder: &Path) -> Result<()> {
    let noise = &session.arguments.noise;
    let Some(models) = session.parts.taught.pipeline() else { return Ok(()) };
    if noise.prediction_type.is_none() && !noise.rescale_betas_zero_snr {
        return Ok(());
    }
    let config = models.scheduler().config();
    let class = config["_class_name"].clone();
    change_index(&folder.join("model_index.json"), |index| index["scheduler"][1] = class)?;
    let path = folder.join("scheduler/scheduler_config.json");
    fs::write(&path, format!("{config:#}\n")).with_context(|| format!("writing {}", path.display()))
}

/// Gives a folder its name. It lies in a temporary one, where what had the name before goes to be removed: not under its name, where a run that is killed would leave a
/// part of it.
fn put_in_place(whole: &Path, model: &Path) -> Result<()> {
    let old = whole.with_file_name("old");
    if model.exists() {
        fs::rename(model, &old).with_context(|| format!("replacing {}", model.display()))?;
    }
    if let Err(error) = fs::rename(whole, model) {
        fs::rename(&old, model).ok();
        return Err(error).with_context(|| format!("writing {}", model.display()));
    }
    terminal::note(&format!("wrote {}", model.display()));
    Ok(())
}
