//! Custom Diffusion: new words, and what cross-attention makes of texts.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use candle_diffusers_pipelines::Task;
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_training::Error;
use candle_diffusers_training::recipes::{
    CustomDiffusion, DenoisingOptions, TextualInversionOptions, TrainedProjections,
};

use super::data::Data;
use super::processes::Started;
use super::session::{Learned, Parts, Session, Stage};
use super::taught::Taught;
use super::trained::{denoising_options, group};
use super::trainer::{check_trainer, new_trainer};
use super::{FreezeModel, TrainArguments, beginning, class_pictures, concepts, model};
use crate::progress::Progress;

/// What new words begin as where nothing is said, as in diffusers' script.
const INITIALIZERS: &str = "ktn+pll+ucd";

pub(super) fn run(arguments: &TrainArguments, progress: &Progress, started: &Started) -> Result<()> {
    let tokens = tokens(arguments)?;
    let repository = started.first_before_others(|| model::open(arguments, progress))?;
    model::check_task(&repository, &[Task::Paint])?;
    let concepts = concepts::read(arguments)?;
    let mut data = Data::open(arguments, &repository, &concepts, started)?;
    beginning::check(arguments, started, &data)?;
    started.first_alone(|| class_pictures::check(arguments, &concepts, &data))?;
    let (mut models, _) = model::load(arguments, &repository, started.device()?, progress)?;
    CustomDiffusion::check_tokens(&mut models, &tokens).map_err(of_flag)?;
    check_trainer(arguments, started, data.max_steps(arguments))?;
    started
        .first_alone(|| class_pictures::paint_missing(arguments, &concepts, &data, &mut models, progress))?;
    data.open_classes(arguments, &concepts)?;

    let projections = match arguments.freeze_model {
        FreezeModel::CrossattnKv => TrainedProjections::KeysAndValues,
        FreezeModel::Crossattn => TrainedProjections::All,
    };
    let mut generator = TorchGenerator::new(arguments.steps.seed);
    let custom = CustomDiffusion::attach(&mut models, &tokens, projections, &mut generator)?;
    // As the script, --scale-lr counts pictures of the class too.
    let is_twice = arguments.steps.scale_lr && arguments.thing.with_prior_preservation;
    let learning_rate = arguments.learning_rate() * if is_twice { 2.0 } else { 1.0 };
    let groups = vec![group(arguments, started, custom.parameters(), learning_rate)];
    let options =
        DenoisingOptions { train_text_encoder: !tokens.is_empty(), ..denoising_options(arguments, &models)? };
    let max_steps = data.max_steps(arguments);
    let parts = Parts {
        folder: arguments.output_dir.clone(),
        taught: Taught::CustomDiffusion(Box::new(models), options),
        learned: Learned { custom: Some(custom), ..Default::default() },
        trainer: new_trainer(arguments, groups, max_steps, generator)?,
        data,
        max_steps,
        stage: Stage::Only,
    };
    Session::new(arguments, progress, started, parts)?.run(Some(&repository))
}

/// The new words with what each begins as.
pub(super) fn tokens(arguments: &TrainArguments) -> Result<Vec<TextualInversionOptions>> {
    let Some(modifiers) = &arguments.word.modifier_token else {
        ensure!(
            arguments.word.initializer_token.is_none(),
            "--initializer-token is what --modifier-token begins as; give both"
        );
        return Ok(Vec::new());
    };
    let initializers = arguments.word.initializer_token.as_deref().unwrap_or(INITIALIZERS);
    let (modifiers, initializers): (Vec<&str>, Vec<&str>) =
        (modifiers.split('+').collect(), initializers.split('+').collect());
    ensure!(
        modifiers.len() <= initializers.len(),
        "--initializer-token has {} words for the {} of --modifier-token; give one for each, joined by +",
        initializers.len(),
        modifiers.len()
    );
    let mut known = BTreeSet::new();
    if let Some(twice) = modifiers.iter().find(|modifier| !known.insert(**modifier)) {
        bail!("--modifier-token has {twice} twice; give each word once");
    }
    let token = |(modifier, initializer): (&str, &str)| TextualInversionOptions {
        placeholder_token: modifier.to_string(),
        initializer_token: initializer.to_string(),
        num_vectors: 1,
    };
    Ok(modifiers.into_iter().zip(initializers).map(token).collect())
}

/// Calls a word by the flag that names it here.
fn of_flag(error: Error) -> anyhow::Error {
    match error {
        Error::Field { field: "placeholder_token", found, expected } => {
            Error::Field { field: "--modifier-token", found, expected }.into()
        }
        Error::Field { .. } => error.into(),
        other => anyhow::Error::new(other).context("--modifier-token"),
    }
}
