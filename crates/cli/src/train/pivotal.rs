//! Pivotal tuning's two runs, with what cloneofsimo's `lora_pti` lets a user change of them (`train` of its `lora_diffusion/cli_lora_pti.py`).

use candle_diffusers_training::ParameterGroup;
use candle_diffusers_training::recipes::{DenoisingOptions, TrainedToken};

use super::processes::Started;
use super::trained::group;
use super::{Recipe, TrainArguments, words};

/// What `clip_ti_decay` pulls the lengths of a word's vectors to.
pub(super) const WORD_LENGTH: f64 = 0.4;

/// The words alone.
pub(super) fn word_group(
    arguments: &TrainArguments,
    started: &Started,
    words: &[TrainedToken],
) -> ParameterGroup {
    let parameters = words::parameters(words);
    let group = group(arguments, started, parameters, arguments.steps.learning_rate_ti);
    let weight_decay = arguments.pivotal.weight_decay_ti.unwrap_or(group.weight_decay);
    ParameterGroup { weight_decay, ..group }
}

/// What the words' loss is computed by: `--mask-temperature` is the LoRA's, as in lora_pti, whose `train_inversion` leaves it at 1.
pub(super) fn word_denoising(options: DenoisingOptions) -> DenoisingOptions {
    let mask_temperature = options.mask_temperature.map(|_| 1.0);
    DenoisingOptions { train_text_encoder: true, mask_temperature, ..options }
}

/// The LoRA, where it is that of pivotal tuning with its own weight decay; and the words, if those learn on.
pub(super) fn lora_groups(
    arguments: &TrainArguments,
    started: &Started,
    mut groups: Vec<ParameterGroup>,
    words: &[TrainedToken],
) -> Vec<ParameterGroup> {
    let pivotal = &arguments.pivotal;
    if learns_on(arguments) {
        let group = word_group(arguments, started, words);
        // As in lora_pti, where --scale-lr changes its default alone.
        let learning_rate = pivotal.continue_inversion_lr.unwrap_or(group.learning_rate);
        let weight_decay = arguments.optimizer.adam_weight_decay;
        groups.push(ParameterGroup { learning_rate, weight_decay, ..group });
    }
    if let Some(weight_decay) = pivotal.weight_decay_lora {
        groups.iter_mut().for_each(|group| group.weight_decay = weight_decay);
    }
    groups
}

/// Whether the words learn on beside the LoRA.
pub(super) fn learns_on(arguments: &TrainArguments) -> bool {
    arguments.recipe == Recipe::PivotalTuning && arguments.pivotal.continue_inversion
}
