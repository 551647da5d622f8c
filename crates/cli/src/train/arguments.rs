//! The flags of `diffuse train`, named as those of diffusers' scripts.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

/// Teach a model something from a folder of pictures
///
/// Flags have the names of diffusers' training scripts, with hyphens or underscores; --config FILE.toml holds the same names. The folder that is
/// written has a LoRA that `diffuse generate --lora` and other programs read, or a whole model for --model, with checkpoints to go on from.
#[derive(Debug, Args, Serialize)]
#[command(args_override_self = true)]
pub(crate) struct TrainArguments {
    /// What to train, and how
    #[serde(skip)]
    pub(crate) recipe: Recipe,
    /// Take flags from a TOML file of `name = value`; the command line goes before it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
    /// The model to begin with: a folder in diffusers' layout, a single-file checkpoint, or the id of a model on the hub
    /// [default: the small model that travels with the program]
    #[arg(long, value_name = "PATH_OR_ID")]
    #[serde(serialize_with = "text")]
    pub(crate) pretrained_model_name_or_path: Option<OsString>,
    /// Take the weight files of this variant, such as fp16
    #[arg(long, value_name = "NAME")]
    pub(crate) variant: Option<String>,
    /// The folder to write: the result, checkpoints, log.jsonl and settings.toml
    #[arg(long, value_name = "FOLDER")]
    #[serde(skip)]
    pub(crate) output_dir: PathBuf,
    /// The layout of a LoRA's file: diffusers' or kohya's, which nearly every program reads
    #[arg(long, value_name = "LAYOUT", default_value = "diffusers")]
    pub(crate) lora_format: TrainedLoraFormat,

