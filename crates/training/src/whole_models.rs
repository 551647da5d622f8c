//! Models whose own weights are trained: loaded as variables, and written as diffusers' folders.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_diffusers_loaders::{LoadOptions, Repository, load_component};
use candle_diffusers_models::{
    AutoencoderKL, AutoencoderKLConfig, ClipTextConfig, ClipTextModel, UNet2DConditionConfig,
    UNet2DConditionModel, UNet2DConfig, UNet2DModel,
};
use candle_diffusers_schedulers::TorchGenerator;
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use serde_json::Value;

use crate::checkpoint::{save_json, save_tensors};
use crate::error::{Error, Result};
use crate::parameters::Parameter;
use crate::random_init::RandomInit;

/// A model with its weights as variables.
#[derive(Debug)]
pub struct WholeModel<T> {
    /// The model.
    pub model: T,
    /// Its weights, by the component's name and theirs: `unet.conv_in.weight`.
    pub parameters: Vec<Parameter>,
}

/// The UNet in `folder` of a repository, to be trained; its parameters' names begin with `unet`.
///
/// # Errors
/// When it cannot be loaded.
pub fn trainable_unet(
    repository: &Repository,
    folder: &str,
    options: &LoadOptions,
) -> Result<WholeModel<UNet2DConditionModel>> {
    trainable(repository, folder, "unet", options, |config, weights| {
        UNet2DConditionModel::new(&UNet2DConditionConfig::from_json(config)?, weights)
    })
}

/// The UNet of unconditional diffusion in `folder` of a repository, to be trained; its parameters' names begin with `unet`.
///
/// # Errors
/// When it cannot be loaded.
pub fn trainable_unet_2d(
    repository: &Repository,
    folder: &str,
    options: &LoadOptions,
) -> Result<WholeModel<UNet2DModel>> {
    trainable(repository, folder, "unet", options, |config, weights| {
        UNet2DModel::new(&UNet2DConfig::from_json(config)?, weights)
    })
}

/// A UNet of unconditional diffusion that begins from nothing, with weights as torch draws them (by their distributions, not number by number); its parameters'
/// names begin with `unet`.
///
/// # Errors
/// When the config is not one of a `UNet2DModel`.
pub fn new_unet_2d(
    config: &Value,
    generator: TorchGenerator,
    options: &LoadOptions,
) -> Result<WholeModel<UNet2DModel>> {
    begun_anew("unet", generator, options, |weights| {
        Ok(UNet2DModel::new(&UNet2DConfig::from_json(config)?, weights)?)
    })
}

/// A UNet of Stable Diffusion that begins from nothing, as [`new_unet_2d`].
///
/// # Errors
/// When the config is not one of a `UNet2DConditionModel`.
pub fn new_unet(
    config: &Value,
    generator: TorchGenerator,
    options: &LoadOptions,
) -> Result<WholeModel<UNet2DConditionModel>> {
    begun_anew("unet", generator, options, |weights| {
        Ok(UNet2DConditionModel::new(&UNet2DConditionConfig::from_json(config)?, weights)?)
    })
}

/// A text encoder that begins from nothing, as [`new_unet_2d`]; its parameters' names begin with `text_encoder`.
///
/// # Errors
/// When the config is not one of a `CLIPTextModel`.
pub fn new_text_encoder(
    config: &Value,
    generator: TorchGenerator,
    options: &LoadOptions,
) -> Result<WholeModel<ClipTextModel>> {
    begun_anew("text_encoder", generator, options, |weights| {
        Ok(ClipTextModel::new(&ClipTextConfig::from_json(config)?, weights)?)
    })
}

/// An autoencoder that begins from nothing, as [`new_unet_2d`]; its parameters' names begin with `vae`.
///
/// # Errors
/// When the config is not one of an `AutoencoderKL`.
pub fn new_vae(
    config: &Value,
    generator: TorchGenerator,
    options: &LoadOptions,
) -> Result<WholeModel<AutoencoderKL>> {
    begun_anew("vae", generator, options, |weights| {
        Ok(AutoencoderKL::new(&AutoencoderKLConfig::from_json(config)?, weights)?)
    })
}

