//! A pipeline of one's own from the stages: text to image by two schedulers, DDIM while the picture takes shape and DPM-Solver++ for
//! the rest, with guidance that fades out, so that the last steps follow the picture rather than the prompt.
//!
//! `cargo run --release -p candle-diffusers-pipelines --example compose -- FOLDER "a prompt" out.png`

use candle_core::{DType, Tensor};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::{
    StableDiffusionPipeline, TextToImage, classifier_free_guidance, decode_latents, denormalize,
    prepare_latents, to_pictures,
};
use candle_diffusers_schedulers::{Scheduler, StepOptions, TorchGenerator, scheduler_from_other};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const STEPS: usize = 20;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, prompt, output] = &arguments[..] else {
        return Err("usage: compose FOLDER PROMPT OUTPUT.png".into());
    };
    let models = StableDiffusionPipeline::load(&Repository::folder(folder)?, &LoadOptions::default())?;
    let mut generator = TorchGenerator::new(0);

    // Text: first what the picture should not be, then what it should.
    let request = TextToImage { prompts: vec![prompt.clone()], ..Default::default() };
    let text = models.encode_prompt(&request)?.negative_then_prompt()?;

    // Two schedulers, made from the folder's own. Both take latents as the noise schedule mixes them, so that one can go on where
    // the other has stopped (Euler's are scaled otherwise).
    let own = models.scheduler().config();
    let mut shaping = scheduler_from_other("DDIMScheduler", &own)?;
    let mut finishing = scheduler_from_other("DPMSolverMultistepScheduler", &own)?;
    shaping.set_timesteps(STEPS)?;
    finishing.set_timesteps(STEPS)?;
    let middle = shaping.timesteps()[STEPS / 2];
    let rest = finishing.timesteps().iter().filter(|timestep| **timestep >= middle).count();
    finishing.set_begin_index(rest);

    // Noise.
    let (height, width) = models.sample_size.ok_or("the model does not say its size")?;
    let shape = [1, models.unet.config().in_channels, height, width];
    let start = prepare_latents(shape, shaping.as_ref(), &mut generator, models.dtype, &models.device)?;

    // The loops. What a step leaves, the callback sees, and may change.
    let mut on_step = |done: usize, latents: &mut Tensor| -> Result<()> {
        let size = latents.sqr()?.mean_all()?.sqrt()?.to_dtype(DType::F32)?.to_scalar::<f32>()?;
        eprintln!("step {done}: latents of size {size:.3}");
        Ok(())
    };
    let mut painter = Painter { models: &models, text, generator, done: 0, on_step: &mut on_step };
    let shaped = painter.denoise(shaping.as_mut(), 0..STEPS / 2, start)?;
    let all = finishing.timesteps().len();
    let latents = painter.denoise(finishing.as_mut(), rest..all, shaped)?;

    // The picture.
    let image = denormalize(&decode_latents(&models.vae, &latents)?)?;
    to_pictures(&image)?[0].save(output)?;
    Ok(())
}

struct Painter<'a> {
    models: &'a StableDiffusionPipeline,
    text: Tensor,
    generator: TorchGenerator,
    done: usize,
    on_step: &'a mut dyn FnMut(usize, &mut Tensor) -> Result<()>,
}

impl Painter<'_> {
    /// Takes these of the scheduler's steps.
    fn denoise(
        &mut self,
        scheduler: &mut dyn Scheduler,
        steps: std::ops::Range<usize>,
        mut latents: Tensor,
    ) -> Result<Tensor> {
        let timesteps = scheduler.timesteps()[steps].to_vec();
        for timestep in timesteps {
            let input = scheduler.scale_model_input(&Tensor::cat(&[&latents, &latents], 0)?, timestep)?;
            let prediction = self.models.unet.forward(&input, &[timestep], &self.text, Default::default())?;
            let guidance_scale = 1.0 + 5.0 * (1.0 - self.done as f64 / STEPS as f64);
            let guided = classifier_free_guidance(&prediction, guidance_scale, 0.0)?;
            let options = StepOptions::default();
            latents = scheduler.step(&guided, timestep, &latents, &mut self.generator, &options)?.prev_sample;
            self.done += 1;
            (self.on_step)(self.done, &mut latents)?;
        }
        Ok(latents)
    }
}