    /// text-to-image: the folder of pictures, with captions in metadata.csv, metadata.jsonl or in text files beside the pictures
    #[arg(long, value_name = "FOLDER", help_heading = PICTURES, required_unless_present = "instance_data_dir")]
    pub(crate) train_data_dir: Option<PathBuf>,
    /// The column of the metadata that has the captions
    #[arg(long, value_name = "NAME", default_value = "text", help_heading = PICTURES)]
    pub(crate) caption_column: String,
    /// The share of captions that are left out, 0 to 1, so that guidance has something to lead away from
    #[arg(long, value_name = "X", default_value_t = 0.0, help_heading = PICTURES)]
    pub(crate) proportion_empty_prompts: f64,
    /// DreamBooth: the folder of pictures of the one thing
    #[arg(long, value_name = "FOLDER", help_heading = PICTURES)]
    pub(crate) instance_data_dir: Option<PathBuf>,
    /// DreamBooth: what they show, with a word that has no meaning yet: "a photo of sks dog"
    #[arg(long, value_name = "TEXT", help_heading = PICTURES)]
    pub(crate) instance_prompt: Option<String>,
    /// DreamBooth: keep what the model knows of the thing's class, by pictures of it
    #[arg(long, help_heading = PICTURES)]
    pub(crate) with_prior_preservation: bool,
    /// The folder of pictures of the class; the model paints what is missing
    #[arg(long, value_name = "FOLDER", requires = "with_prior_preservation", help_heading = PICTURES)]
    pub(crate) class_data_dir: Option<PathBuf>,
    /// What the pictures of the class show: "a photo of dog"
    #[arg(long, value_name = "TEXT", requires = "with_prior_preservation", help_heading = PICTURES)]
    pub(crate) class_prompt: Option<String>,
    /// How many pictures of the class there should be
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = PICTURES)]
    pub(crate) num_class_images: usize,
    /// Textual inversion: the new word, such as `<cat-toy>`
    #[arg(long, value_name = "TOKEN", help_heading = PICTURES)]
    pub(crate) placeholder_token: Option<String>,
    /// Textual inversion: a word that the new one begins as, such as "toy"
    #[arg(long, value_name = "WORD", help_heading = PICTURES)]
    pub(crate) initializer_token: Option<String>,
    /// Textual inversion: how many vectors the new word has
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = PICTURES)]
    pub(crate) num_vectors: usize,
    /// Textual inversion: what the new word is, which captions are made by
    #[arg(long, value_name = "KIND", default_value = "object", help_heading = PICTURES)]
    pub(crate) learnable_property: Property,
    /// How much the pictures of the class count
    #[arg(long, value_name = "X", default_value_t = 1.0, help_heading = PICTURES)]
    pub(crate) prior_loss_weight: f64,
    /// Unconditional: what the new model's UNet is, a config.json of a UNet2DModel [default: that of diffusers' script]
    #[arg(long, value_name = "FILE", help_heading = TRAINED)]
    pub(crate) model_config_name_or_path: Option<PathBuf>,
    /// Unconditional: what the model predicts, epsilon or sample
    #[arg(long, value_name = "KIND", default_value = "epsilon", help_heading = TRAINED)]
    pub(crate) prediction_type: String,
    /// Unconditional: the scheduler that it is to paint with, DDPMScheduler or DDIMScheduler
    #[arg(long, value_name = "CLASS", default_value = "DDPMScheduler", help_heading = TRAINED)]
    pub(crate) scheduler: String,
    /// Unconditional: timesteps of its noise
    #[arg(long, value_name = "N", default_value_t = 1000, help_heading = TRAINED)]
    pub(crate) ddpm_num_steps: usize,
    /// Unconditional: how its noise rises
    #[arg(long, value_name = "NAME", default_value = "linear", help_heading = TRAINED)]
    pub(crate) ddpm_beta_schedule: String,
    /// Width and height to train at, a multiple of 8 [default: the model's own]
    #[arg(long, value_name = "PIXELS", help_heading = PICTURES)]
    pub(crate) resolution: Option<u32>,
    /// Cut the middle out of pictures that are not square; otherwise a random part
    #[arg(long, help_heading = PICTURES)]
    pub(crate) center_crop: bool,
    /// Show every second picture, at random, as in a mirror
    #[arg(long, help_heading = PICTURES)]
    pub(crate) random_flip: bool,
    /// How often each picture comes in an epoch
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = PICTURES)]
    pub(crate) repeats: usize,
    /// Go on without pictures that cannot be read
    #[arg(long, help_heading = PICTURES)]
    pub(crate) skip_broken: bool,

    /// The rank of a LoRA
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = TRAINED)]
    pub(crate) rank: usize,
    /// What a LoRA is multiplied by, over its rank [default: the rank]
    #[arg(long, value_name = "X", help_heading = TRAINED)]
    pub(crate) lora_alpha: Option<f64>,
    /// The share of a LoRA's inputs that is left out in each step
    #[arg(long, value_name = "X", default_value_t = 0.0, help_heading = TRAINED)]
    pub(crate) lora_dropout: f64,
    /// Layers of the UNet that get a LoRA, by the ends of their names
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "to_k,to_q,to_v,to_out.0", help_heading = TRAINED)]
    pub(crate) lora_layers: Vec<String>,
    /// Train the text encoder too
    #[arg(long, help_heading = TRAINED)]
    pub(crate) train_text_encoder: bool,
    /// Keep an average of the weights, and write that in the end
    #[arg(long, help_heading = TRAINED)]
    pub(crate) use_ema: bool,

    /// Pictures of a batch
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = STEPS)]
    pub(crate) train_batch_size: usize,
    /// Batches of a step
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = STEPS)]
    pub(crate) gradient_accumulation_steps: usize,
    /// How often all pictures come, where --max-train-steps does not say when to end
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = STEPS)]
    pub(crate) num_train_epochs: u64,
    /// Steps in all
    #[arg(long, value_name = "N", help_heading = STEPS)]
    pub(crate) max_train_steps: Option<u64>,
    /// How large a step is
    #[arg(long, value_name = "X", default_value_t = 1e-4, help_heading = STEPS)]
    pub(crate) learning_rate: f64,
    /// How large a step of the text encoder is [default: --learning-rate]
    #[arg(long, value_name = "X", requires = "train_text_encoder", help_heading = STEPS)]
    pub(crate) text_encoder_lr: Option<f64>,
    /// Pivotal tuning: steps of the textual inversion that comes first
    #[arg(long, value_name = "N", default_value_t = 500, help_heading = STEPS)]
    pub(crate) max_train_steps_ti: u64,
    /// Pivotal tuning: how large a step of the textual inversion is
    #[arg(long, value_name = "X", default_value_t = 5e-4, help_heading = STEPS)]
    pub(crate) learning_rate_ti: f64,
    /// Multiply learning rates by the pictures of a step
    #[arg(long, help_heading = STEPS)]
    pub(crate) scale_lr: bool,
    /// How learning rates change: constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial or
    /// piecewise_constant
    #[arg(long, value_name = "NAME", default_value = "constant", help_heading = STEPS)]
    pub(crate) lr_scheduler: String,
    /// Steps in which learning rates rise
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = STEPS)]
    pub(crate) lr_warmup_steps: usize,
    /// How often cosine_with_restarts falls
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = STEPS)]
    pub(crate) lr_num_cycles: usize,
    /// The exponent of polynomial
    #[arg(long, value_name = "X", default_value_t = 1.0, help_heading = STEPS)]
    pub(crate) lr_power: f64,
    /// AdamW with states of 8 bits, which take a quarter of the memory
    #[arg(long, help_heading = STEPS)]
    pub(crate) use_8bit_adam: bool,
    /// AdamW's first beta
    #[arg(long, value_name = "X", default_value_t = 0.9, help_heading = STEPS)]
    pub(crate) adam_beta1: f64,
    /// AdamW's second beta
    #[arg(long, value_name = "X", default_value_t = 0.999, help_heading = STEPS)]
    pub(crate) adam_beta2: f64,
    /// How strongly weights are pulled to zero
    #[arg(long, value_name = "X", default_value_t = 1e-2, help_heading = STEPS)]
    pub(crate) adam_weight_decay: f64,
    /// AdamW's epsilon
    #[arg(long, value_name = "X", default_value_t = 1e-8, help_heading = STEPS)]
    pub(crate) adam_epsilon: f64,
    /// What the norm of the gradients is clipped to; those of a new word are not
    #[arg(long, value_name = "X", default_value_t = 1.0, help_heading = STEPS)]
    pub(crate) max_grad_norm: f64,
    /// Weigh timesteps by min(SNR, X); 5 is usual
    #[arg(long, value_name = "X", help_heading = STEPS)]
    pub(crate) snr_gamma: Option<f64>,
    /// How much one number for each channel adds to its noise; 0.1 is usual
    #[arg(long, value_name = "X", default_value_t = 0.0, help_heading = STEPS)]
    pub(crate) noise_offset: f64,
    /// How much more noise pictures get than is to be found; 0.1 is usual
    #[arg(long, value_name = "X", default_value_t = 0.0, help_heading = STEPS)]
    pub(crate) input_perturbation: f64,
    /// What order, crops, noise and timesteps follow from
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = STEPS)]
    pub(crate) seed: u64,
    /// bf16 computes in bfloat16; what is trained stays float32. For LoRAs
    #[arg(long, value_name = "TYPE", default_value = "no", help_heading = STEPS)]
    pub(crate) mixed_precision: MixedPrecision,

    /// Write a checkpoint every N steps
    #[arg(long, value_name = "N", default_value_t = 500, help_heading = STOPPING)]
    #[serde(skip)]
    pub(crate) checkpointing_steps: u64,
    /// Keep the newest N checkpoints
    #[arg(long, value_name = "N", help_heading = STOPPING)]
    #[serde(skip)]
    pub(crate) checkpoints_total_limit: Option<usize>,
    /// Go on from a checkpoint: latest, or a name such as checkpoint-500
    #[arg(long, value_name = "NAME", help_heading = STOPPING)]
    #[serde(skip)]
    pub(crate) resume_from_checkpoint: Option<String>,
    /// Paint this every --validation-steps steps, to see how the model changes
    #[arg(long, value_name = "TEXT", help_heading = STOPPING)]
    #[serde(skip)]
    pub(crate) validation_prompt: Option<String>,
    /// How often
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = STOPPING)]
    #[serde(skip)]
    pub(crate) validation_steps: u64,
    /// How many pictures each time, which become one
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = STOPPING)]
    #[serde(skip)]
    pub(crate) num_validation_images: usize,
    /// Denoising steps of pictures that are painted for validation and of the class
    #[arg(long, value_name = "N", default_value_t = 30, help_heading = STOPPING)]
    #[serde(skip)]
    pub(crate) num_inference_steps: usize,
}

