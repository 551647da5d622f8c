//! What does not go together, before anything is read.

use anyhow::{Result, bail, ensure};

use super::{MixedPrecision, Recipe, TrainArguments};

/// Refuses flags that the recipe does not have, or that need others.
pub(super) fn check_flags(arguments: &TrainArguments) -> Result<()> {
    let recipe = arguments.recipe;
    if recipe.is_dreambooth() {
        ensure!(
            arguments.thing.instance_data_dir.is_some() && arguments.thing.instance_prompt.is_some(),
            "DreamBooth learns from --instance-data-dir and --instance-prompt; give both (captions beside the pictures go before the prompt)"
        );
        ensure!(
            arguments.pictures.train_data_dir.is_none(),
            "--train-data-dir is for text-to-image; DreamBooth has --instance-data-dir"
        );
        if arguments.thing.with_prior_preservation {
            ensure!(
                arguments.thing.class_data_dir.is_some() && arguments.thing.class_prompt.is_some(),
                "--with-prior-preservation needs --class-data-dir and --class-prompt"
            );
        }
    } else {
        ensure!(
            arguments.pictures.train_data_dir.is_some(),
            "this recipe learns from --train-data-dir; give it"
        );
        let flags = [
            ("--instance-data-dir", arguments.thing.instance_data_dir.is_some()),
            ("--instance-prompt", arguments.thing.instance_prompt.is_some()),
            ("--with-prior-preservation", arguments.thing.with_prior_preservation),
        ];
        if let Some((flag, _)) = flags.iter().find(|(_, is_given)| *is_given) {
            bail!("{flag} is for DreamBooth; text-to-image takes its captions from --train-data-dir");
        }
    }
    if recipe == Recipe::Unconditional {
        let flags = [
            ("--validation-prompt", arguments.watch.validation_prompt.is_some()),
            ("--train-text-encoder", arguments.train_text_encoder),
            ("--snr-gamma", arguments.noise.snr_gamma.is_some()),
        ];
        if let Some((flag, _)) = flags.iter().find(|(_, is_given)| *is_given) {
            bail!("{flag} is for models that paint from a text; unconditional ones have none");
        }
    }
    let has_token = arguments.word.placeholder_token.is_some() || arguments.word.initializer_token.is_some();
    if recipe.has_token() {
        ensure!(
            arguments.word.placeholder_token.is_some() && arguments.word.initializer_token.is_some(),
            "a new word needs --placeholder-token, what it is called, and --initializer-token, what it begins as; give both"
        );
    } else {
        ensure!(
            !has_token,
            "--placeholder-token and --initializer-token are for textual-inversion and pivotal-tuning"
        );
    }
    if recipe == Recipe::TextualInversion {
        ensure!(
            !arguments.train_text_encoder && arguments.steps.mixed_precision == MixedPrecision::No,
            "textual inversion trains the new word alone, in float32; leave out --train-text-encoder and --mixed-precision"
        );
    } else if !recipe.is_lora() && recipe != Recipe::Unconditional {
        ensure!(
            arguments.steps.mixed_precision == MixedPrecision::No,
            "--mixed-precision bf16 is for LoRAs; whole models are trained in float32"
        );
        ensure!(
            arguments.pretrained_model_name_or_path.is_some(),
            "a whole model is written with the other files of the one that it began as: give a folder as --pretrained-model-name-or-path"
        );
    }
    ensure!(arguments.watch.checkpointing_steps > 0, "--checkpointing-steps is 0, expected 1 or more");
    ensure!(arguments.watch.validation_steps > 0, "--validation-steps is 0, expected 1 or more");
    ensure!(arguments.watch.num_validation_images > 0, "--num-validation-images is 0, expected 1 or more");
    ensure!(arguments.watch.num_inference_steps > 0, "--num-inference-steps is 0, expected 1 or more");
    Ok(())
}
