//! How `diffuse generate` paints one picture: begun by a model, perhaps refined by a second one, decoded, described and written.

use std::ops::ControlFlow;

use anyhow::{Context, Result};
use candle_core::Tensor;
use candle_diffusers_pipelines::{
    Control, PromptEmbeds, Schedule, StableDiffusionPipeline, StepCallback, StepEnd, TextToImage,
    seeded_generators,
};
use candle_diffusers_schedulers::TorchGenerator;
use image::RgbImage;

use crate::arguments::GenerateArguments;
use crate::output::Outputs;
use crate::parameters::Parameters;
use crate::progress::Progress;
use crate::scaled_file::ScaledFile;
use crate::start::Start;
use crate::{control, loras, scheduler_names, terminal};

/// A picture that is asked for.
pub(crate) struct Job {
    pub(crate) index: usize,
    pub(crate) prompt: String,
    pub(crate) seed: u64,
    /// Which of several it is, before what is shown of it.
    pub(crate) what: String,
}

/// A picture on its way.
pub(crate) struct Draft {
    latents: Tensor,
    /// The generator as its last step has left it.
    noise: Vec<TorchGenerator>,
}

/// A model, and what the last prompt encodes to: the next picture often has the same.
pub(crate) struct Brush {
    pub(crate) pipeline: StableDiffusionPipeline,
    encoded: Option<(String, PromptEmbeds)>,
}

impl Brush {
    pub(crate) fn new(pipeline: StableDiffusionPipeline) -> Self {
        Self { pipeline, encoded: None }
    }

    fn encode(&mut self, request: TextToImage, prompt: &str) -> Result<PromptEmbeds> {
        if let Some((last, embeds)) = &self.encoded
            && last == prompt
        {
            return Ok(embeds.clone());
        }
        let embeds =
            self.pipeline.encode_prompt(&TextToImage { prompts: vec![prompt.to_string()], ..request })?;
        self.encoded = Some((prompt.to_string(), embeds.clone()));
        Ok(embeds)
    }
}

/// Paints one picture after the other: on a CPU that is as fast as several together, and takes one picture's memory.
pub(crate) struct Painter<'a> {
    pub(crate) arguments: &'a GenerateArguments,
    pub(crate) start: Start,
    /// How much of the schedule is gone through.
    pub(crate) strength: f64,
    pub(crate) controls: Vec<Control>,
    pub(crate) progress: &'a Progress,
    pub(crate) outputs: &'a mut Outputs,
    /// What was assumed of the model, and a random seed: told when the work has begun, so that an error stands alone.
    pub(crate) unsaid: Vec<String>,
    /// What every picture's parameters end with.
    pub(crate) description: Description,
}

/// What is told of every picture.
pub(crate) struct Description {
    pub(crate) model: String,
    pub(crate) refiner: Option<String>,
    pub(crate) loras: Vec<ScaledFile>,
    pub(crate) controls: Vec<String>,
    sampler: String,
    schedule_type: Option<String>,
    guidance_scale: f64,
}

impl Description {
    pub(crate) fn new(
        arguments: &GenerateArguments,
        pipeline: &StableDiffusionPipeline,
        model: String,
        refiner: Option<String>,
        loras: Vec<ScaledFile>,
    ) -> Self {
        let (sampler, schedule_type) = scheduler_names::web_ui_names(&pipeline.scheduler().config());
        Self {
            model,
            refiner,
            loras,
            controls: Vec::new(),
            sampler: sampler.to_string(),
            schedule_type: schedule_type.map(|name| name.to_string()),
            guidance_scale: pipeline.guidance(&request(arguments)).scale,
        }
    }
}

