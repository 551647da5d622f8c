//! A refiner beside its base: the models that both hold once, and whether they fit together.

use candle_diffusers_loaders::{ModelIndex, Repository, has_same_files, is_same_component};
use candle_diffusers_models::AutoencoderKL;

use super::load::{Family, family, read_vae_config};
use super::{ProjectedClipEncoder, StableDiffusionPipeline, Task, TextEncoders, task};
use crate::error::{Error, Result};

/// What a base and its refiner may hold once: cloned models have the same tensors in memory.
#[derive(Clone, Debug, Default)]
pub struct SharedParts {
    /// Stable Diffusion XL's second text encoder, with its tokenizer.
    pub text_encoder_2: Option<ProjectedClipEncoder>,
    /// Between latents and pictures.
    pub vae: Option<AutoencoderKL>,
}

impl StableDiffusionPipeline {
    /// The models of this pipeline that another one may use instead of its own, as they are now: with embeddings that were added.
    pub fn shared_parts(&self) -> SharedParts {
        let text_encoder_2 = match &self.text_encoders {
            TextEncoders::Clip(_) => None,
            TextEncoders::Xl(encoders) => Some(encoders.second.clone()),
        };
        SharedParts { text_encoder_2, vae: Some(self.vae.clone()) }
    }
}

impl SharedParts {
    /// Those that `other` has the same files of as `own`, which these are from.
    ///
    /// # Errors
    /// When files are missing or damaged.
    pub fn that_are_the_same(
        mut self,
        own: &Repository,
        other: &Repository,
        variant: Option<&str>,
    ) -> Result<Self> {
        let is_same = |folder| is_same_component(own, other, folder, variant);
        if !(is_same("text_encoder_2")? && has_same_files(own, other, "tokenizer_2")?) {
            self.text_encoder_2 = None;
        }
        if !is_same("vae")? {
            self.vae = None;
        }
        Ok(self)
    }
}

const TRAINED_FOR: &str = "cannot refine: it was trained for";
const WANTED: &str =
    "expected a model that paints and sees latents alone, as the refiner of Stable Diffusion XL";

/// Whether `refiner` can go on with the latents of `base`; told by their small files, before anything is loaded.
///
/// # Errors
/// When one of them is no Stable Diffusion XL, their latents differ, or the refiner sees more than latents ([`Task`]).
pub fn check_refiner(base: &Repository, refiner: &Repository) -> Result<()> {
    let [of_base, of_refiner] = [base, refiner].map(|repository| {
        let index = ModelIndex::load(repository)?;
        Ok::<_, Error>((family(repository, &index)?, read_vae_config(repository)?, index))
    });
    let ((base_family, base_vae, base_index), (refiner_family, refiner_vae, refiner_index)) =
        (of_base?, of_refiner?);
    let fail = |problem| Err(Error::Folder { file: refiner.name().into(), problem });
    if base_family != Family::Xl || refiner_family != Family::Xl {
        return fail(format!(
            "is a {}, the base {} a {}: only two models of Stable Diffusion XL go on with each other's latents",
            refiner_index.class_name,
            base.name(),
            base_index.class_name
        ));
    }
    let latents =
        |vae: &candle_diffusers_models::AutoencoderKLConfig| (vae.latent_channels, vae.vae_scale_factor());
    if latents(&base_vae) != latents(&refiner_vae) {
        return fail(format!(
            "has latents of {:?} (channels, pixels a side), the base {} of {:?}: they do not belong together",
            latents(&refiner_vae),
            base.name(),
            latents(&base_vae)
        ));
    }
    match task(refiner)? {
        Task::Paint => Ok(()),
        Task::Inpaint => fail(format!("{TRAINED_FOR} inpainting; {WANTED}")),
        Task::Edit => fail(format!("{TRAINED_FOR} editing by instructions; {WANTED}")),
    }
}
