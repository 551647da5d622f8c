use std::path::Path;

use candle_diffusers_loaders::lora::{AdapterInfo, LoraModels, UnmatchedKeys};

use super::StableDiffusionPipeline;
use crate::error::Result;

/// LoRA, in diffusers' words. Each is short for a method of [`loras`](Self::loras), where there are more.
impl StableDiffusionPipeline {
    /// The models that LoRAs change, for [`LoraAdapters::load`](candle_diffusers_loaders::lora::LoraAdapters::load) and for pipelines
    /// of one's own that share them.
    pub fn lora_models(&self) -> LoraModels<'_> {
        self.text_encoders.lora_models(&self.unet)
    }

    /// Reads the LoRA at `path`, a file of any layout or a folder that PEFT or diffusers wrote, under a name, and makes it the only active
    /// one, with the weight 1.
    ///
    /// # Errors
    /// When the name is taken, the file cannot be read or is for other models, or it has keys that match no layer (see
    /// [`LoraAdapters::load`](candle_diffusers_loaders::lora::LoraAdapters::load), which can leave those out).
    pub fn load_lora_weights(&mut self, path: impl AsRef<Path>, adapter_name: &str) -> Result<()> {
        let models = self.text_encoders.lora_models(&self.unet);
        self.loras.load(&models, adapter_name, path, UnmatchedKeys::Refuse)?;
        self.set_adapters(&[(adapter_name, 1.0)])
    }

    /// Makes these LoRAs active, each with its weight, and no others.
    ///
    /// # Errors
    /// When none is loaded under a name, or a weight is not finite.
    pub fn set_adapters(&mut self, adapters: &[(&str, f64)]) -> Result<()> {
        Ok(self.loras.set_adapters(adapters)?)
    }

    /// Computes the active LoRAs into the weights: they cost no time from now on, and the originals are kept. For programs that shall
    /// not keep them there is [`LoraAdapters::fuse_permanently`](candle_diffusers_loaders::lora::LoraAdapters::fuse_permanently).
    ///
    /// # Errors
    /// When the device fails.
    pub fn fuse_lora(&mut self) -> Result<()> {
        Ok(self.loras.fuse()?)
    }

    /// Undoes [`fuse_lora`](Self::fuse_lora): the weights are what they were, bit for bit, with the active LoRAs beside them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn unfuse_lora(&mut self) -> Result<()> {
        Ok(self.loras.unfuse()?)
    }

    /// Takes all LoRAs off: the models are what they were, bit for bit. Unlike diffusers', this undoes
    /// [`fuse_lora`](Self::fuse_lora) too.
    pub fn unload_lora_weights(&mut self) {
        self.loras.unload_all();
    }

    /// What is loaded, with the weights of those that are active.
    pub fn list_adapters(&self) -> impl Iterator<Item = &AdapterInfo> {
        self.loras.list()
    }
}
