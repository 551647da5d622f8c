//! How much of the schedule is gone through, when a picture is begun with and when a refiner takes over.

use anyhow::{Result, bail, ensure};
use candle_diffusers_loaders::{ModelIndex, Repository};
use candle_diffusers_pipelines::{first_step, first_step_from, load_pipeline_scheduler, steps_until};
use candle_diffusers_schedulers::Scheduler;

use crate::arguments::GenerateArguments;
use crate::models::NamedModel;
use crate::scheduler_names;
use crate::start::Start;

/// As diffusers has it: Stable Diffusion XL's inpainting begins with a trace of the picture.
const XL_INPAINTING: f64 = 0.9999;

/// `--strength`, or the usual one; told before a model is loaded. Where the usual one is a little less than 1 and so costs the only step that
/// there is to take, it is 1.
pub(crate) fn strength(
    arguments: &GenerateArguments,
    start: &Start,
    model: &NamedModel,
    refiner: Option<&NamedModel>,
) -> Result<f64> {
    let is_xl = ModelIndex::load(&model.repository)?.components.contains_key("text_encoder_2");
    let (first, otherwise) = match (arguments.strength, start) {
        (Some(strength), _) => (strength, strength),
        (None, Start::Picture(_)) => (0.8, 0.8),
        (None, Start::Masked(..)) if is_xl => (XL_INPAINTING, 1.0),
        (None, _) => (1.0, 1.0),
    };
    let Some(refiner) = refiner else {
        let strength = if first_step(arguments.text_steps(), first).is_some() { first } else { otherwise };
        check(arguments, strength)?;
        return Ok(strength);
    };
    let scheduler = scheduler(arguments, &model.repository)?;
    let leaves_some = |strength: f64| {
        let first = first_step(arguments.text_steps(), strength);
        first.is_some_and(|first| {
            !steps_until(scheduler.as_ref(), first, arguments.xl.denoising_split).is_empty()
        })
    };
    let strength = if leaves_some(first) { first } else { otherwise };
    check(arguments, strength)?;
    let (split, steps) = (arguments.xl.denoising_split, arguments.text_steps());
    if !leaves_some(strength) {
        let of_strength = match strength < 1.0 {
            true => format!(" (a strength of {strength} takes only the last of them)"),
            false => String::new(),
        };
        bail!(
            "--denoising-split is {split}, which of {steps} steps leaves {} none{of_strength}; give more steps or a later split",
            model.name
        );
    }
    let of_refiner = self::scheduler(arguments, &refiner.repository)?;
    ensure!(
        first_step_from(of_refiner.as_ref(), split) < of_refiner.timesteps().len(),
        "--denoising-split is {split}, which of {steps} steps leaves {} none; give more steps or an earlier split",
        refiner.name
    );
    Ok(strength)
}

/// Whether it leaves a step.
pub(crate) fn check(arguments: &GenerateArguments, strength: f64) -> Result<()> {
    let steps = arguments.text_steps();
    ensure!(
        first_step(steps, strength).is_some(),
        "--strength is {strength}, which of {steps} steps leaves none; expected at least {}",
        1.0 / steps as f64
    );
    Ok(())
}

/// A model's scheduler, set to the steps that are asked for.
fn scheduler(arguments: &GenerateArguments, repository: &Repository) -> Result<Box<dyn Scheduler>> {
    let other = arguments.scheduler.as_deref().and_then(scheduler_names::resolve);
    let other = other.as_ref().map(|(class_name, overrides)| (*class_name, overrides));
    let mut scheduler = load_pipeline_scheduler(repository, other)?;
    scheduler.set_timesteps(arguments.text_steps())?;
    Ok(scheduler)
}
