use std::error::Error as StdError;

use candle_core::{DType, Device};
use candle_diffusers_kernels::PackedWeight;
use candle_diffusers_models::layers::Layers;
use candle_nn::VarBuilder;
use serde_json::Value;

use crate::packed::build_packed;
use crate::weights::join;
use crate::{Error, Repository, Result, StateDict};

/// How the weights of a model are loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The element type that the weights are converted to.
    pub dtype: DType,
    /// Where they go.
    pub device: Device,
    /// The variant of the weight files, for instance `fp16`; `None` for the plain ones.
    pub variant: Option<String>,
}

impl Default for LoadOptions {
    /// The plain files, as float32 on the CPU.
    fn default() -> Self {
        Self { dtype: DType::F32, device: Device::Cpu, variant: None }
    }
}

/// Builds the model in `folder` of `repository` (`unet`; `""` where the repository is the model itself) from its `config.json` and
/// its weights.
///
/// `build` is given the config and a [`VarBuilder`] whose names are those of the file, and makes the model.
///
/// # Errors
/// When a file is missing or damaged, when `build` fails (an unsupported field of the config, for instance), and when a tensor is
/// missing, has another shape than the config says, or is not used by the model.
pub fn load_component<T, E>(
    repository: &Repository,
    folder: &str,
    options: &LoadOptions,
    build: impl FnOnce(&Value, VarBuilder<'static>) -> Result<T, E>,
) -> Result<T>
where
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    let component = Component::open(repository, folder, options)?;
    let weights = component.state_dict.var_builder(options.dtype, &options.device);
    component.finish(component.told(build(&component.config, weights)))
}

/// As [`load_component`], and on the CPU the weights of the model's [layers](Layers) are packed straight from the file, several at a time
/// ([`PackedWeight`](candle_diffusers_kernels::PackedWeight)): no plain copy is made of them, so that memory holds little more than the
/// packed weights.
///
/// There `build` is called twice: first with tensors of zeros that take no memory, to see which are the weights of layers, and again with
/// all others as they are in the file. A model that looks at the numbers of a layer's weight when it is built must be loaded with
/// [`load_component`].
///
/// # Errors
/// Those of [`load_component`].
pub fn load_model<T, E>(
    repository: &Repository,
    folder: &str,
    options: &LoadOptions,
    build: impl Fn(&Value, VarBuilder<'static>) -> Result<T, E>,
) -> Result<T>
where
    T: Layers,
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    if !options.device.is_cpu() || !PackedWeight::packs_dtype(options.dtype) {
        return load_component(repository, folder, options, build);
    }
    let component = Component::open(repository, folder, options)?;
    let build = |weights| component.told(build(&component.config, weights));
    component.finish(build_packed(&component.state_dict, options.dtype, build))
}

/// The files of a model.
struct Component {
    /// The config's, for messages.
    name: String,
    config: Value,
    state_dict: StateDict,
}

impl Component {
    fn open(repository: &Repository, folder: &str, options: &LoadOptions) -> Result<Self> {
        let config_path = join(folder, "config.json");
        let config = repository.read_json(&config_path)?;
        let state_dict = repository.state_dict(folder, options.variant.as_deref())?;
        Ok(Self { name: repository.display(&config_path), config, state_dict })
    }

    /// What went wrong with a tensor says more in its own type than in the model's.
    fn told<T, E: Into<Box<dyn StdError + Send + Sync>>>(&self, built: Result<T, E>) -> Result<T> {
        built.map_err(|error| {
            self.state_dict
                .take_failure()
                .unwrap_or_else(|| Error::Component { component: self.name.clone(), source: error.into() })
        })
    }

    fn finish<T>(&self, built: Result<T>) -> Result<T> {
        let model = built?;
        self.state_dict.check_all_used()?;
        self.state_dict.warn_of_not_finite();
        Ok(model)
    }
}
