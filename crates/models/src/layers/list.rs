use std::collections::HashMap;

use candle_core::Tensor;

use super::Layer;
use crate::attention_processor::AttentionLayer;
use crate::error::{Error, Result};

/// What is made of layers: it can list all linear layers and convolutions in it, for whatever changes them from outside.
///
/// A model of your own lists its parts under the names that its `VarBuilder` paths have:
///
/// ```
/// use candle_core::{DType, Device};
/// use candle_diffusers_models::layers::{LayerList, Layers, Linear};
/// use candle_nn::VarBuilder;
///
/// struct Perceptron {
///     input: Linear,
///     hidden: Vec<Linear>,
/// }
///
/// impl Layers for Perceptron {
///     fn list_layers(&self, list: &mut LayerList) {
///         list.add("input", &self.input);
///         list.add_each("hidden", &self.hidden);
///     }
/// }
///
/// # fn main() -> candle_diffusers_models::Result<()> {
/// let weights = VarBuilder::zeros(DType::F32, &Device::Cpu);
/// let linear = || Linear::new(2, 2, weights.clone());
/// let model = Perceptron { input: linear()?, hidden: vec![linear()?, linear()?] };
/// let names: Vec<String> = model.layers().into_iter().map(|(name, _)| name).collect();
/// assert_eq!(names, ["input", "hidden.0", "hidden.1"]);
/// # Ok(())
/// # }
/// ```
pub trait Layers {
    /// Adds every part that has layers to the list.
    fn list_layers(&self, list: &mut LayerList);

    /// All attention layers by their names, `down_blocks.0.attentions.0.transformer_blocks.0.attn2`: those of UNets and
    /// autoencoders, to be given another processor.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use candle_diffusers_models::{AttentionProcessor, layers::Layers};
    /// /// Gives all attentions to a text this processor.
    /// fn replace(unet: &impl Layers, processor: Arc<dyn AttentionProcessor>) {
    ///     for (name, layer) in unet.attentions() {
    ///         if name.ends_with("attn2") {
    ///             layer.set_processor(Some(processor.clone()));
    ///         }
    ///     }
    /// }
    ///
    /// /// Computes as the model does again.
    /// fn restore(unet: &impl Layers) {
    ///     unet.attentions().iter().for_each(|(_, layer)| drop(layer.set_processor(None)));
    /// }
    /// ```
    fn attentions(&self) -> Vec<(String, AttentionLayer)> {
        let mut list = LayerList::default();
        self.list_layers(&mut list);
        list.attentions
    }

    /// The attention layer called `name`.
    ///
    /// # Errors
    /// When there is none of that name; the error says which there are.
    fn attention(&self, name: &str) -> Result<AttentionLayer> {
        let attentions = self.attentions();
        if let Some((_, layer)) = attentions.iter().find(|(known, _)| known == name) {
            return Ok(layer.clone());
        }
        let names: Vec<&str> = attentions.iter().map(|(name, _)| name.as_str()).collect();
        let problem = format!("is {name:?}, expected one of: {}", names.join(", "));
        Err(Error::Input { model: "attention", input: "name", problem })
    }

    /// All layers by their names in the state dict, without `.weight` and `.bias`: `down_blocks.0.resnets.0.conv1`.
    fn layers(&self) -> Vec<(String, Layer)> {
        let mut list = LayerList::default();
        self.list_layers(&mut list);
        list.found
    }
}

/// The layers that have been found so far, and where the search is.
#[derive(Debug, Default)]
pub struct LayerList {
    found: Vec<(String, Layer)>,
    /// The weights and biases of norms by their names.
    norms: Vec<(String, Tensor)>,
    attentions: Vec<(String, AttentionLayer)>,
    /// The name of what lists its parts now.
    prefix: String,
}

impl LayerList {
    /// Adds the layers of a part, whose name may have several steps (`to_out.0`).
    pub fn add(&mut self, name: &str, part: &(impl Layers + ?Sized)) {
        let length = self.prefix.len();
        if length > 0 {
            self.prefix.push('.');
        }
        self.prefix.push_str(name);
        part.list_layers(self);
        self.prefix.truncate(length);
    }

    /// Adds the layers of parts that are called `name.0`, `name.1`, and so on.
    pub fn add_each(&mut self, name: &str, parts: &[impl Layers]) {
        for (index, part) in parts.iter().enumerate() {
            self.add(&format!("{name}.{index}"), part);
        }
    }

    pub(super) fn add_layer(&mut self, layer: &Layer) {
        self.found.push((self.prefix.clone(), layer.clone()));
    }

    pub(super) fn add_norm(&mut self, weight: &Tensor, bias: &Tensor) {
        for (name, tensor) in [("weight", weight), ("bias", bias)] {
            self.norms.push((format!("{}.{name}", self.prefix), tensor.clone()));
        }
    }

    /// Adds the attention that lists its parts now.
    pub(crate) fn add_attention(&mut self, layer: &AttentionLayer) {
        self.attentions.push((self.prefix.clone(), layer.clone()));
    }

    /// All tensors by their names in the state dict.
    pub(crate) fn into_tensors(self) -> HashMap<String, Tensor> {
        let mut tensors: HashMap<String, Tensor> = self.norms.into_iter().collect();
        for (name, layer) in self.found {
            tensors.extend(layer.bias().map(|bias| (format!("{name}.bias"), bias)));
            tensors.insert(format!("{name}.weight"), layer.weight());
        }
        tensors
    }
}

impl<T: Layers> Layers for Option<T> {
    fn list_layers(&self, list: &mut LayerList) {
        if let Some(part) = self {
            part.list_layers(list);
        }
    }
}
