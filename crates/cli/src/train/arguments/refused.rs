//! Flags that guides for diffusers' scripts and cloneofsimo's lora print, and that would have another result than is to be had here.

use anyhow::{Result, bail};
use clap::Args;

/// They are taken, so that what there is instead can be said.
#[derive(Debug, Args)]
pub(crate) struct Refused {
    #[arg(long, hide = true, value_name = "NAME")]
    dataset_config_name: Option<String>,
    #[arg(long, hide = true, value_name = "NAME")]
    tokenizer_name: Option<String>,
    #[arg(long, hide = true, value_name = "REVISION")]
    non_ema_revision: Option<String>,
    #[arg(long, hide = true, value_name = "KIND")]
    class_labels_conditioning: Option<String>,
    #[arg(long, hide = true, value_name = "N")]
    tokenizer_max_length: Option<usize>,
    #[arg(long, hide = true)]
    text_encoder_use_attention_mask: bool,
    #[arg(long, hide = true)]
    use_face_segmentation_condition: bool,
}

impl Refused {
    /// # Errors
    /// When one is given.
    pub(crate) fn check(&self) -> Result<()> {
        const DEEPFLOYD: &str = "it is for DeepFloyd IF, which is not taught here";
        let flags = [
            (
                self.dataset_config_name.is_some(),
                "--dataset-config-name",
                "data sets are not fetched; save its pictures in a folder, with metadata.jsonl, and give that as --train-data-dir",
            ),
            (
                self.tokenizer_name.is_some(),
                "--tokenizer-name",
                "the tokenizer is the model's own; put another one into a copy of its folder",
            ),
            (
                self.non_ema_revision.is_some(),
                "--non-ema-revision",
                "all of a model is of one revision; give that as --revision",
            ),
            (self.class_labels_conditioning.is_some(), "--class-labels-conditioning", DEEPFLOYD),
            (self.tokenizer_max_length.is_some(), "--tokenizer-max-length", DEEPFLOYD),
            (self.text_encoder_use_attention_mask, "--text-encoder-use-attention-mask", DEEPFLOYD),
            (
                self.use_face_segmentation_condition,
                "--use-face-segmentation-condition",
                "faces are not looked for; draw masks, white where the loss counts, and give --use-mask-captioned-data",
            ),
        ];
        match flags.iter().find(|(is_given, ..)| *is_given) {
            Some((_, flag, reason)) => bail!("{flag}: {reason}"),
            None => Ok(()),
        }
    }
}
