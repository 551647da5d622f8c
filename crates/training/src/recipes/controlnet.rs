//! ControlNet (Zhang et al., 2023, <https://arxiv.org/abs/2302.05543>; diffusers' `examples/controlnet/train_controlnet.py` and `train_controlnet_sdxl.py`): a copy of
//! the UNet's way down learns to steer it by pictures of edges, poses or depths; nothing else changes.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_models::{
    AutoencoderKLConfig, ControlNetConfig, ControlNetModel, ControlScale, UNet2DConditionConfig,
    UNetConditions,
};
use candle_diffusers_pipelines::StableDiffusionPipeline;
use candle_diffusers_schedulers::TorchGenerator;
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use serde_json::{Map, Value, json};

use super::denoising::{channels_error, other_pictures};
use super::{Denoising, DenoisingOptions, Example};
use crate::error::{Error, Result};
use crate::parameters::Parameter;
use crate::processes::RandomSource;
use crate::random_init::RandomInit;
use crate::whole_models::{WholeModel, as_variables, save_component, trainable};

/// A ControlNet whose weights are variables, in float32.
#[derive(Debug)]
pub struct TrainedControlNet {
    /// The model. It shares its weights with `parameters`.
    pub net: Arc<ControlNetModel>,
    /// Its weights; their names begin with `controlnet`.
    pub parameters: Vec<Parameter>,
    config: Value,
}

impl TrainedControlNet {
    /// One that begins as the way down of a model's UNet and adds nothing yet, as diffusers' `ControlNetModel.from_unet`; the layers that see the control picture
    /// begin as torch draws them (by their distribution, not number by number).
    ///
    /// # Errors
    /// When the UNet cannot be read, or takes more than latents.
    pub fn from_unet(
        repository: &Repository,
        options: &LoadOptions,
        generator: TorchGenerator,
    ) -> Result<Self> {
        let vae = AutoencoderKLConfig::from_json(&repository.read_json("vae/config.json")?)?;
        let unet: Value = repository.read_json("unet/config.json")?;
        check_paints(UNet2DConditionConfig::from_json(&unet)?.in_channels, vae.latent_channels)?;
        let config = config_from_unet(&unet, vae.vae_scale_factor());
        let options = in_float32(options);
        let state_dict = repository.state_dict("unet", options.variant.as_deref())?;
        let unet = state_dict.var_builder(options.dtype, &options.device);
        let weights = BegunFromUNet { unet, new: RandomInit::new(generator) };
        let weights = VarBuilder::from_backend(Box::new(weights), options.dtype, options.device.clone());
        let whole = as_variables(COMPONENT, weights, &options, |weights| {
            Ok::<_, Error>(ControlNetModel::new(&ControlNetConfig::from_json(&config)?, weights)?)
        })?;
        Ok(Self::new(whole, config))
    }

    /// One that is there already, in a folder or a file of it alone.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub fn load(repository: &Repository, options: &LoadOptions) -> Result<Self> {
        let whole = trainable(repository, "", COMPONENT, &in_float32(options), |config, weights| {
            ControlNetModel::new(&ControlNetConfig::from_json(config)?, weights)
        })?;
        Ok(Self::new(whole, repository.read_json("config.json")?))
    }

    fn new(whole: WholeModel<ControlNetModel>, config: Value) -> Self {
        Self { net: Arc::new(whole.model), parameters: whole.parameters, config }
    }

    /// Writes a folder that diffusers' `ControlNetModel.from_pretrained` opens.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let weights = "diffusion_pytorch_model.safetensors";
        save_component(folder, weights, &self.config, COMPONENT, &self.parameters)
    }
}

/// What the names of its parameters begin with.
const COMPONENT: &str = "controlnet";

fn in_float32(options: &LoadOptions) -> LoadOptions {
    LoadOptions { dtype: DType::F32, ..options.clone() }
}

/// What computes losses: those of [`Denoising`] with a ControlNet beside the UNet.
pub struct ControlNetDenoising<'a> {
    denoising: Denoising<'a>,
    models: &'a StableDiffusionPipeline,
    net: &'a ControlNetModel,
}

impl<'a> ControlNetDenoising<'a> {
    /// # Errors
    /// Those of [`Denoising::new`].
    pub fn new(
        models: &'a StableDiffusionPipeline,
        net: &'a ControlNetModel,
        options: DenoisingOptions,
    ) -> Result<Self> {
        check_paints(models.unet.config().in_channels, models.vae.config().latent_channels)?;
        Ok(Self { denoising: Denoising::new(models, options)?, models, net })
    }

