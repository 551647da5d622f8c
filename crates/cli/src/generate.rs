use std::hash::{BuildHasher, RandomState};

use anyhow::{Result, ensure};
use candle_diffusers_loaders::lora::UnmatchedKeys;
use candle_diffusers_loaders::{Repository, TextualInversion};
use candle_diffusers_pipelines::{SharedParts, StableDiffusionPipeline};
use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::arguments::{Arguments, GenerateArguments};
use crate::control::Controls;
use crate::models::{self, NamedModel};
use crate::output::{self, Outputs};
use crate::painter::{Brush, Description, Job, Painter};
use crate::progress::Progress;
use crate::scaled_file::ScaledFile;
use crate::start::Start;
use crate::{embeddings, grid, loras, prompts, strength, unconditional};

/// More files than anyone means to write to one folder at once.
const MAX_PICTURES: usize = 100_000;

/// `diffuse generate`.
pub(crate) fn run(arguments: &GenerateArguments, progress: &Progress) -> Result<()> {
    check_numbers(arguments)?;
    let prompts = prompts::read(arguments)?;
    // A model that needs no prompt paints as if there were one.
    let count = prompts.len().max(1).saturating_mul(arguments.num_images);
    ensure!(
        count <= MAX_PICTURES,
        "these would be {count} pictures; at most {MAX_PICTURES} are made at once"
    );
    let mut outputs = match arguments.grid {
        true => Outputs::grid(&arguments.output, count, grid::columns(prompts.len(), arguments.num_images))?,
        false => Outputs::new(&arguments.output, count)?,
    };
    output::finish_writing_on_interrupt();

    // Small files first: what is wrong with them is told before a model is loaded.
    let start = Start::read(arguments)?;
    let controls = Controls::read(arguments)?;
    let embeddings = embeddings::read(&arguments.embeddings)?;
    let loras = loras::read(&arguments.lora)?;
    let model = models::open_model(arguments, progress)?;
    let seed = arguments.seed.unwrap_or_else(random_seed);
    if unconditional::is_unconditional(&model.repository) {
        return unconditional::run(arguments, &mut outputs, &model, seed, progress);
    }
    check_is_for_text(arguments, &model);
    arguments.xl.check_model(&model.repository, arguments.init_image.is_some())?;
    let start = start.for_task(arguments, &model)?;
    let refiner = models::open_refiner(arguments, &model.repository, progress)?;
    let control_nets = controls.open(arguments, &model.repository, progress)?;
    let strength = strength::strength(arguments, &start, &model, refiner.as_ref())?;

    let mut pipeline = models::load_pipeline(arguments, &model.repository, SharedParts::default(), progress)?;
    pipeline.add_textual_inversions(&embeddings)?;
    apply_loras(arguments, &mut pipeline, &loras, progress)?;
    let refiner_name = refiner.as_ref().map(|refiner| refiner.name.clone());
    let mut description = Description::new(arguments, &pipeline, model.name.clone(), refiner_name, loras);
    description.controls = controls.describe(&control_nets);
    let controls = controls.load(arguments, &control_nets, &pipeline, progress)?;
    let mut unsaid = assumptions(&model.repository);
    if arguments.seed.is_none() {
        unsaid.push(format!("seed: {seed}"));
    }
    unsaid.extend(start.warning(arguments));
    let mut painter = Painter {
        arguments,
        start,
        strength,
        controls,
        progress,
        outputs: &mut outputs,
        unsaid,
        description,
    };
    let jobs = (0..count).map(|index| Job {
        index,
        prompt: prompts[index / arguments.num_images].clone(),
        seed: seed.wrapping_add(index as u64),
        what: if count == 1 { String::new() } else { format!("picture {} of {count} ", index + 1) },
    });
    let mut base = Brush::new(pipeline);
    painter.check_size(&base)?;
    match &refiner {
        None => jobs.into_iter().try_for_each(|job| {
            let draft = painter.begin(&mut base, &job)?;
            painter.write(&base, &job, &draft)
        }),
        Some(refiner) => {
            let load = |shared| load_refiner(arguments, &model, refiner, shared, &embeddings, progress);
            paint_refined(&mut painter, jobs, base, load)
        }
    }
}

/// Begins each picture with the base, and finishes it with the refiner. To save memory all are begun before the refiner is loaded, and
/// the base is gone by then.
fn paint_refined(
    painter: &mut Painter,
    jobs: impl Iterator<Item = Job>,
    mut base: Brush,
    load_refiner: impl FnOnce(SharedParts) -> Result<Brush>,
) -> Result<()> {
    let shared = base.pipeline.shared_parts();
    if !painter.arguments.xl.low_memory {
        let mut refiner = load_refiner(shared)?;
        for job in jobs {
            let begun = painter.begin(&mut base, &job)?;
            let refined = painter.refine(&mut refiner, &job, begun)?;
            painter.write(&refiner, &job, &refined)?;
        }
        return Ok(());
    }
    let begun = jobs.map(|job| Ok((painter.begin(&mut base, &job)?, job))).collect::<Result<Vec<_>>>()?;
    drop(base);
    let mut refiner = load_refiner(shared)?;
    for (begun, job) in begun {
        let refined = painter.refine(&mut refiner, &job, begun)?;
        painter.write(&refiner, &job, &refined)?;
    }
    Ok(())
}