fn begun_anew<T>(
    component: &str,
    generator: TorchGenerator,
    options: &LoadOptions,
    build: impl FnOnce(VarBuilder<'static>) -> Result<T>,
) -> Result<WholeModel<T>> {
    let weights = Box::new(RandomInit::new(generator));
    let weights = VarBuilder::from_backend(weights, options.dtype, options.device.clone());
    as_variables(component, weights, options, build)
}

/// The text encoder in `folder` of a repository, to be trained; its parameters' names begin with `text_encoder`.
///
/// # Errors
/// When it cannot be loaded.
pub fn trainable_text_encoder(
    repository: &Repository,
    folder: &str,
    options: &LoadOptions,
) -> Result<WholeModel<ClipTextModel>> {
    trainable(repository, folder, "text_encoder", options, |config, weights| {
        ClipTextModel::new(&ClipTextConfig::from_json(config)?, weights)
    })
}

pub(crate) fn trainable<T>(
    repository: &Repository,
    folder: &str,
    component: &str,
    options: &LoadOptions,
    build: impl FnOnce(&Value, VarBuilder<'static>) -> candle_diffusers_models::Result<T>,
) -> Result<WholeModel<T>> {
    let mut parameters = Vec::new();
    let model = load_component(repository, folder, options, |config, weights| {
        let whole = as_variables(component, weights, options, |weights| build(config, weights))?;
        parameters = whole.parameters;
        Ok::<_, candle_diffusers_models::Error>(whole.model)
    })?;
    Ok(WholeModel { model, parameters })
}

/// Builds a model of variables that begin as `weights`.
pub(crate) fn as_variables<T, E>(
    component: &str,
    weights: VarBuilder<'static>,
    options: &LoadOptions,
    build: impl FnOnce(VarBuilder<'static>) -> std::result::Result<T, E>,
) -> std::result::Result<WholeModel<T>, E> {
    let made = Arc::new(Mutex::new(Vec::new()));
    let variables = Variables { inner: weights, component: component.to_string(), made: made.clone() };
    let weights = VarBuilder::from_backend(Box::new(variables), options.dtype, options.device.clone());
    let model = build(weights)?;
    let mut parameters = std::mem::take(&mut *made.lock().unwrap_or_else(PoisonError::into_inner));
    parameters.sort_by(|a: &Parameter, b| a.name.cmp(&b.name));
    Ok(WholeModel { model, parameters })
}

/// Gives out each tensor as a variable, and remembers it.
struct Variables {
    inner: VarBuilder<'static>,
    component: String,
    made: Arc<Mutex<Vec<Parameter>>>,
}

impl Variables {
    fn keep(&self, name: &str, tensor: &Tensor) -> candle_core::Result<Tensor> {
        let var = Var::from_tensor(&tensor.force_contiguous()?)?;
        let tensor = var.as_tensor().clone();
        let name = format!("{}.{name}", self.component);
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(Parameter { name, var });
        Ok(tensor)
    }
}

impl SimpleBackend for Variables {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        hints: Init,
        dtype: DType,
        _: &Device,
    ) -> candle_core::Result<Tensor> {
        self.keep(name, &self.inner.get_with_hints_dtype(shape, name, hints, dtype)?)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> candle_core::Result<Tensor> {
        self.keep(name, &self.inner.get_unchecked_dtype(name, dtype)?)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.inner.contains_tensor(name)
    }
}

/// Writes a trained component as diffusers does: `config.json` and the weights, of which those of `parameters` count that begin with the component's name.
/// `weights` is the name of their file, `diffusion_pytorch_model.safetensors` for UNets and `model.safetensors` for text encoders.
///
/// # Errors
/// When the folder cannot be written.
pub fn save_component(
    folder: &Path,
    weights: &str,
    config: &Value,
    component: &str,
    parameters: &[Parameter],
) -> Result<()> {
    let io = |error: std::io::Error| Error::File {
        file: folder.display().to_string(),
        problem: error.to_string(),
    };
    std::fs::create_dir_all(folder).map_err(io)?;
    let mut tensors = BTreeMap::new();
    for Parameter { name, var } in parameters {
        if let Some(name) = name.strip_prefix(component).and_then(|name| name.strip_prefix('.')) {
            tensors.insert(name.to_string(), var.as_detached_tensor().to_device(&Device::Cpu)?);
        }
    }
    let mut config = config.clone();
    // transformers opens a model in the dtype that its config names, whatever its file has.
    if let (Some(name), Some(dtype)) = (config.get_mut("dtype"), dtype_name(&tensors)) {
        *name = dtype.into();
    }
    save_tensors(&folder.join(weights), &tensors, [("format".to_string(), "pt".to_string())])?;
    save_json(&folder.join("config.json"), &config)
}

/// torch's name for the dtype of all of them.
fn dtype_name(tensors: &BTreeMap<String, Tensor>) -> Option<&'static str> {
    match tensors.values().next()?.dtype() {
        DType::F32 => Some("float32"),
        DType::F16 => Some("float16"),
        DType::BF16 => Some("bfloat16"),
        _ => None,
    }
}
