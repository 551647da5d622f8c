//! ControlNets.

use anyhow::Result;
use candle_diffusers_pipelines::{Task, check_controlnet};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_training::recipes::TrainedControlNet;

use super::data::Data;
use super::processes::Started;
use super::session::{Learned, Parts, Session, Stage};
use super::taught::Taught;
use super::trained::{denoising_options, group};
use super::trainer::new_trainer;
use super::{TrainArguments, beginning, model};
use crate::progress::Progress;

pub(super) fn run(arguments: &TrainArguments, progress: &Progress, started: &Started) -> Result<()> {
    let repository = started.first_before_others(|| model::open(arguments, progress))?;
    model::check_task(&repository, &[Task::Paint])?;
    let begun = arguments.pairs.controlnet_model_name_or_path.as_deref();
    let begun = started
        .first_before_others(|| begun.map(|name| model::open_component(name, progress)).transpose())?;
    if let Some(begun) = &begun {
        check_controlnet(&repository, begun)?;
    }
    let data = Data::open(arguments, &repository, &[], started)?;
    beginning::check(arguments, started, &data)?;
    let (models, options) = model::load(arguments, &repository, started.device()?, progress)?;
    let generator = TorchGenerator::new(arguments.steps.seed);
    let trained = match &begun {
        Some(begun) => TrainedControlNet::load(begun, &options)?,
        None => TrainedControlNet::from_unet(&repository, &options, generator.clone())?,
    };
    let groups = vec![group(arguments, started, trained.parameters.clone(), arguments.learning_rate())];
    let max_steps = data.max_steps(arguments);
    let trainer = new_trainer(arguments, groups, max_steps, generator)?;
    let denoising = denoising_options(arguments, &models)?;
    let taught = Taught::ControlNet(Box::new(models), trained, denoising);
    let (folder, learned) = (arguments.output_dir.clone(), Learned::default());
    let parts = Parts { folder, taught, learned, trainer, data, max_steps, stage: Stage::Only };
    Session::new(arguments, progress, started, parts)?.run(Some(&repository))
}
