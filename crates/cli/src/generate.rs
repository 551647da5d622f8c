use std::hash::{BuildHasher, RandomState};
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_diffusers_loaders::lora::UnmatchedKeys;
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::{
    ImageToImage, InitImage, PromptEmbeds, Schedule, StableDiffusionPipeline, StepEnd, TextToImage,
    first_step, load_picture, seeded_generators,
};
use image::RgbImage;

use crate::arguments::GenerateArguments;
use crate::output::{self, Outputs, utf8_name};
use crate::parameters::Parameters;
use crate::progress::Progress;
use crate::scaled_file::ScaledFile;
use crate::{device, embedded, embeddings, loras, prompts, scheduler_names, terminal};

/// The components that only check pictures.
const SAFETY_CHECKER: &[&str] = &["safety_checker", "feature_extractor"];
/// More files than anyone means to write to one folder at once.
const MAX_PICTURES: usize = 100_000;

/// `diffuse generate`.
pub(crate) fn run(arguments: &GenerateArguments, progress: &Progress) -> Result<()> {
    check_numbers(arguments)?;
    let prompts = prompts::read(arguments)?;
    let count = prompts.len().saturating_mul(arguments.num_images);
    ensure!(
        count <= MAX_PICTURES,
        "these would be {count} pictures; at most {MAX_PICTURES} are made at once"
    );
    let outputs = Outputs::new(&arguments.output, count)?;
    output::finish_writing_on_interrupt();

    // Small files first: what is wrong with them is told before a model is loaded.
    let init_image = arguments.init_image.as_deref().map(load_picture).transpose()?;
    let embeddings = embeddings::read(&arguments.embeddings)?;
    let loras = loras::read(&arguments.lora)?;
    let (model, repository) = open_model(arguments, progress)?;
    let mut pipeline = load_pipeline(arguments, &repository, progress)?;
    pipeline.add_textual_inversions(&embeddings)?;
    apply_loras(arguments, &mut pipeline, &loras, progress)?;
    let seed = arguments.seed.unwrap_or_else(random_seed);
    let notes = repository.single_file_model().map(|model| model.notes.as_slice()).unwrap_or_default();
    // Only what was assumed matters here, not what training left in the file.
    let mut unsaid: Vec<String> =
        notes.iter().filter(|note| !note.starts_with("left out: ")).cloned().collect();
    if arguments.seed.is_none() {
        unsaid.push(format!("seed: {seed}"));
    }
    let mut painter =
        Painter { arguments, pipeline, init_image, model, loras, progress, unsaid, encoded: None };
    for index in 0..count {
        let seed = seed.wrapping_add(index as u64);
        let prompt = &prompts[index / arguments.num_images];
        let what = if count == 1 { String::new() } else { format!("picture {} of {count} ", index + 1) };
        let picture = painter.paint(prompt, seed, &what)?;
        let parameters = painter.describe(prompt, seed, &picture);
        let path = outputs.write(index, &picture, &parameters.to_string())?;
        progress.suspend(|| terminal::note(&format!("wrote {}", path.display())));
    }
    Ok(())
}

/// What no model could do anything with, before one is loaded.
fn check_numbers(arguments: &GenerateArguments) -> Result<()> {
    let finite = [
        ("--guidance-scale", arguments.guidance_scale.unwrap_or_default()),
        ("--guidance-rescale", arguments.guidance_rescale),
        ("--eta", arguments.eta),
        ("--strength", arguments.strength),
    ];
    for (flag, value) in finite {
        ensure!(value.is_finite(), "{flag} is {value}, expected a finite number");
    }
    let rescale = arguments.guidance_rescale;
    ensure!((0.0..=1.0).contains(&rescale), "--guidance-rescale is {rescale}, expected 0 to 1");
    ensure!(arguments.eta >= 0.0, "--eta is {}, expected 0 or more", arguments.eta);
    let strength = arguments.strength;
    ensure!((0.0..=1.0).contains(&strength), "--strength is {strength}, expected 0 to 1");
    let at_least_one = [
        ("--steps", Some(arguments.steps)),
        ("--num-images", Some(arguments.num_images)),
        ("--width", arguments.width),
        ("--height", arguments.height),
    ];
    for (flag, value) in at_least_one {
        ensure!(value != Some(0), "{flag} is 0, expected 1 or more");
    }
    let steps = arguments.steps;
    ensure!(
        steps_taken(arguments).is_some(),
        "--strength is {strength}, which of {steps} steps leaves none; expected at least {}",
        1.0 / steps as f64
    );
    Ok(())
}