    /// The loss of a batch. The first of each example's `others` is what the ControlNet sees. Stable Diffusion XL is told that pictures are whole, as in the script.
    ///
    /// # Errors
    /// Those of [`Denoising::loss`], and when an example has no control picture, or one of another size.
    pub fn loss(&self, examples: &[Example], generator: &mut dyn RandomSource) -> Result<Tensor> {
        let Self { denoising, models, net } = self;
        let pictures = other_pictures(examples, 0)?.to_device(&models.device)?.to_dtype(models.dtype)?;
        let examples = examples.iter().map(whole).collect::<Result<Vec<_>>>()?;
        let latents = denoising.latents(&examples, generator)?;
        let noised = denoising.add_noise(latents, generator)?;
        let told = denoising.told(&examples, generator)?;
        let timesteps = &noised.timesteps;
        let condition = net.embed_condition(&pictures)?;
        let steering = net.forward(
            &noised.noisy,
            timesteps,
            &told.text.prompt,
            &condition,
            ControlScale { conditioning_scale: 1.0, guess_mode: false },
            told.conditions(),
        )?;
        let conditions = UNetConditions { control: Some(steering.residuals()), ..told.conditions() };
        let prediction = models.unet.forward(&noised.noisy, timesteps, &told.text.prompt, conditions)?;
        denoising.compare(&prediction, &noised, None)
    }
}

/// Whether a UNet sees latents alone, as pipelines give them to ControlNets.
fn check_paints(found: usize, latents: usize) -> Result<()> {
    match found == latents {
        true => Ok(()),
        false => Err(channels_error(found, format!("{latents}: ControlNets steer models that paint"))),
    }
}

/// The example as that of a picture which nothing was cut off.
fn whole(example: &Example) -> Result<Example> {
    let (_, height, width) = example.pixel_values.dims3()?;
    let original_size = (height as u32, width as u32);
    Ok(Example { original_size, crop_top_left: (0, 0), ..example.clone() })
}

/// The config of a ControlNet for a UNet of this config and latents that are so many times smaller than pictures.
fn config_from_unet(unet: &Value, factor: usize) -> Value {
    let mut config = Map::new();
    config.insert("_class_name".to_string(), "ControlNetModel".into());
    config.insert("_diffusers_version".to_string(), "0.42.1".into());
    for field in FIELDS_OF_UNET {
        if let Some(value) = unet.get(field) {
            config.insert(field.to_string(), value.clone());
        }
    }
    let halvings = factor.max(1).ilog2() as usize;
    let channels = (0..=halvings).map(|i| EMBEDDING_CHANNELS[i.min(EMBEDDING_CHANNELS.len() - 1)]);
    config.insert("conditioning_channels".to_string(), 3.into());
    config.insert("conditioning_embedding_out_channels".to_string(), channels.collect());
    config.insert("controlnet_conditioning_channel_order".to_string(), "rgb".into());
    config.insert("global_pool_conditions".to_string(), json!(false));
    config.into()
}

/// Channels of the layers that see the control picture, each of which but the first halves it; for more layers the last again.
const EMBEDDING_CHANNELS: [usize; 4] = [16, 32, 96, 256];

/// What `from_unet` takes over.
const FIELDS_OF_UNET: [&str; 27] = [
    "act_fn",
    "addition_embed_type",
    "addition_time_embed_dim",
    "attention_head_dim",
    "block_out_channels",
    "class_embed_type",
    "cross_attention_dim",
    "down_block_types",
    "downsample_padding",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "flip_sin_to_cos",
    "freq_shift",
    "in_channels",
    "layers_per_block",
    "mid_block_scale_factor",
    "mid_block_type",
    "norm_eps",
    "norm_num_groups",
    "num_attention_heads",
    "num_class_embeds",
    "only_cross_attention",
    "projection_class_embeddings_input_dim",
    "resnet_time_scale_shift",
    "transformer_layers_per_block",
    "upcast_attention",
    "use_linear_projection",
];

/// The weights of a ControlNet that begins: the UNet's where it has them, zeros where the ControlNet's results leave it, and random numbers in the layers that see the
/// control picture.
struct BegunFromUNet {
    unet: VarBuilder<'static>,
    new: RandomInit,
}

impl SimpleBackend for BegunFromUNet {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        hints: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        match name.strip_prefix("controlnet_cond_embedding.") {
            Some(inner) if !inner.starts_with("conv_out.") => self.new.get(shape, name, hints, dtype, device),
            None if !name.starts_with("controlnet_") => {
                self.unet.get_with_hints_dtype(shape, name, hints, dtype)
            }
            _ => Tensor::zeros(shape, dtype, device),
        }
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> candle_core::Result<Tensor> {
        self.unet.get_unchecked_dtype(name, dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        name.starts_with("controlnet_") || self.unet.contains_tensor(name)
    }
}
