//! Flags that only some recipes have a use for.

use anyhow::{Result, bail};
use clap::Parser;

use super::{Recipe, TrainArguments};

/// Flags, which recipes have a use for them, and what those are.
type Flags = (&'static [&'static str], fn(Recipe) -> bool, &'static str);

const FLAGS: [Flags; 13] = [
    (
        &[
            "rank",
            "lora_alpha",
            "lora_dropout",
            "lora_layers",
            "target_modules",
            "init_lora_weights",
            "use_dora",
            "use_rslora",
        ],
        Recipe::is_lora,
        "LoRAs; this recipe trains none",
    ),
    (
        &["lora_format", "output_kohya_format"],
        |recipe| recipe.is_lora() || recipe == Recipe::CustomDiffusion,
        "recipes that write a LoRA; this one writes none",
    ),
    (&["modifier_token", "freeze_model"], |recipe| recipe == Recipe::CustomDiffusion, "custom-diffusion"),
    (
        &["noaug"],
        |recipe| recipe == Recipe::CustomDiffusion,
        "custom-diffusion; other recipes show no picture larger or smaller than the others",
    ),
    (
        &["learnable_property", "num_vectors"],
        Recipe::has_token,
        "textual-inversion and pivotal-tuning, whose new word it is about",
    ),
    (
        &["image_column", "caption_column", "proportion_empty_prompts"],
        |recipe| recipe != Recipe::InstructPix2pix,
        "other recipes; instruct-pix2pix has --edited-image-column, --edit-prompt-column and --conditioning-dropout-prob",
    ),
    (&["caption_column"], |recipe| recipe != Recipe::Unconditional, "models that paint from a text"),
    (
        &["learning_rate_unet"],
        |recipe| recipe.is_lora() || recipe.is_whole(),
        "recipes that teach a UNet with or without its text encoder; this one has --learning-rate",
    ),
    (
        &["max_train_steps_ti", "learning_rate_ti"],
        |recipe| recipe == Recipe::PivotalTuning,
        "pivotal-tuning; other recipes have --max-train-steps and --learning-rate",
    ),
    (
        &[
            "placeholder_tokens",
            "initializer_tokens",
            "placeholder_token_at_data",
            "use_template",
            "clip_ti_decay",
            "weight_decay_ti",
            "weight_decay_lora",
            "t_multiplier",
            "lr_scheduler_lora",
            "lr_warmup_steps_lora",
            "continue_inversion",
            "continue_inversion_lr",
            "cached_latents",
            "color_jitter",
        ],
        |recipe| recipe == Recipe::PivotalTuning,
        "pivotal-tuning, which learns new words and then a LoRA",
    ),
    (
        &["controlnet_model_name_or_path", "conditioning_image_column"],
        |recipe| recipe == Recipe::Controlnet,
        "controlnet",
    ),
    (
        &["original_image_column", "edited_image_column", "edit_prompt_column", "conditioning_dropout_prob"],
        |recipe| recipe == Recipe::InstructPix2pix,
        "instruct-pix2pix",
    ),
    (
        &[
            "model_config_name_or_path",
            "scheduler",
            "ddpm_num_steps",
            "ddpm_beta_schedule",
            "ema_max_decay",
            "ema_inv_gamma",
            "ema_power",
        ],
        |recipe| recipe == Recipe::Unconditional,
        "unconditional",
    ),
];

/// Refuses flags that a recipe has no use for. What says the same as leaving the flag out goes: a run's settings.toml, which has all of them, can be given as --config.
pub(super) fn check_recipe(arguments: &TrainArguments) -> Result<()> {
    let (given, usual) = (serde_json::to_value(arguments)?, serde_json::to_value(usual(arguments.recipe)?)?);
    for (names, is_for, whose) in FLAGS {
        let is_said = |name: &&&str| given.get(name) != usual.get(name);
        if let Some(name) = names.iter().find(is_said).filter(|_| !is_for(arguments.recipe)) {
            bail!("--{} is for {whose}", name.replace('_', "-"));
        }
    }
    Ok(())
}

/// Whether a recipe has a use for a flag, by its name with underscores.
pub(crate) fn has_use_for(recipe: Recipe, flag: &str) -> bool {
    FLAGS.iter().all(|(names, is_for, _)| is_for(recipe) || !names.contains(&flag))
}

/// What flags mean that are not given.
pub(super) fn usual(recipe: Recipe) -> Result<TrainArguments> {
    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        train: TrainArguments,
    }
    let name = recipe.name();
    let needed = ["train", &name, "--output-dir", "-", "--train-data-dir", "-"];
    let mut usual = Alone::try_parse_from(needed)?.train;
    usual.pictures.train_data_dir = None;
    Ok(usual)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn flags_are_those_of_the_command_line() {
        for recipe in Recipe::value_variants() {
            let usual = serde_json::to_value(usual(*recipe).unwrap()).unwrap();
            for name in FLAGS.iter().flat_map(|(names, ..)| *names) {
                assert!(usual.get(name).is_some(), "{name}");
            }
        }
    }
}
