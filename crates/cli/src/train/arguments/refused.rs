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
    #[arg(long, hide = true)]
    preserve_input_precision: bool,
    #[arg(long, hide = true, value_name = "PIXELS")]
    crops_coords_top_left_h: Option<String>,
    #[arg(long, hide = true, value_name = "PIXELS")]
    crops_coords_top_left_w: Option<String>,
    #[arg(long, hide = true, value_name = "NAME")]
    timestep_bias_strategy: Option<String>,
    #[arg(long, hide = true, value_name = "X")]
    timestep_bias_multiplier: Option<String>,
    #[arg(long, hide = true, value_name = "N")]
    timestep_bias_begin: Option<String>,
    #[arg(long, hide = true, value_name = "N")]
    timestep_bias_end: Option<String>,
    #[arg(long, hide = true, value_name = "X")]
    timestep_bias_portion: Option<String>,
    #[arg(long, hide = true)]
    do_edm_style_training: bool,
    #[arg(long, hide = true)]
    dream_training: bool,
    #[arg(long, hide = true, value_name = "X")]
    dream_detail_preservation: Option<String>,
    #[arg(long, hide = true)]
    use_extended_lora: bool,
    #[arg(long, hide = true, value_name = "X")]
    prodigy_beta3: Option<String>,
    #[arg(long, hide = true, value_name = "TRUE")]
    prodigy_decouple: Option<String>,
    #[arg(long, hide = true, value_name = "TRUE")]
    prodigy_use_bias_correction: Option<String>,
    #[arg(long, hide = true, value_name = "TRUE")]
    prodigy_safeguard_warmup: Option<String>,
    #[arg(long, hide = true)]
    debug_loss: bool,
    #[arg(long, hide = true)]
    log_wandb: bool,
}

/// Whether a flag is given, what it is called, and what there is instead.
type Flag = (bool, &'static str, &'static str);

impl Refused {
    /// # Errors
    /// When one is given.
    pub(crate) fn check(&self) -> Result<()> {
        let flags = [self.of_models(), self.of_pictures(), self.of_noise(), self.of_steps()].concat();
        match flags.iter().find(|(is_given, ..)| *is_given) {
            Some((_, flag, reason)) => bail!("{flag}: {reason}"),
            None => Ok(()),
        }
    }

    fn of_models(&self) -> Vec<Flag> {
        const DEEPFLOYD: &str = "it is for DeepFloyd IF, which is not taught here";
        vec![
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
                self.use_extended_lora,
                "--use-extended-lora",
                "a LoRA is put beside the layers that --lora-layers names; give to_k,to_q,to_v,to_out.0,conv1,conv2 for convolutions too",
            ),
        ]
    }

    fn of_pictures(&self) -> Vec<Flag> {
        const CROPS: &str = "Stable Diffusion XL is told where each picture was cut; leave it out";
        vec![
            (
                self.dataset_config_name.is_some(),
                "--dataset-config-name",
                "data sets are not fetched; save its pictures in a folder, with metadata.jsonl, and give that as --train-data-dir",
            ),
            (
                self.use_face_segmentation_condition,
                "--use-face-segmentation-condition",
                "faces are not looked for; draw masks, white where the loss counts, and give --use-mask-captioned-data",
            ),
            (
                self.preserve_input_precision,
                "--preserve-input-precision",
                "pictures are read with 8 bits for each colour; leave it out",
            ),
            (self.crops_coords_top_left_h.is_some(), "--crops-coords-top-left-h", CROPS),
            (self.crops_coords_top_left_w.is_some(), "--crops-coords-top-left-w", CROPS),
        ]
    }

    fn of_noise(&self) -> Vec<Flag> {
        const BIAS: &str =
            "all timesteps are drawn equally often; --snr-gamma weighs them by their noise instead";
        const DREAM: &str = "there is no training by the model's own predictions (DREAM) here; leave it out";
        vec![
            (self.timestep_bias_strategy.is_some(), "--timestep-bias-strategy", BIAS),
            (self.timestep_bias_multiplier.is_some(), "--timestep-bias-multiplier", BIAS),
            (self.timestep_bias_begin.is_some(), "--timestep-bias-begin", BIAS),
            (self.timestep_bias_end.is_some(), "--timestep-bias-end", BIAS),
            (self.timestep_bias_portion.is_some(), "--timestep-bias-portion", BIAS),
            (
                self.do_edm_style_training,
                "--do-edm-style-training",
                "noise is that of the model's scheduler, not EDM's; leave it out",
            ),
            (self.dream_training, "--dream-training", DREAM),
            (self.dream_detail_preservation.is_some(), "--dream-detail-preservation", DREAM),
        ]
    }

    fn of_steps(&self) -> Vec<Flag> {
        const PRODIGY: &str = "there is no Prodigy here; --optimizer has adamw and sgd";
        vec![
            (self.prodigy_beta3.is_some(), "--prodigy-beta3", PRODIGY),
            (self.prodigy_decouple.is_some(), "--prodigy-decouple", PRODIGY),
            (self.prodigy_use_bias_correction.is_some(), "--prodigy-use-bias-correction", PRODIGY),
            (self.prodigy_safeguard_warmup.is_some(), "--prodigy-safeguard-warmup", PRODIGY),
            (
                self.debug_loss,
                "--debug-loss",
                "losses are not told for each picture; log.jsonl in --output-dir has that of each step",
            ),
            (
                self.log_wandb,
                "--log-wandb",
                "nothing is sent to wandb; give --report-to tensorboard, or look at log.jsonl in --output-dir",
            ),
        ]
    }
}
