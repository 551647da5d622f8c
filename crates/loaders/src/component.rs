use std::error::Error as StdError;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use serde_json::Value;

use crate::weights::join;
use crate::{Error, Repository, Result};

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
    let config_path = join(folder, "config.json");
    let config: Value = repository.read_json(&config_path)?;
    let state_dict = repository.state_dict(folder, options.variant.as_deref())?;
    let model = build(&config, state_dict.var_builder(options.dtype, &options.device)).map_err(|error| {
        // What went wrong with a tensor says more in its own type than in the model's.
        state_dict.take_failure().unwrap_or_else(|| Error::Component {
            component: repository.display(&config_path),
            source: error.into(),
        })
    })?;
    state_dict.check_all_used()?;
    state_dict.warn_of_not_finite();
    Ok(model)
}
