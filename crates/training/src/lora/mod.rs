//! LoRA (Hu et al., 2021) that is trained: two small variables beside each layer that is chosen, as PEFT adds them.

mod config;
mod dora;
mod dropout;
mod layer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use candle_diffusers_models::layers::{Layer, Layers};
use candle_diffusers_schedulers::TorchGenerator;

use crate::checkpoint::save_tensors;
use crate::error::{Error, Result};
use crate::parameters::Parameter;
use crate::processes::BatchShare;
use dropout::Dropout;
use layer::TrainedLayer;

pub use config::{LoraConfig, LoraInit, TEXT_ENCODER_TARGETS, TargetModules, UNET_TARGETS};

/// The LoRA of one model.
#[derive(Debug)]
pub struct TrainedLora {
    component: &'static str,
    layers: Vec<(String, Arc<TrainedLayer>)>,
    scaling: f64,
    dropout: Option<Arc<Dropout>>,
}

impl TrainedLora {
    /// Puts a LoRA beside the layers of `model` that the config chooses. `component` is `unet`, `text_encoder` or `text_encoder_2`, where the
    /// parameters' names begin. Random numbers come from `generator`, layer after layer.
    ///
    /// # Errors
    /// When a setting is out of range, or no layer is chosen.
    pub fn attach(
        model: &dyn Layers,
        component: &'static str,
        config: &LoraConfig,
        generator: &mut TorchGenerator,
    ) -> Result<Self> {
        let chosen = choose(model, component, config)?;
        let share = config.dropout;
        let dropout = (share > 0.0).then(|| Arc::new(Dropout::new(share)));
        let mut layers = Vec::with_capacity(chosen.len());
        for (name, layer) in chosen {
            let trained = Arc::new(TrainedLayer::new(&layer, config, dropout.clone(), generator)?);
            layer.set_adapter(Some(trained.clone()));
            layers.push((name, trained));
        }
        Ok(Self { component, layers, scaling: config.scaling(), dropout })
    }

    /// Whether [`attach`](Self::attach) can do what the config says: for before long work.
    ///
    /// # Errors
    /// When a setting is out of range, or no layer is chosen.
    pub fn check(model: &dyn Layers, component: &str, config: &LoraConfig) -> Result<()> {
        choose(model, component, config).map(drop)
    }

    /// Begins the dropout of a step, which follows from `seed` alone, so that a run can go on from any step. `batches` is which part of the whole batches this
    /// process sees; by default all.
    pub fn begin_step(&self, seed: u64, batches: BatchShare) {
        if let Some(dropout) = &self.dropout {
            dropout.begin_step(seed, batches);
        }
    }

    /// Ends the dropout of a step: nothing is left out until the next one begins, as where the model paints what it has learned. Batches may then be of any size.
    pub fn end_step(&self) {
        if let Some(dropout) = &self.dropout {
            dropout.end_step();
        }
    }

    /// What is trained, in float32.
    pub fn parameters(&self) -> Vec<Parameter> {
        let parameter = |name: &str, part: &str, var: &Var| Parameter {
            name: format!("{}.{name}.{part}.weight", self.component),
            var: var.clone(),
        };
        let all = |(name, layer): &(String, Arc<TrainedLayer>)| {
            let lengths = layer.magnitude.as_ref().map(|magnitude| &magnitude.lengths);
            let parts = [
                ("lora_A", Some(&layer.down)),
                ("lora_B", Some(&layer.up)),
                ("lora_magnitude_vector", lengths),
            ];
            parts.map(|(part, var)| Some(parameter(name, part, var?)))
        };
        self.layers.iter().flat_map(all).flatten().collect()
    }

    /// The tensors of a LoRA file in the layout of diffusers since it uses PEFT (`unet.NAME.lora_A.weight`, `text_encoder.NAME.lora_B.weight`), on the CPU. What the
    /// change is multiplied by is in them, so that no program needs to be told an alpha.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for (name, layer) in &self.layers {
            let name = format!("{}.{name}", self.component);
            let down = layer.down.as_detached_tensor().to_device(&Device::Cpu)?;
            let is_convolution = down.dims().len() == 4;
            tensors.insert(format!("{name}.lora_A.weight"), down);
            let up = layer.up.as_detached_tensor();
            let up = if self.scaling == 1.0 { up } else { (up * self.scaling)? };
            tensors.insert(format!("{name}.lora_B.weight"), up.to_device(&Device::Cpu)?);
            if let Some(magnitude) = &layer.magnitude {
                let lengths = magnitude.lengths.as_detached_tensor().to_device(&Device::Cpu)?;
                // As PEFT has them: where a convolution's output has its channels.
                let lengths = if is_convolution { lengths.reshape((1, (), 1, 1))? } else { lengths };
                // transformers wants another end than diffusers writes for UNets.
                let end = if self.component == "unet" { "" } else { ".weight" };
                tensors.insert(format!("{name}.lora_magnitude_vector{end}"), lengths);
            }
        }
        Ok(tensors)
    }
}

/// The layers that the config chooses, by their names: at least one.
fn choose(model: &dyn Layers, component: &str, config: &LoraConfig) -> Result<Vec<(String, Layer)>> {
    config.check()?;
    let chooser = config.target_modules.chooser()?;
    let mut layers = model.layers();
    let example = layers.first().map(|(name, _)| name.clone()).unwrap_or_default();
    layers.retain(|(name, _)| chooser.chooses(name));
    if !layers.is_empty() {
        return Ok(layers);
    }
    let found = config.target_modules.to_string();
    let expected = match config.target_modules {
        TargetModules::Ends(_) => format!("ends of names of the {component}'s layers, such as {example}"),
        TargetModules::Pattern(_) => {
            format!("an expression for whole names of the {component}'s layers, such as {example}")
        }
    };
    Err(Error::Field { field: "target_modules", found, expected })
}

/// Writes what was trained as one LoRA file in diffusers' layout, whole or not at all.
///
/// # Errors
/// When the file cannot be written.
pub fn save_lora(path: &Path, loras: &[TrainedLora]) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for lora in loras {
        tensors.extend(lora.tensors()?);
    }
    save_tensors(path, &tensors, [("format".to_string(), "pt".to_string())])
}
