//! Stable Diffusion from pictures with captions: LoRAs, whole models and new words.

use anyhow::Result;
use candle_diffusers_pipelines::Task;
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_training::recipes::{Denoising, DenoisingOptions};

use super::data::Data;
use super::processes::Started;
use super::session::{Learned, Parts, Session, Stage};
use super::taught::Taught;
use super::trained::{check_trained, choose_trained, denoising_options, group};
use super::trainer::{check_trainer, new_trainer};
use super::{Recipe, TrainArguments, beginning, class_pictures, concepts, model, pivotal, words};
use crate::progress::Progress;

pub(super) fn run(arguments: &TrainArguments, progress: &Progress, started: &Started) -> Result<()> {
    let repository = started.first_before_others(|| model::open(arguments, progress))?;
    model::check_task(&repository, &[Task::Paint, Task::Inpaint])?;
    let concepts = concepts::read(arguments)?;
    let mut data = Data::open(arguments, &repository, &concepts, started)?;
    beginning::check(arguments, started, &data)?;
    started.first_alone(|| class_pictures::check(arguments, &concepts, &data))?;
    let (mut models, options) = model::load(arguments, &repository, started.device()?, progress)?;
    check_trained(arguments, &models)?;
    // A word's gradients are not clipped, and nothing long is done before its trainer is made.
    if arguments.recipe != Recipe::TextualInversion {
        check_trainer(arguments, started, data.max_steps(arguments))?;
    }
    started
        .first_alone(|| class_pictures::paint_missing(arguments, &concepts, &data, &mut models, progress))?;
    data.open_classes(arguments, &concepts)?;

    let mut generator = TorchGenerator::new(arguments.steps.seed);
    let mut tokens = words::attach(arguments, &mut models, &mut generator)?;
    if arguments.recipe == Recipe::PivotalTuning {
        // What a LoRA cannot be learned by is told before the word is learned.
        let t_multiplier = Some(arguments.pivotal.t_multiplier);
        drop(Denoising::new(&models, DenoisingOptions { t_multiplier, ..Default::default() })?);
        let groups = vec![pivotal::word_group(arguments, started, &tokens)];
        let max_steps = arguments.steps.max_train_steps_ti;
        let denoising = pivotal::word_denoising(denoising_options(arguments, &models)?);
        let parts = Parts {
            folder: Stage::Word.folder(arguments),
            taught: Taught::StableDiffusion(Box::new(models), denoising),
            learned: Learned { tokens, ..Default::default() },
            trainer: new_trainer(arguments, groups, max_steps, generator.clone())?,
            data,
            max_steps,
            stage: Stage::Word,
        };
        let mut session = Session::new(arguments, progress, started, parts)?;
        session.run(Some(&repository))?;
        let Parts { taught, data: kept, learned, .. } = session.parts;
        (models, data, tokens) = (taught.stable_diffusion()?, kept, learned.tokens);
    }
    let (groups, loras) = if arguments.recipe == Recipe::TextualInversion {
        let parameters = words::parameters(&tokens);
        (vec![group(arguments, started, parameters, arguments.learning_rate())], Vec::new())
    } else {
        let (groups, loras) =
            choose_trained(arguments, started, &repository, &mut models, &options, &mut generator)?;
        (pivotal::lora_groups(arguments, started, groups, &tokens), loras)
    };
    let max_steps = data.max_steps(arguments);
    let mut denoising = denoising_options(arguments, &models)?;
    denoising.train_text_encoder |=
        arguments.recipe == Recipe::TextualInversion || pivotal::learns_on(arguments);
    denoising.t_multiplier = Some(arguments.pivotal.t_multiplier);
    let parts = Parts {
        folder: arguments.output_dir.clone(),
        taught: Taught::StableDiffusion(Box::new(models), denoising),
        learned: Learned { loras, tokens, ..Default::default() },
        trainer: new_trainer(arguments, groups, max_steps, generator)?,
        data,
        max_steps,
        stage: if arguments.recipe == Recipe::PivotalTuning { Stage::Lora } else { Stage::Only },
    };
    Session::new(arguments, progress, started, parts)?.run(Some(&repository))
}