impl Painter<'_> {
    /// Whether the pictures can be written in the size that they will have.
    pub(crate) fn check_size(&self, base: &Brush) -> Result<()> {
        let text = TextToImage { controls: self.controls.clone(), ..request(self.arguments) };
        let (width, height) = self.start.size(self.arguments, &base.pipeline, &text)?;
        self.outputs.check_size(width, height)
    }

    /// All steps of the only model, or those of a base before its refiner.
    pub(crate) fn begin(&mut self, base: &mut Brush, job: &Job) -> Result<Draft> {
        let second_texts =
            |text: &Option<String>| text.iter().filter(|text| !text.is_empty()).cloned().collect();
        let told = TextToImage {
            prompts_2: second_texts(&self.arguments.xl.prompt_2),
            negative_prompts_2: second_texts(&self.arguments.xl.negative_prompt_2),
            ..told(self.arguments)
        };
        let text = TextToImage {
            prompt_embeds: Some(base.encode(told, &job.prompt)?),
            denoising_end: self.arguments.xl.refiner.as_ref().map(|_| self.arguments.xl.denoising_split),
            controls: self.controls.clone(),
            guess_mode: self.arguments.control.guess_mode,
            ..request(self.arguments)
        };
        let mut noise = seeded_generators(job.seed, 1);
        let (start, strength, arguments) = (&self.start, self.strength, self.arguments);
        let show = Shown { progress: self.progress, unsaid: &mut self.unsaid, arguments };
        let latents = show.steps(&format!("{}painting", job.what), |on_step_end| {
            start.latents(arguments, &mut base.pipeline, text, strength, &mut noise, on_step_end)
        })?;
        Ok(Draft { latents, noise })
    }

    /// The steps that a base has left to its refiner, which reads the prompt with what is its second text encoder in the base.
    pub(crate) fn refine(&mut self, refiner: &mut Brush, job: &Job, draft: Draft) -> Result<Draft> {
        let Draft { latents, mut noise } = draft;
        let (start, arguments) = (&self.start, self.arguments);
        let text = TextToImage {
            prompt_embeds: Some(refiner.encode(told(arguments), &job.prompt)?),
            // The latents say it.
            width: None,
            height: None,
            ..request(arguments)
        };
        let show = Shown { progress: self.progress, unsaid: &mut self.unsaid, arguments };
        let latents = show.steps(&format!("{}refining", job.what), |on_step_end| {
            start.refined(arguments, &mut refiner.pipeline, text, latents, &mut noise, on_step_end)
        })?;
        Ok(Draft { latents, noise })
    }

    /// Decodes what the last brush has left, and writes it.
    pub(crate) fn write(&mut self, last: &Brush, job: &Job, draft: &Draft) -> Result<()> {
        let decoding = self.progress.activity(format!("{}decoding", job.what));
        // One prompt, whatever it says: only its number matters to what is decoded. Control pictures matter to the size.
        let is_refined = self.arguments.xl.refiner.is_some();
        let text = TextToImage {
            prompts: vec![job.prompt.clone()],
            controls: if is_refined { Vec::new() } else { self.controls.clone() },
            ..request(self.arguments)
        };
        let output = self.start.picture(self.arguments, &last.pipeline, text, &draft.latents)?;
        drop(decoding);
        if output.nsfw_content_detected.is_some_and(|flags| flags.contains(&true)) {
            let which = if job.what.is_empty() { "the picture " } else { &job.what };
            let line = format!(
                "{which}is black: the safety checker found in it what is not to be shown; another prompt or seed paints another \
                 picture, --no-safety-checker leaves it unchecked"
            );
            self.progress.suspend(|| terminal::note(&line));
        }
        let picture = output.images.first().context("the pipeline has painted nothing")?;
        let parameters = self.describe(job, picture);
        if let Some(path) = self.outputs.write(job.index, picture, &parameters.to_string())? {
            self.progress.suspend(|| terminal::note(&format!("wrote {}", path.display())));
        }
        Ok(())
    }

    fn describe(&self, job: &Job, picture: &RgbImage) -> Parameters {
        let Self { arguments, description, .. } = self;
        let mut parameters = Parameters {
            prompt: description
                .loras
                .iter()
                .fold(job.prompt.clone(), |prompt, lora| prompt + " " + &loras::tag(lora)),
            negative_prompt: arguments.negative_prompt.clone().unwrap_or_default(),
            settings: Vec::new(),
        };
        parameters.set("Steps", arguments.text_steps());
        parameters.set("Sampler", &description.sampler);
        if let Some(schedule_type) = &description.schedule_type {
            parameters.set("Schedule type", schedule_type);
        }
        parameters.set("CFG scale", description.guidance_scale);
        parameters.set("Seed", job.seed);
        parameters.set("Size", format!("{}x{}", picture.width(), picture.height()));
        parameters.set("Model", &description.model);
        if let Some(refiner) = &description.refiner {
            parameters.set("Refiner", refiner);
            parameters.set("Refiner switch at", arguments.xl.denoising_split);
        }
        match self.start {
            Start::Noise => {}
            Start::Edited(_) => parameters.set("Image CFG scale", Start::image_guidance_scale(arguments)),
            Start::Picture(_) | Start::Masked(..) => parameters.set("Denoising strength", self.strength),
        }
        control::set_parameters(&description.controls, arguments.control.guess_mode, &mut parameters);
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
        arguments.xl.describe(&mut parameters);
        parameters.set("Version", concat!("diffuse ", env!("CARGO_PKG_VERSION")));
        parameters
    }
}

/// What is shown while steps are taken.
struct Shown<'a> {
    progress: &'a Progress,
    unsaid: &'a mut Vec<String>,
    arguments: &'a GenerateArguments,
}

impl Shown<'_> {
    fn steps(self, what: &str, paint: impl FnOnce(&mut StepCallback) -> Result<Tensor>) -> Result<Tensor> {
        let Self { progress, unsaid, arguments } = self;
        let bar = progress.steps(what.to_string(), arguments.text_steps());
        paint(&mut |step: StepEnd| {
            for line in unsaid.drain(..) {
                progress.suspend(|| terminal::note(&line));
            }
            bar.set_done(step.index + 1, step.total);
            Ok(ControlFlow::Continue(()))
        })
    }
}

/// What is asked of every picture, whatever its prompt.
fn request(arguments: &GenerateArguments) -> TextToImage {
    TextToImage {
        schedule: Schedule::Steps(arguments.text_steps()),
        guidance_scale: arguments.guidance_scale,
        guidance_rescale: arguments.guidance_rescale,
        eta: arguments.eta,
        clip_skip: arguments.clip_skip,
        width: arguments.width,
        height: arguments.height,
        micro_conditions: arguments.xl.micro_conditions(),
        ..Default::default()
    }
}

/// The same, with the texts that every model is told, but for the prompt.
fn told(arguments: &GenerateArguments) -> TextToImage {
    TextToImage {
        negative_prompts: arguments.negative_prompt.iter().cloned().collect(),
        ..request(arguments)
    }
}
