/// Whose names the tensors of a LoRA file have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LoraLayout {
    /// kohya-ss' sd-scripts, LyCORIS and most others, with diffusers' names for the blocks of the UNet:
    /// `lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight`.
    Kohya,
    /// The same with the block names of the original layout, as for Stable Diffusion XL: `lora_unet_input_blocks_4_1_proj_in.lora_down.weight`.
    KohyaOriginal,
    /// diffusers since it uses PEFT: `unet.down_blocks.0.attentions.0.proj_in.lora_A.weight`.
    Diffusers,
    /// diffusers before: `unet.down_blocks.0....attn1.processor.to_q_lora.down.weight`, also without `unet.`.
    DiffusersOld,
    /// PEFT's `save_pretrained`: `base_model.model.down_blocks.0....to_q.lora_A.weight`, with `adapter_config.json` beside it.
    Peft,
    /// cloneofsimo's `.safetensors`: `unet:0:up`, numbered, with the classes of the adapted modules in the metadata.
    CloneofsimoNumbered,
    /// cloneofsimo's `.pt`: a list of tensors without names.
    CloneofsimoList,
}

impl LoraLayout {
    /// One word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kohya => "kohya",
            Self::KohyaOriginal => "kohya-original-blocks",
            Self::Diffusers => "diffusers",
            Self::DiffusersOld => "diffusers-old",
            Self::Peft => "peft",
            Self::CloneofsimoNumbered => "cloneofsimo",
            Self::CloneofsimoList => "cloneofsimo-list",
        }
    }

    /// Whether alphas are in a config and not in tensors.
    pub(super) fn has_config(self) -> bool {
        matches!(self, Self::Diffusers | Self::DiffusersOld | Self::Peft)
    }
}
