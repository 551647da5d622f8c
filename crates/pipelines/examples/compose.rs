//! A pipeline of one's own from the stages: text to image with the guidance fading out, so that the last steps follow the
//! picture rather than the prompt.
//!
//! `cargo run --release -p candle-diffusers-pipelines --example compose -- FOLDER "a prompt" out.png`

use candle_core::Tensor;
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::{
    StableDiffusionPipeline, TextToImage, classifier_free_guidance, decode_latents, denormalize,
    prepare_latents, to_pictures,
};
use candle_diffusers_schedulers::{StepOptions, TorchGenerator, scheduler_from_other};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, prompt, output] = &arguments[..] else {
        return Err("usage: compose FOLDER PROMPT OUTPUT.png".into());
    };
    let models = StableDiffusionPipeline::load(&Repository::folder(folder)?, &LoadOptions::default())?;
    let device = models.device.clone();
    let mut generator = TorchGenerator::new(0);

    // Text: first what the picture should not be, then what it should.
    let request = TextToImage { prompts: vec![prompt.clone()], ..Default::default() };
    let text = models.encode_prompt(&request)?.negative_then_prompt()?;

    // Noise, for a scheduler made from the folder's own.
    let mut scheduler = scheduler_from_other("DPMSolverMultistepScheduler", &models.scheduler().config())?;
    scheduler.set_timesteps(20)?;
    let (height, width) = models.sample_size.ok_or("the model does not say its size")?;
    let shape = [1, models.unet.config().in_channels, height, width];
    let mut latents = prepare_latents(shape, scheduler.as_ref(), &mut generator, models.dtype, &device)?;

    // The loop.
    let timesteps = scheduler.timesteps().to_vec();
    for (i, timestep) in timesteps.iter().enumerate() {
        let input = scheduler.scale_model_input(&Tensor::cat(&[&latents, &latents], 0)?, *timestep)?;
        let prediction = models.unet.forward(&input, &[*timestep], &text, Default::default())?;
        let guidance_scale = 1.0 + 5.0 * (1.0 - i as f64 / timesteps.len() as f64);
        let guided = classifier_free_guidance(&prediction, guidance_scale, 0.0)?;
        let options = StepOptions::default();
        latents = scheduler.step(&guided, *timestep, &latents, &mut generator, &options)?.prev_sample;
        eprintln!("step {} of {}", i + 1, timesteps.len());
    }

    // The picture.
    let image = denormalize(&decode_latents(&models.vae, &latents)?)?;
    to_pictures(&image)?[0].save(output)?;
    Ok(())
}
