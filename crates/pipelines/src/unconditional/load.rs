use candle_core::{DType, Device};
use candle_diffusers_loaders::{
    LoadOptions, ModelIndex, Repository, check_variant, load_unet_2d, load_vq_model,
};
use candle_diffusers_models::{UNet2DModel, VQModel};
use candle_diffusers_schedulers::{Scheduler, scheduler_from_config, scheduler_from_other};
use serde_json::Value;

use super::UnconditionalPipeline;
use crate::error::{Error, Result};
use crate::scheduler_config::load_scheduler_config_in;

/// The pipelines' classes in model_index.json. `LDMPipeline` had another name at first.
const CLASSES: [&str; 4] = ["DDPMPipeline", "DDIMPipeline", "LDMPipeline", "LatentDiffusionUncondPipeline"];

/// Steps of a `DDPMPipeline`, and of the others.
const DDPM_STEPS: usize = 1000;
const STEPS: usize = 50;

impl UnconditionalPipeline {
    /// Of a UNet that sees pictures themselves, and the config of the scheduler that it was trained with. It takes 1000 steps by default where that is
    /// a `DDPMScheduler`, as a `DDPMPipeline` does.
    ///
    /// # Errors
    /// When there is no such scheduler.
    pub fn new(unet: UNet2DModel, scheduler_config: &Value, device: Device, dtype: DType) -> Result<Self> {
        let scheduler = scheduler_from_config(scheduler_config)?;
        let scheduler_config = scheduler.config();
        let default_steps =
            if scheduler_config["_class_name"] == "DDPMScheduler" { DDPM_STEPS } else { STEPS };
        Ok(Self { unet, vqvae: None, scheduler, scheduler_config, default_steps, device, dtype })
    }

    /// Whether the pipeline with this index is one that paints without a text.
    pub fn is_unconditional(index: &ModelIndex) -> bool {
        CLASSES.contains(&index.class_name.as_str())
    }

    /// Loads a folder in diffusers' layout. The oldest of them have the UNet and the scheduler's config at their top.
    ///
    /// # Errors
    /// When a file is missing or damaged, a config has a field that is not supported, or the folder is of another kind of model.
    pub fn load(repository: &Repository, options: &LoadOptions) -> Result<Self> {
        let index = ModelIndex::load(repository)?;
        let folder_error = |problem| Err(Error::Folder { file: index.file().to_string(), problem });
        if !Self::is_unconditional(&index) {
            let problem = format!(
                "is the index of a {}, expected one that paints without a text: {}",
                index.class_name,
                CLASSES[..3].join(", ")
            );
            return folder_error(problem);
        }
        let unet_class = &index.component("unet")?.class_name;
        if unet_class != "UNet2DModel" {
            return folder_error(format!("unet is a {unet_class}, expected a UNet2DModel"));
        }
        if let Some(variant) = &options.variant {
            check_variant(repository, &index, variant)?;
        }
        let (scheduler, scheduler_config) = load_scheduler(repository, &index)?;
        let unet = load_unet_2d(repository, folder_of(repository, "unet"), options)?;
        let vqvae = match index.components.contains_key("vqvae") {
            true => Some(load_vq_model(repository, "vqvae", options)?),
            false => None,
        };
        check_channels(repository, &unet, vqvae.as_ref())?;
        Ok(Self {
            unet,
            vqvae,
            scheduler,
            scheduler_config,
            default_steps: if index.class_name == "DDPMPipeline" { DDPM_STEPS } else { STEPS },
            device: options.device.clone(),
            dtype: options.dtype,
        })
    }
}

/// The folder of a component: its own, or where there is none the top.
fn folder_of<'a>(repository: &Repository, component: &'a str) -> &'a str {
    if repository.list(component).is_empty() { "" } else { component }
}

/// The folder's scheduler and its config; a `DDIMPipeline` makes a DDIM of whatever there is.
fn load_scheduler(repository: &Repository, index: &ModelIndex) -> Result<(Box<dyn Scheduler>, Value)> {
    let given = load_scheduler_config_in(repository, folder_of(repository, "scheduler"))?;
    let mut scheduler = scheduler_from_other(&index.component("scheduler")?.class_name, &given)?;
    if index.class_name == "DDIMPipeline" {
        scheduler = scheduler_from_other("DDIMScheduler", &scheduler.config())?;
    }
    let config = scheduler.config();
    Ok((scheduler, config))
}

/// What the UNet gives must be what it takes, and what the autoencoder decodes.
fn check_channels(repository: &Repository, unet: &UNet2DModel, vqvae: Option<&VQModel>) -> Result<()> {
    let (taken, given) = (unet.config().in_channels, unet.config().out_channels);
    let problem = match vqvae.map(|vqvae| vqvae.config().vq_embed_dim) {
        Some(latents) if latents != taken => {
            format!(
                "in_channels is {taken}, but the latents of vqvae have {latents}; they do not belong together"
            )
        }
        // A model that predicts its variance too gives twice as many.
        _ if given == taken || given == 2 * taken => return Ok(()),
        _ => format!("in_channels is {taken} and out_channels {given}: this is no model that only denoises"),
    };
    Err(Error::Folder { file: repository.display("unet/config.json"), problem })
}
