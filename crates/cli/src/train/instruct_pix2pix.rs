//! Models that edit pictures by instructions.

use anyhow::{Result, ensure};
use candle_diffusers_pipelines::Task;
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_training::recipes::{InstructPix2PixOptions, trainable_edit_unet};
use serde_json::Value;

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
    model::check_task(&repository, &[Task::Paint, Task::Edit])?;
    let unet: Value = repository.read_json("unet/config.json")?;
    ensure!(
        unet["addition_embed_type"].is_null(),
        "{} is Stable Diffusion XL; instruct-pix2pix teaches Stable Diffusion 1 and 2",
        repository.name()
    );
    let data = Data::open(arguments, &repository, &[], started)?;
    beginning::check(arguments, started, &data)?;
    let (mut models, options) = model::load(arguments, &repository, started.device()?, progress)?;
    let (whole, config) = trainable_edit_unet(&repository, &model::in_float32(&options))?;
    models.unet = whole.model;
    let groups = vec![group(arguments, started, whole.parameters, arguments.learning_rate_unet())];
    let max_steps = data.max_steps(arguments);
    let trainer = new_trainer(arguments, groups, max_steps, TorchGenerator::new(arguments.steps.seed))?;
    let options = InstructPix2PixOptions {
        denoising: denoising_options(arguments, &models)?,
        conditioning_dropout_prob: arguments.pairs.conditioning_dropout_prob,
        seed: arguments.steps.seed,
        share: started.share(data.kinds()),
    };
    let taught = Taught::Editing(Box::new(models), config, options);
    let (folder, learned) = (arguments.output_dir.clone(), Learned::default());
    let parts = Parts { folder, taught, learned, trainer, data, max_steps, stage: Stage::Only };
    Session::new(arguments, progress, started, parts)?.run(Some(&repository))
}