/// The refiner, with those of the base's models that are also its own.
fn load_refiner(
    arguments: &GenerateArguments,
    base: &NamedModel,
    refiner: &NamedModel,
    shared: SharedParts,
    embeddings: &[TextualInversion],
    progress: &Progress,
) -> Result<Brush> {
    let variant = arguments.variant.as_deref();
    let shared = shared.that_are_the_same(&base.repository, &refiner.repository, variant)?;
    let has_embeddings = shared.text_encoder_2.is_some();
    let mut pipeline = models::load_pipeline(arguments, &refiner.repository, shared, progress)?;
    if !has_embeddings {
        pipeline.add_textual_inversions(embeddings)?;
    }
    Ok(Brush::new(pipeline))
}

/// What was assumed of a single file. Only that matters here, not what training left in the file.
fn assumptions(repository: &Repository) -> Vec<String> {
    let notes = repository.single_file_model().map(|model| model.notes.as_slice()).unwrap_or_default();
    notes.iter().filter(|note| !note.starts_with("left out: ")).cloned().collect()
}

/// What no model could do anything with, before one is loaded.
fn check_numbers(arguments: &GenerateArguments) -> Result<()> {
    let finite = [
        ("--guidance-scale", arguments.guidance_scale.unwrap_or_default()),
        ("--guidance-rescale", arguments.guidance_rescale),
        ("--eta", arguments.eta),
        ("--strength", arguments.strength.unwrap_or_default()),
        ("--image-guidance-scale", arguments.image_guidance_scale.unwrap_or_default()),
        ("--mask-blur", arguments.mask_blur.into()),
    ];
    for (flag, value) in finite {
        ensure!(value.is_finite(), "{flag} is {value}, expected a finite number");
    }
    let rescale = arguments.guidance_rescale;
    ensure!((0.0..=1.0).contains(&rescale), "--guidance-rescale is {rescale}, expected 0 to 1");
    ensure!(arguments.eta >= 0.0, "--eta is {}, expected 0 or more", arguments.eta);
    if let Some(strength) = arguments.strength {
        ensure!((0.0..=1.0).contains(&strength), "--strength is {strength}, expected 0 to 1");
    }
    check_inpainting(arguments)?;
    let at_least_one = [
        ("--steps", arguments.steps),
        ("--num-images", Some(arguments.num_images)),
        ("--width", arguments.width),
        ("--height", arguments.height),
    ];
    for (flag, value) in at_least_one {
        ensure!(value != Some(0), "{flag} is 0, expected 1 or more");
    }
    if let Some(strength) = arguments.strength {
        strength::check(arguments, strength)?;
    }
    arguments.xl.check_numbers()
}

fn check_inpainting(arguments: &GenerateArguments) -> Result<()> {
    let mask_blur = arguments.mask_blur;
    ensure!(mask_blur >= 0.0, "--mask-blur is {mask_blur}, expected 0 or more pixels");
    if arguments.is_inpainting() {
        ensure!(
            arguments.xl.refiner.is_none() || arguments.padding_mask_crop.is_none(),
            "--padding-mask-crop does not go with --refiner, which would see another part of the picture"
        );
        return Ok(());
    }
    let flags = [
        ("--mask-blur", mask_blur > 0.0),
        ("--padding-mask-crop", arguments.padding_mask_crop.is_some()),
        ("--keep-unmasked", arguments.keep_unmasked),
        ("--no-keep-unmasked", arguments.no_keep_unmasked),
    ];
    for (flag, is_given) in flags {
        ensure!(!is_given, "{flag} is for inpainting; give --mask or --outpaint too");
    }
    Ok(())
}

/// Ends the program as for any mistake of the command line where a model that paints from a text has none: only the model shows it.
fn check_is_for_text(arguments: &GenerateArguments, model: &NamedModel) {
    let model = &model.name;
    let problem = if !arguments.has_prompt() {
        format!("{model} paints from a text: a PROMPT, --prompt or --prompts-file is missing")
    } else if arguments.class_label.is_some() {
        format!("--class-label is for models that paint a class, and {model} paints from a text")
    } else {
        return;
    };
    Arguments::command().error(ErrorKind::MissingRequiredArgument, problem).exit()
}

fn apply_loras(
    arguments: &GenerateArguments,
    pipeline: &mut StableDiffusionPipeline,
    loras: &[ScaledFile],
    progress: &Progress,
) -> Result<()> {
    if loras.is_empty() {
        return Ok(());
    }
    let _shown = progress.activity("applying LoRA");
    let unmatched = if arguments.allow_unmatched { UnmatchedKeys::Skip } else { UnmatchedKeys::Refuse };
    loras::apply(pipeline, loras, unmatched)
}

/// A seed that is short enough to type.
fn random_seed() -> u64 {
    // The standard library seeds each hasher at random.
    RandomState::new().hash_one(()) & u64::from(u32::MAX)
}
