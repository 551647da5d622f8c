//! `diffuse generate` without a prompt, with a model that needs none.

use std::ops::ControlFlow;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use candle_diffusers_loaders::{LoadOptions, ModelIndex, Repository};
use candle_diffusers_pipelines::{Schedule, Unconditional, UnconditionalPipeline, seeded_generators};
use image::RgbImage;

use crate::arguments::GenerateArguments;
use crate::models::NamedModel;
use crate::output::Outputs;
use crate::parameters::Parameters;
use crate::progress::Progress;
use crate::{device, scheduler_names, terminal};

/// Whether this model paints without a text. What is wrong with the repository is told by whoever loads it.
pub(crate) fn is_unconditional(repository: &Repository) -> bool {
    ModelIndex::load(repository).is_ok_and(|index| UnconditionalPipeline::is_unconditional(&index))
}

/// Paints `--num-images` pictures, the first with `seed`.
pub(crate) fn run(
    arguments: &GenerateArguments,
    outputs: &mut Outputs,
    model: &NamedModel,
    seed: u64,
    progress: &Progress,
) -> Result<()> {
    let NamedModel { name, repository } = model;
    check_flags(arguments, name)?;
    let mut pipeline = load(arguments, repository, progress)?;
    let mut unsaid = arguments.seed.is_none().then(|| format!("seed: {seed}"));
    let count = arguments.num_images;
    for index in 0..count {
        let seed = seed.wrapping_add(index as u64);
        let what = if count == 1 { String::new() } else { format!("picture {} of {count} ", index + 1) };
        let picture = paint(arguments, &mut pipeline, seed, &what, &mut unsaid, progress)?;
        let parameters = describe(arguments, &pipeline, name, seed, &picture);
        if let Some(path) = outputs.write(index, &picture, &parameters.to_string())? {
            progress.suspend(|| terminal::note(&format!("wrote {}", path.display())));
        }
    }
    Ok(())
}

/// Nothing that is for a text is silently without effect.
fn check_flags(arguments: &GenerateArguments, model: &str) -> Result<()> {
    let given = [
        ("a prompt", arguments.has_prompt()),
        ("--negative-prompt", arguments.negative_prompt.is_some()),
        ("--guidance-scale", arguments.guidance_scale.is_some()),
        ("--guidance-rescale", arguments.guidance_rescale != 0.0),
        ("--clip-skip", arguments.clip_skip.is_some()),
        ("--lora", !arguments.lora.is_empty()),
        ("--embedding", !arguments.embeddings.is_empty()),
        ("--init-image", arguments.init_image.is_some()),
        ("--control", !arguments.control.controls.is_empty()),
        ("--prompt-2", arguments.xl.prompt_2.is_some()),
        ("--negative-prompt-2", arguments.xl.negative_prompt_2.is_some()),
        ("--refiner", arguments.xl.refiner.is_some()),
        (arguments.xl.condition_given().unwrap_or_default(), arguments.xl.condition_given().is_some()),
    ];
    for (flag, is_given) in given {
        ensure!(!is_given, "{flag} is for models that paint from a text, and {model} paints without one");
    }
    Ok(())
}

fn load(
    arguments: &GenerateArguments,
    repository: &Repository,
    progress: &Progress,
) -> Result<UnconditionalPipeline> {
    let device = device::open(arguments.device)?;
    let dtype = device::dtype(arguments.dtype, &device);
    let options = LoadOptions { dtype, device, variant: arguments.variant.clone() };
    let _shown = progress.activity(format!("loading {}", repository.name()));
    let mut pipeline = UnconditionalPipeline::load(repository, &options)?;
    if let Some((class_name, overrides)) = arguments.scheduler.as_deref().and_then(scheduler_names::resolve) {
        pipeline.set_scheduler(class_name, &overrides)?;
    }
    Ok(pipeline)
}

fn paint(
    arguments: &GenerateArguments,
    pipeline: &mut UnconditionalPipeline,
    seed: u64,
    what: &str,
    unsaid: &mut Option<String>,
    progress: &Progress,
) -> Result<RgbImage> {
    let labels = arguments.class_label.map(|label| Tensor::new(&[label], &pipeline.device));
    let steps = arguments.steps.unwrap_or(pipeline.default_steps());
    let request = Unconditional {
        schedule: Some(Schedule::Steps(steps)),
        eta: arguments.eta,
        class_labels: labels.transpose()?,
        width: arguments.width,
        height: arguments.height,
        ..Default::default()
    };
    let bar = progress.steps(format!("{what}painting"), steps);
    let pictures = pipeline.generate(&request, &mut seeded_generators(seed, 1), &mut |step| {
        // Told when the work has begun, so that an error stands alone.
        if let Some(line) = unsaid.take() {
            progress.suspend(|| terminal::note(&line));
        }
        bar.set_done(step.index + 1, step.total);
        Ok(ControlFlow::Continue(()))
    })?;
    pictures.into_iter().next().context("the pipeline has painted nothing")
}

fn describe(
    arguments: &GenerateArguments,
    pipeline: &UnconditionalPipeline,
    model: &str,
    seed: u64,
    picture: &RgbImage,
) -> Parameters {
    let mut parameters = Parameters::default();
    let (sampler, schedule_type) = scheduler_names::web_ui_names(&pipeline.scheduler().config());
    parameters.set("Steps", arguments.steps.unwrap_or(pipeline.default_steps()));
    parameters.set("Sampler", sampler);
    if let Some(schedule_type) = schedule_type {
        parameters.set("Schedule type", schedule_type);
    }
    parameters.set("Seed", seed);
    parameters.set("Size", format!("{}x{}", picture.width(), picture.height()));
    parameters.set("Model", model);
    if let Some(label) = arguments.class_label {
        parameters.set("Class label", label);
    }
    if arguments.eta != 0.0 {
        parameters.set("Eta", arguments.eta);
    }
    parameters.set("Version", concat!("diffuse ", env!("CARGO_PKG_VERSION")));
    parameters
}
