use candle_diffusers_loaders::{ModelIndex, Repository};
use candle_diffusers_models::{AutoencoderKLConfig, UNet2DConditionConfig};

use super::load::{family, in_file, read_vae_config};
use crate::error::{Error, Result};

/// What a Stable Diffusion model was trained for, told by what its UNet sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// To paint: it sees latents alone (4 channels), and so can begin with a picture, or paint into one.
    Paint,
    /// To paint into pictures: it sees a mask and the rest of the picture besides (9 channels).
    Inpaint,
    /// To edit pictures by instructions: it sees the picture besides (8 channels; InstructPix2Pix).
    Edit,
}

impl Task {
    /// That of a model with these configs, when they agree on what latents are.
    pub(super) fn of(
        repository: &Repository,
        unet: &UNet2DConditionConfig,
        vae: &AutoencoderKLConfig,
    ) -> Result<Self> {
        let (found, latents) = (unet.in_channels, vae.latent_channels);
        let task = match found {
            _ if found == latents => Some(Self::Paint),
            _ if found == 2 * latents => Some(Self::Edit),
            _ if found == 2 * latents + 1 => Some(Self::Inpaint),
            _ => None,
        };
        match task {
            Some(task) if unet.out_channels == latents => Ok(task),
            _ => Err(Error::Folder {
                file: repository.display("unet/config.json"),
                problem: format!(
                    "in_channels is {found} and out_channels {}, but the VAE's latents have {latents}; they do not belong together",
                    unet.out_channels
                ),
            }),
        }
    }
}

/// What a model was trained for; told by its small files, before it is loaded.
///
/// # Errors
/// When this is no Stable Diffusion, a file is missing or damaged, or UNet and VAE do not belong together.
pub fn task(repository: &Repository) -> Result<Task> {
    family(repository, &ModelIndex::load(repository)?)?;
    let json = repository.read_json("unet/config.json")?;
    let unet = in_file(repository, "unet/config.json", UNet2DConditionConfig::from_json(&json))?;
    Task::of(repository, &unet, &read_vae_config(repository)?)
}