/// How many of the steps are taken: with an image to begin with, the last ones. None where none is left.
fn steps_taken(arguments: &GenerateArguments) -> Option<usize> {
    match arguments.init_image {
        Some(_) => first_step(arguments.steps, arguments.strength).map(|first| arguments.steps - first),
        None => Some(arguments.steps),
    }
}

/// The model's name for people, and its files.
fn open_model(arguments: &GenerateArguments, progress: &Progress) -> Result<(String, Repository)> {
    let Some(model) = &arguments.model else {
        return Ok((embedded::NAME.to_string(), embedded::model()));
    };
    let path = Path::new(model);
    let text = utf8_name("--model", path)?;
    ensure!(
        !text.is_empty(),
        "--model is empty; expected a folder, a checkpoint file or the id of a model on the hub"
    );
    if path.is_file() {
        return open_single_file(arguments, path);
    }
    if let Some(flag) = arguments.single_file.given() {
        bail!(
            "{flag} is for a checkpoint in one file, but {text} is a folder or an id, whose configs say it"
        );
    }
    let name = path.file_name().map_or(text.to_string(), |name| name.to_string_lossy().into_owned());
    let mut downloads = progress.downloads();
    let left_out = if arguments.no_safety_checker { SAFETY_CHECKER } else { &[] };
    let repository =
        Repository::open_without(path, arguments.variant.as_deref(), left_out, &mut |download| {
            let what = format!("{} ({} of {})", download.file, download.number, download.files);
            downloads.show(what, download.received, download.size);
        })?;
    Ok((name, repository))
}

/// A checkpoint in one file. Its name is without the ending, as web UIs write it.
fn open_single_file(arguments: &GenerateArguments, path: &Path) -> Result<(String, Repository)> {
    let repository = Repository::single_file(path, &arguments.single_file.read_options())?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok((name, repository))
}

fn load_pipeline(
    arguments: &GenerateArguments,
    repository: &Repository,
    progress: &Progress,
) -> Result<StableDiffusionPipeline> {
    let device = device::open(arguments.device)?;
    let dtype = device::dtype(arguments.dtype, &device);
    let options = LoadOptions { dtype, device, variant: arguments.variant.clone() };
    let _shown = progress.activity(format!("loading {}", repository.name()));
    match arguments.scheduler.as_deref().and_then(scheduler_names::resolve) {
        None => Ok(StableDiffusionPipeline::load(repository, &options)?),
        Some((class_name, overrides)) => {
            Ok(StableDiffusionPipeline::load_with_scheduler(repository, &options, class_name, &overrides)?)
        }
    }
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

/// Paints one picture after the other: on a CPU that is as fast as several together, and takes one picture's memory.
struct Painter<'a> {
    arguments: &'a GenerateArguments,
    pipeline: StableDiffusionPipeline,
    init_image: Option<RgbImage>,
    /// For the pictures' parameters.
    model: String,
    loras: Vec<ScaledFile>,
    progress: &'a Progress,
    /// What was assumed of the model, and a random seed: told when the work has begun, so that an error stands alone.
    unsaid: Vec<String>,
    /// The last prompt and what it encodes to: the next picture often has the same.
    encoded: Option<(String, PromptEmbeds)>,
}

