//! The flags of `diffuse train`, named as those of diffusers' scripts: a file for each subject.

mod lora;
mod noise;
mod optimizer;
mod pairs;
mod pictures;
mod pivotal;
mod recipe;
mod refused;
mod steps;
mod thing;
mod unconditional;
mod watch;
mod without_effect;
mod word;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, Args, ValueEnum};
use serde::Serialize;

pub(crate) use lora::{InitLoraWeights, LoraArguments, TrainedLoraFormat};
pub(crate) use noise::NoiseArguments;
pub(crate) use optimizer::{OptimizerArguments, OptimizerName};
pub(crate) use pairs::PairArguments;
pub(crate) use pictures::{Interpolation, PictureArguments};
pub(crate) use pivotal::PivotalArguments;
pub(crate) use recipe::Recipe;
use refused::Refused;
pub(crate) use steps::{MixedPrecision, StepArguments};
pub(crate) use thing::ThingArguments;
pub(crate) use unconditional::UnconditionalArguments;
pub(crate) use watch::{ReportTo, WatchArguments};
use without_effect::WithoutEffect;
pub(crate) use word::{Property, Template, WordArguments};

/// Headings of the help page.
const PICTURES: &str = "Say what to learn from";
const TRAINED: &str = "Say what is trained";
const STEPS: &str = "Say how";
const STOPPING: &str = "Stop, go on, and look";

/// Lets what follows a flag be below zero: an error then says what the number must be, not that there is no flag of that name.
fn below_zero(argument: Arg) -> Arg {
    if argument.get_action().takes_values() { argument.allow_negative_numbers(true) } else { argument }
}

/// Teach a model something from a folder of pictures
///
/// Flags have the names of diffusers' training scripts, with hyphens or underscores; --config FILE.toml holds the same names. The folder that is
/// written has a LoRA that `diffuse generate --lora` and other programs read, a whole model for --model, or a ControlNet for --control, with
/// checkpoints to go on from.
#[derive(Debug, Args, Serialize)]
#[command(args_override_self = true, mut_args = below_zero)]
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
    /// A VAE to see pictures through instead of the model's own: a folder, a file, or the id of one on the hub
    #[arg(long, alias = "pretrained-vae-name-or-path", value_name = "PATH_OR_ID")]
    #[serde(serialize_with = "text")]
    pub(crate) pretrained_vae_model_name_or_path: Option<OsString>,
    /// Take the weight files of this variant, such as fp16
    #[arg(long, value_name = "NAME")]
    pub(crate) variant: Option<String>,
    /// Take this branch, tag or commit of a model on the hub, as owner/name@REVISION does
    #[arg(long, value_name = "REVISION", requires = "pretrained_model_name_or_path")]
    pub(crate) revision: Option<String>,
    /// The folder to write: the result, checkpoints, log.jsonl and settings.toml
    #[arg(long, value_name = "FOLDER")]
    #[serde(skip)]
    pub(crate) output_dir: PathBuf,
    /// Train the text encoder too
    #[arg(long, help_heading = TRAINED)]
    pub(crate) train_text_encoder: bool,
    /// Keep an average of the weights, and write that in the end
    #[arg(long, help_heading = TRAINED)]
    pub(crate) use_ema: bool,
    /// Custom Diffusion: which projections of cross-attention are trained: those to keys and values, or also those to queries and back
    #[arg(long, value_name = "WHICH", default_value = "crossattn_kv", help_heading = TRAINED)]
    pub(crate) freeze_model: FreezeModel,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) pictures: PictureArguments,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) thing: ThingArguments,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) word: WordArguments,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) pairs: PairArguments,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) unconditional: UnconditionalArguments,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) lora: LoraArguments,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) steps: StepArguments,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) optimizer: OptimizerArguments,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) noise: NoiseArguments,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) pivotal: PivotalArguments,
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) watch: WatchArguments,
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) without_effect: WithoutEffect,
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) refused: Refused,
}

impl TrainArguments {
    /// How large a step is: as was said, or as diffusers' script for the recipe has it.
    pub(crate) fn learning_rate(&self) -> f64 {
        self.steps.learning_rate.unwrap_or(self.recipe.learning_rate())
    }

    /// That of the UNet, or of its LoRA.
    pub(crate) fn learning_rate_unet(&self) -> f64 {
        self.steps.learning_rate_unet.unwrap_or(self.learning_rate())
    }

    /// The folder of pictures with captions; pivotal tuning's may be called as lora_pti calls it.
    pub(crate) fn train_data_dir(&self) -> Option<&Path> {
        let as_there =
            self.thing.instance_data_dir.as_deref().filter(|_| self.recipe == Recipe::PivotalTuning);
        self.pictures.train_data_dir.as_deref().or(as_there)
    }

    /// How learning rates change in the only run, or in that of a LoRA which comes after a word.
    pub(crate) fn lr_scheduler_lora(&self) -> &str {
        self.pivotal.lr_scheduler_lora.as_deref().unwrap_or(&self.steps.lr_scheduler)
    }

    /// Whether pictures are painted while training. A model that needs no text paints when that is asked for by a number.
    pub(crate) fn is_looked_at(&self) -> bool {
        let watch = &self.watch;
        let is_asked = watch.validation_steps.is_some() || watch.validation_epochs.is_some();
        !watch.validation_prompt.is_empty() || (self.recipe == Recipe::Unconditional && is_asked)
    }
}

/// What Custom Diffusion trains; the flag is called after what stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum FreezeModel {
    CrossattnKv,
    Crossattn,
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
    bring_recipe_forward(&mut arguments);
    let given = |index: usize, argument: &OsString| match argument.to_str()? {
        "--config" => arguments.get(index + 1).cloned(),
        text => text.strip_prefix("--config=").map(OsString::from),
    };
    // As of any flag that comes twice, the last counts.
    let config = arguments.iter().enumerate().rev().find_map(|(index, argument)| given(index, argument));
    if let Some(config) = config {
        let flags = super::config::read(&PathBuf::from(config))?;
        // Right after `train`, so that what the command line itself says comes last.
        arguments.splice(2..2, flags);
    }
    Ok(arguments)
}

/// Flags that take whatever comes up to the next flag.
pub(super) const SEVERAL: [&str; 6] = [
    "--validation-prompt",
    "--validation-prompts",
    "--validation-image",
    "--validation-images",
    "--val-image-url",
    "--val-image-url-or-path",
];

/// Puts the recipe right after `train` where it stands behind the values of such a flag, which would take it for one more. Only where it is named once and nowhere else, so
/// that there would be no recipe.
fn bring_recipe_forward(arguments: &mut Vec<OsString>) {
    let is_recipe =
        |argument: &OsString| argument.to_str().is_some_and(|name| Recipe::from_str(name, false).is_ok());
    let is_flag = |argument: &OsString| argument.to_str().is_some_and(|text| text.starts_with('-'));
    let named: Vec<usize> = (2..arguments.len()).filter(|&place| is_recipe(&arguments[place])).collect();
    let &[place] = named.as_slice() else { return };
    let Some(flag) = (2..place).rev().find(|&before| is_flag(&arguments[before])) else { return };
    let has_several = arguments[flag].to_str().is_some_and(|flag| SEVERAL.contains(&flag));
    let is_last = arguments.get(place + 1).is_none_or(is_flag);
    if has_several && is_last && place > flag + 1 {
        let recipe = arguments.remove(place);
        arguments.insert(2, recipe);
    }
}
