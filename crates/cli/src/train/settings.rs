//! What a run is known by, which one that goes on must have too: all that changes what is learned.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_diffusers_training::Checkpoint;

use super::belongs::usual;
use super::data::Data;
use super::processes::Started;
use super::session::Stage;
use super::{Recipe, TrainArguments};

/// All flags that change what is learned, with what those mean that were not given.
pub(super) fn resolved(arguments: &TrainArguments, data: &Data, stage: Stage) -> Result<toml::Table> {
    let mut table = toml::Table::try_from(arguments)?;
    table.insert("resolution".to_string(), i64::from(data.resolution()).into());
    table.insert("learning_rate".to_string(), arguments.learning_rate().into());
    // How long the word is learned has a flag of its own.
    if stage != Stage::Word {
        table.insert("max_train_steps".to_string(), i64::try_from(data.max_steps(arguments))?.into());
    }
    Ok(table)
}

/// What changes nothing of what is learned: where the pictures are, which are known by themselves, and how the result is written. Broken pictures end a run that is not to
/// leave them out.
const WITHOUT_WEIGHT: [&str; 6] = [
    "train_data_dir",
    "instance_data_dir",
    "class_data_dir",
    "lora_format",
    "output_kohya_format",
    "skip_broken",
];

/// What a checkpoint must have been made with: those flags, and `pictures`, by what they are known by.
pub(super) fn settings(
    arguments: &TrainArguments,
    started: &Started,
    data: &Data,
    stage: Stage,
    pictures: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>> {
    let flags = resolved(arguments, data, stage)?;
    let mut settings: BTreeMap<String, String> =
        flags.into_iter().map(|(name, value)| (name, value.to_string())).collect();
    settings.insert("recipe".to_string(), format!("{:?}", arguments.recipe));
    settings.extend(pictures);
    // Of all processes, as a step depends on nothing else of them: a run may go on with another number of them.
    let batch = arguments.steps.train_batch_size * started.processes.size();
    settings.insert("train_batch_size".to_string(), batch.to_string());
    // A run may be made longer where its learning rate does not depend on how long it is. How long a word is learned has a flag of its own.
    if stage == Stage::Word || arguments.lr_scheduler_lora().starts_with("constant") {
        settings.remove("max_train_steps");
        settings.remove("num_train_epochs");
    }
    for name in WITHOUT_WEIGHT {
        settings.remove(name);
    }
    Ok(settings)
}

/// Completes what a checkpoint of an earlier version says, which did not know all of these settings: a flag did then what its default does. What is no flag, such as
/// which pictures there were, is taken for what it is now. Nothing is known of Custom Diffusion's `noaug`: before there was that flag, pictures of things
/// were cut as others are, which neither of its values does.
pub(super) fn assume_defaults(
    arguments: &TrainArguments,
    checkpoint: &mut Checkpoint,
    settings: &BTreeMap<String, String>,
) -> Result<()> {
    let (given, usual) =
        (toml::Table::try_from(arguments)?, toml::Table::try_from(usual(arguments.recipe)?)?);
    for name in WITHOUT_WEIGHT {
        checkpoint.forget_setting(name);
    }
    let is_not_known = |name: &str| arguments.recipe == Recipe::CustomDiffusion && name == "noaug";
    for (name, value) in settings.iter().filter(|(name, _)| !is_not_known(name)) {
        // What a flag means that is not given may follow from the model, as the resolution does.
        if given.get(name) == usual.get(name) {
            checkpoint.assume_setting(name, value);
        } else if let Some(default) = usual.get(name) {
            checkpoint.assume_setting(name, &default.to_string());
        }
    }
    Ok(())
}