const PICTURES: &str = "Say what to learn from";
const TRAINED: &str = "Say what is trained";
const STEPS: &str = "Say how";
const STOPPING: &str = "Stop, go on, and look";

/// The recipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Recipe {
    /// A LoRA, from pictures with captions
    TextToImageLora,
    /// The whole UNet, from pictures with captions
    TextToImage,
    /// A LoRA of one thing, from a few pictures of it
    DreamboothLora,
    /// The whole UNet for one thing, from a few pictures of it
    Dreambooth,
    /// A new word for what a few pictures show
    TextualInversion,
    /// A new word first, then a LoRA for what it says (lora_pti)
    PivotalTuning,
    /// A model that paints without a text, from nothing or from one that is there
    Unconditional,
}

impl Recipe {
    pub(crate) fn is_lora(self) -> bool {
        matches!(self, Self::TextToImageLora | Self::DreamboothLora | Self::PivotalTuning)
    }

    /// Whether a new word is learned.
    pub(crate) fn has_token(self) -> bool {
        matches!(self, Self::TextualInversion | Self::PivotalTuning)
    }

    pub(crate) fn is_dreambooth(self) -> bool {
        matches!(self, Self::Dreambooth | Self::DreamboothLora)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TrainedLoraFormat {
    Diffusers,
    Kohya,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Property {
    Object,
    Style,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MixedPrecision {
    No,
    Bf16,
}

fn text<S: serde::Serializer>(value: &Option<OsString>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_ref().map(|value| value.to_string_lossy()).serialize(serializer)
}

/// The command line with hyphens for the underscores of flags after `train`, and with the flags of its --config before its own.
pub(crate) fn expand(arguments: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    if arguments.get(1).and_then(|command| command.to_str()) != Some("train") {
        return Ok(arguments);
    }
    let hyphens = |argument: OsString| match argument.to_str() {
        Some(text) if text.starts_with("--") => {
            let (name, value) =
                text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
            let name = name.replace('_', "-");
            value.map_or(name.clone(), |value| format!("{name}={value}")).into()
        }
        _ => argument,
    };
    let mut arguments: Vec<OsString> = arguments.into_iter().map(hyphens).collect();
    let given = |index: usize, argument: &OsString| match argument.to_str()? {
        "--config" => arguments.get(index + 1).cloned(),
        text => text.strip_prefix("--config=").map(OsString::from),
    };
    let config = arguments.iter().enumerate().find_map(|(index, argument)| given(index, argument));
    if let Some(config) = config {
        let flags = super::config::read(&PathBuf::from(config))?;
        // Right after `train`: of a flag that comes twice, the last counts.
        arguments.splice(2..2, flags);
    }
    Ok(arguments)
}