impl Painter<'_> {
    fn paint(&mut self, prompt: &str, seed: u64, what: &str) -> Result<RgbImage> {
        let prompt_embeds = self.encode(prompt)?;
        let Self { arguments, pipeline, init_image, progress, unsaid, .. } = self;
        let request = TextToImage { prompt_embeds: Some(prompt_embeds), ..request(arguments) };
        let mut noise = seeded_generators(seed, 1);
        let steps = steps_taken(arguments).unwrap_or(arguments.steps);
        let mut bar = Some(progress.steps(format!("{what}painting"), steps));
        let mut decoding = None;
        let mut on_step_end = |step: StepEnd| {
            for line in unsaid.drain(..) {
                progress.suspend(|| terminal::note(&line));
            }
            let done = step.index + 1;
            if done == step.total {
                bar = None;
                decoding = Some(progress.activity(format!("{what}decoding")));
            } else if let Some(bar) = &bar {
                bar.set_done(done, step.total);
            }
            Ok(ControlFlow::Continue(()))
        };
        let output = match init_image {
            Some(picture) => {
                let image = InitImage::Pictures(vec![picture.clone()]);
                let request = ImageToImage { text: request, image, strength: arguments.strength };
                pipeline.image_to_image(&request, &mut noise, &mut on_step_end)?
            }
            None => pipeline.generate(&request, &mut noise, &mut on_step_end)?,
        };
        drop((bar, decoding));
        if output.nsfw_content_detected.is_some_and(|flags| flags.contains(&true)) {
            let which = if what.is_empty() { "the picture " } else { what };
            let line = format!(
                "{which}is black: the safety checker found in it what is not to be shown; another prompt or seed paints another \
                 picture, --no-safety-checker leaves it unchecked"
            );
            progress.suspend(|| terminal::note(&line));
        }
        output.images.into_iter().next().context("the pipeline has painted nothing")
    }

    fn encode(&mut self, prompt: &str) -> Result<PromptEmbeds> {
        if let Some((last, embeds)) = &self.encoded
            && last == prompt
        {
            return Ok(embeds.clone());
        }
        let arguments = self.arguments;
        let request = TextToImage {
            prompts: vec![prompt.to_string()],
            negative_prompts: arguments.negative_prompt.iter().cloned().collect(),
            ..request(arguments)
        };
        let embeds = self.pipeline.encode_prompt(&request)?;
        self.encoded = Some((prompt.to_string(), embeds.clone()));
        Ok(embeds)
    }

    fn describe(&self, prompt: &str, seed: u64, picture: &RgbImage) -> Parameters {
        let arguments = self.arguments;
        let mut parameters = Parameters {
            prompt: self
                .loras
                .iter()
                .fold(prompt.to_string(), |prompt, lora| prompt + " " + &loras::tag(lora)),
            negative_prompt: arguments.negative_prompt.clone().unwrap_or_default(),
            settings: Vec::new(),
        };
        let (sampler, schedule_type) = scheduler_names::web_ui_names(&self.pipeline.scheduler().config());
        parameters.set("Steps", arguments.steps);
        parameters.set("Sampler", sampler);
        if let Some(schedule_type) = schedule_type {
            parameters.set("Schedule type", schedule_type);
        }
        parameters.set("CFG scale", self.pipeline.guidance(&request(arguments)).scale);
        parameters.set("Seed", seed);
        parameters.set("Size", format!("{}x{}", picture.width(), picture.height()));
        parameters.set("Model", &self.model);
        if arguments.init_image.is_some() {
            parameters.set("Denoising strength", arguments.strength);
        }
        if let Some(clip_skip) = arguments.clip_skip {
            // Web UIs count the layer that is used from the end, from 1; diffusers the layers that are left out.
            parameters.set("Clip skip", clip_skip.saturating_add(1));
        }
        if arguments.guidance_rescale != 0.0 {
            parameters.set("Guidance rescale", arguments.guidance_rescale);
        }
        if arguments.eta != 0.0 {
            parameters.set("Eta", arguments.eta);
        }
        parameters.set("Version", concat!("diffuse ", env!("CARGO_PKG_VERSION")));
        parameters
    }
}

/// What is asked of every picture, whatever its prompt.
fn request(arguments: &GenerateArguments) -> TextToImage {
    TextToImage {
        schedule: Schedule::Steps(arguments.steps),
        guidance_scale: arguments.guidance_scale,
        guidance_rescale: arguments.guidance_rescale,
        eta: arguments.eta,
        clip_skip: arguments.clip_skip,
        width: arguments.width,
        height: arguments.height,
        ..Default::default()
    }
}

/// A seed that is short enough to type.
fn random_seed() -> u64 {
    // The standard library seeds each hasher at random.
    RandomState::new().hash_one(()) & u64::from(u32::MAX)
}
