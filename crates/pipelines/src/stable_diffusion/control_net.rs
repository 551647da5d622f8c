//! ControlNets beside a Stable Diffusion model: whether they fit it, and their pictures in the size that is painted.

use candle_core::Tensor;
use candle_diffusers_loaders::{LoadOptions, Repository, load_controlnet};
use candle_diffusers_models::{
    AutoencoderKLConfig, ControlNetConfig, ControlNetModel, UNet2DConditionConfig,
};
use image::RgbImage;

use super::load::{in_file, read_vae_config};
use super::{StableDiffusionPipeline, TextToImage};
use crate::control::Steering;
use crate::error::{Error, Result, argument};
use crate::image_processor::{from_pictures, resize};

impl StableDiffusionPipeline {
    /// Loads a ControlNet for this pipeline, from a folder or a single file of it alone.
    ///
    /// # Errors
    /// When a file is missing or damaged, or it was made for another family of models.
    pub fn load_controlnet(&self, repository: &Repository, variant: Option<&str>) -> Result<ControlNetModel> {
        let config = read_control_net_config(repository)?;
        self.check_control_net(&config).map_err(|problem| not_for_it(repository, problem))?;
        let variant = variant.map(str::to_string);
        Ok(load_controlnet(
            repository,
            "",
            &LoadOptions { dtype: self.dtype, device: self.device.clone(), variant },
        )?)
    }

    /// Whether the request's ControlNets fit this model.
    pub(super) fn check_controls(&self, request: &TextToImage) -> Result<()> {
        for control in &request.controls {
            if let Err(problem) = self.check_control_net(control.net.config()) {
                return argument("control.net", problem);
            }
        }
        Ok(())
    }

    fn check_control_net(&self, net: &ControlNetConfig) -> Result<(), String> {
        check_families(net, self.unet.config(), self.vae.config())
    }

    /// The request's ControlNets with their pictures resized to these pixels.
    pub(super) fn steering(
        &self,
        request: &TextToImage,
        width: usize,
        height: usize,
    ) -> Result<Option<Steering>> {
        self.steering_by(request, guesses(request), |pictures| {
            pictures.iter().map(|picture| resize(picture, width as u32, height as u32)).collect()
        })
    }

    /// The same with pictures that are brought to their size in another way, in guess mode or not.
    pub(super) fn steering_by(
        &self,
        request: &TextToImage,
        guess_mode: bool,
        fit: impl Fn(&[RgbImage]) -> Result<Vec<RgbImage>>,
    ) -> Result<Option<Steering>> {
        if request.controls.is_empty() {
            return Ok(None);
        }
        let pictures = |pictures: &[RgbImage]| -> Result<Tensor> {
            Ok(from_pictures(&fit(pictures)?)?.to_device(&self.device)?.to_dtype(self.dtype)?)
        };
        Steering::new(&request.controls, guess_mode, request.batch_size(), pictures).map(Some)
    }
}

/// Whether in guess mode: also where the first net averages over its pixels.
pub(super) fn guesses(request: &TextToImage) -> bool {
    let pools = request.controls.first().is_some_and(|first| first.net.config().global_pool_conditions);
    request.guess_mode || pools
}

/// Whether the ControlNet `net` was made for models such as `base`; told by their small files, before anything is loaded.
///
/// # Errors
/// When it was not, or is no ControlNet.
pub fn check_controlnet(base: &Repository, net: &Repository) -> Result<()> {
    let unet_json = base.read_json("unet/config.json")?;
    let unet = in_file(base, "unet/config.json", UNet2DConditionConfig::from_json(&unet_json))?;
    check_families(&read_control_net_config(net)?, &unet, &read_vae_config(base)?)
        .map_err(|problem| not_for_it(net, problem))
}

fn read_control_net_config(repository: &Repository) -> Result<ControlNetConfig> {
    let fail = |problem: String| Err(Error::Folder { file: repository.name().into(), problem });
    if repository.exists("model_index.json") {
        return fail("is a whole model, expected a ControlNet: a folder or a file of it alone".into());
    }
    let json: serde_json::Value = repository.read_json("config.json")?;
    match json["_class_name"].as_str() {
        Some("ControlNetModel") | None => {
            in_file(repository, "config.json", ControlNetConfig::from_json(&json))
        }
        Some(class_name) => fail(format!("is a {class_name}, expected a ControlNetModel")),
    }
}

fn not_for_it(repository: &Repository, problem: String) -> Error {
    Error::Folder { file: repository.name().into(), problem }
}

/// Whether what the net adds fits what the UNet adds it to; the error says what is wrong with the net.
fn check_families(
    net: &ControlNetConfig,
    unet: &UNet2DConditionConfig,
    vae: &AutoencoderKLConfig,
) -> Result<(), String> {
    let of = &net.unet;
    let is_xl = |config: &UNet2DConditionConfig| config.addition_embed_type.is_some();
    let family = |config: &UNet2DConditionConfig| match is_xl(config) {
        true => "Stable Diffusion XL",
        false => "Stable Diffusion 1 or 2",
    };
    if is_xl(of) != is_xl(unet) {
        return Err(format!("is a ControlNet for {}, but the model is {}", family(of), family(unet)));
    }
    if of.cross_attention_dim[0] != unet.cross_attention_dim[0] {
        return Err(format!(
            "is a ControlNet for a model that sees text in {} numbers a token (cross_attention_dim), but this model does in {}: it was \
             made for another family",
            of.cross_attention_dim[0], unet.cross_attention_dim[0]
        ));
    }
    if of.addition_embed_type != unet.addition_embed_type {
        return Err(
            "is a ControlNet that is told other sizes and texts than the model (addition_time_embed_dim, \
                    projection_class_embeddings_input_dim): a base has none of its refiner's, nor the reverse"
                .into(),
        );
    }
    if of.block_out_channels != unet.block_out_channels || of.layers_per_block != unet.layers_per_block {
        return Err(format!(
            "is a ControlNet with blocks of {:?} channels and {:?} layers, but the model's have {:?} and {:?}",
            of.block_out_channels, of.layers_per_block, unet.block_out_channels, unet.layers_per_block
        ));
    }
    if of.class_embed_type.is_some() {
        return Err("is a ControlNet that is told a class (class_embed_type), which no pipeline does".into());
    }
    if of.in_channels != vae.latent_channels {
        return Err(format!(
            "is a ControlNet that sees {} channels, but latents have {}",
            of.in_channels, vae.latent_channels
        ));
    }
    if net.conditioning_channels != 3 {
        return Err(format!(
            "is a ControlNet for pictures of {} channels, expected 3 (red, green, blue)",
            net.conditioning_channels
        ));
    }
    if net.conditioning_factor() != vae.vae_scale_factor() {
        return Err(format!(
            "is a ControlNet that makes pictures {} times smaller, but latents are {} times smaller",
            net.conditioning_factor(),
            vae.vae_scale_factor()
        ));
    }
    Ok(())
}
