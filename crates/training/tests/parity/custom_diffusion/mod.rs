//! Ten steps of Custom Diffusion, beside the reference's script; then the files that it writes, loaded and painted with.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::{
    Schedule, StableDiffusionPipeline, StepEnd, TextToImage, seeded_generators,
};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::{Fixture, assert_close, values};
use candle_diffusers_training::dataset::Area;
use candle_diffusers_training::recipes::{
    CustomDiffusion, CustomDiffusionDenoising, Denoising, DenoisingOptions, Example, TextualInversionOptions,
    TrainedProjections,
};
use candle_diffusers_training::{
    AdamW, AdamWConfig, LrSchedule, LrScheduleOptions, Parameter, ParameterGroup, Trainer, TrainerOptions,
};
use serde_json::Value;

use crate::ten_steps::check_digest;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/custom_diffusion");
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity/text_to_image/sd1");
const STEPS: usize = 10;

fn models() -> StableDiffusionPipeline {
    StableDiffusionPipeline::load(&Repository::folder(MODEL).unwrap(), &LoadOptions::default()).unwrap()
}

fn word(token: &str, initializer: &str) -> TextualInversionOptions {
    TextualInversionOptions {
        placeholder_token: token.to_string(),
        initializer_token: initializer.to_string(),
        num_vectors: 1,
    }
}

fn attach(
    models: &mut StableDiffusionPipeline,
    words: &[TextualInversionOptions],
    trained: TrainedProjections,
) -> candle_diffusers_training::Result<CustomDiffusion> {
    CustomDiffusion::attach(models, words, trained, &mut TorchGenerator::new(0))
}

fn trainer(case: &Value, parameters: Vec<Parameter>) -> Trainer {
    let groups = vec![ParameterGroup { parameters, learning_rate: 1e-3, weight_decay: 1e-2 }];
    let schedule = LrSchedule::new(
        case["lr_scheduler"].as_str().unwrap().parse().unwrap(),
        LrScheduleOptions {
            num_warmup_steps: case["warmup"].as_u64().unwrap_or(0) as usize,
            num_training_steps: STEPS,
            ..Default::default()
        },
    );
    let options = TrainerOptions {
        gradient_accumulation_steps: case["accumulation"].as_u64().unwrap_or(1) as usize,
        ..Default::default()
    };
    let optimizer = Box::new(AdamW::new(AdamWConfig::default()).unwrap());
    Trainer::new(groups, optimizer, schedule.unwrap(), None, options, TorchGenerator::new(42)).unwrap()
}

fn paint(models: &mut StableDiffusionPipeline, prompt: &str) -> Vec<f64> {
    let request = TextToImage {
        prompts: vec![prompt.to_string()],
        schedule: Schedule::Steps(2),
        width: Some(32),
        height: Some(32),
        ..Default::default()
    };
    let mut go_on = |_: StepEnd<'_>| Ok(ControlFlow::Continue(()));
    values(&models.generate_tensor(&request, &mut seeded_generators(3, 1), &mut go_on).unwrap().images)
}

fn farthest(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn losses_and_weights_are_those_of_the_reference() {
    let fixture = Fixture::open(format!("{FOLDER}/custom_diffusion.safetensors"));
    let settings: Value =
        serde_json::from_slice(&std::fs::read(format!("{FOLDER}/cases.json")).unwrap()).unwrap();
    let captions: Vec<String> = serde_json::from_value(settings["captions"].clone()).unwrap();
    let size = settings["batch"].as_u64().unwrap() as usize;
    for (name, case) in settings["cases"].as_object().unwrap() {
        let mut models = models();
        let tokens = case["tokens"].as_object().unwrap();
        let words: Vec<_> = tokens.iter().map(|(token, from)| word(token, from.as_str().unwrap())).collect();
        let all = case["all"].as_bool().unwrap();
        let trained = if all { TrainedProjections::All } else { TrainedProjections::KeysAndValues };
        let custom = attach(&mut models, &words, trained).unwrap();
        let mut trainer = trainer(case, custom.parameters());
        let options = DenoisingOptions {
            prior_loss_weight: case["prior"].as_f64(),
            train_text_encoder: true,
            ..Default::default()
        };
        let denoising = CustomDiffusionDenoising::new(&models, options).unwrap();
        let [losses, digests] = ["losses", "digests"].map(|what| fixture.values(&format!("{name}/{what}")));
        let (mut batch, mut worst): (usize, f64) = (0, 0.0);
        for (step, loss) in losses.iter().enumerate() {
            let report = trainer
                .step(|generator| {
                    let example = |i: usize| {
                        let index = (batch * size + i) % captions.len();
                        Example {
                            pixel_values: fixture.get("pictures").get(index).unwrap(),
                            caption: captions[index].clone(),
                            original_size: (32, 32),
                            crop_top_left: (0, 0),
                            key: None,
                            others: Vec::new(),
                            area: None,
                        }
                    };
                    let examples: Vec<Example> = (0..size).map(example).collect();
                    batch += 1;
                    denoising.loss(&examples, generator)
                })
                .unwrap();
            worst = worst.max((report.loss / loss - 1.0).abs());
            assert!(worst < 1e-4, "{name}, step {step}: {} and {loss}", report.loss);
            check_digest(&format!("{name}, step {step}"), &trainer, digests[step]);
        }
        assert_eq!([losses.len(), digests.len()], [STEPS; 2]);
        let parameters = &trainer.groups[0].parameters;
        for Parameter { name: parameter, var } in parameters {
            let every = if parameter.starts_with("unet.") { 2 } else { 1 };
            let kept: Vec<f32> = values(var).into_iter().step_by(every).map(|x| x as f32).collect();
            let expected = fixture.get(&format!("{name}/end/{parameter}")).flatten_all().unwrap();
            assert_close(parameter, &Tensor::new(kept, &Device::Cpu).unwrap(), &expected, 1e-5);
        }
        let ends = fixture.names().iter().filter(|key| key.starts_with(&format!("{name}/end/"))).count();
        assert_eq!(ends, parameters.len(), "{name}");
        println!("{name}: {ends} weights, losses within {worst:.1e}");

        let folder = tempfile::tempdir().unwrap();
        custom.save(folder.path()).unwrap();
        let learned = paint(&mut models, "a large <new1>");
        let lora = folder.path().join("lora.safetensors");
        custom.save_as_lora(&lora).unwrap();
        let mut fresh = self::models();
        for token in tokens.keys() {
            let file = folder.path().join(format!("{token}.safetensors"));
            assert_eq!(fresh.load_textual_inversion(&file, None).unwrap(), [token.as_str()]);
        }
        let without = paint(&mut fresh, "a large <new1>");
        fresh.load_lora_weights(&lora, "learned").unwrap();
        let painted = paint(&mut fresh, "a large <new1>");
        let (near, far) = (farthest(&painted, &learned), farthest(&without, &learned));
        assert!(near < 1e-4 && far > 100.0 * near, "{name}: {near} with the LoRA, {far} without");
    }
}

#[test]
fn words_that_do_not_fit_leave_the_models_as_they_were() {
    let mut models = models();
    let before = paint(&mut models, "a star");
    let words = [word("<new1>", "circle"), word("<new2>", "large circle")];
    let error = attach(&mut models, &words, TrainedProjections::All).unwrap_err();
    assert!(error.to_string().contains("initializer_token is \"large circle\""), "{error}");
    assert_eq!(paint(&mut models, "a star"), before);
    attach(&mut models, &words[..1], TrainedProjections::All).unwrap();
    // Variables that have not moved compute what the weights do.
    assert!(farthest(&paint(&mut models, "a star"), &before) < 1e-4);
}

/// A picture with its area and other pictures.
fn example(fixture: &Fixture, area: Option<Area>, others: Vec<Tensor>) -> Example {
    Example {
        pixel_values: fixture.get("pictures").get(0).unwrap(),
        caption: "a small star".to_string(),
        original_size: (32, 32),
        crop_top_left: (0, 0),
        key: None,
        others,
        area,
    }
}

/// 1 where `counts` says so of column and row, 0 elsewhere.
fn mask(channels: usize, counts: impl Fn(usize, usize) -> bool) -> Tensor {
    let value = |i: usize| if counts(i % 32, i / 32 % 32) { 1.0_f32 } else { 0.0 };
    let values: Vec<f32> = (0..channels * 32 * 32).map(value).collect();
    Tensor::from_vec(values, (channels, 32, 32), &Device::Cpu).unwrap()
}

/// Of a latent 4 pixels wide and this area columns 1 to 5 and rows 0 to 4 are within; those but the first and the last of each count, 3 by 3 of 8 by 8.
const AREA: Area = Area { left: 4, top: 0, width: 20, height: 20 };

/// Whether the latent of a pixel counts.
fn counts(x: usize, y: usize) -> bool {
    (8..20).contains(&x) && (4..16).contains(&y)
}

/// What a mask of the whole picture makes of its loss, at a temperature that leaves nothing of what is black; as much as if only 9 of 64 latents were there.
fn masked_loss(models: &StableDiffusionPipeline, fixture: &Fixture, mask: &Tensor) -> f64 {
    let denoising = Denoising::new(models, DenoisingOptions::default()).unwrap();
    let (examples, mask) = ([example(fixture, None, Vec::new())], mask.unsqueeze(0).unwrap());
    let loss = denoising.masked_loss(&examples, &mask, 20.0, &mut TorchGenerator::new(3)).unwrap();
    let channels = models.unet.config().out_channels as f64;
    f64::from(loss.to_scalar::<f32>().unwrap()) * channels * 64.0 / 9.0
}

/// The loss of a mask of zeros and ones is the mean over what counts, whatever the pictures' share of it.
#[test]
fn pictures_with_an_area_count_as_much_as_whole_ones() {
    let models = models();
    let fixture = Fixture::open(format!("{FOLDER}/custom_diffusion.safetensors"));
    let custom = CustomDiffusionDenoising::new(&models, DenoisingOptions::default()).unwrap();
    let loss = |area: Option<Area>| {
        let loss = custom.loss(&[example(&fixture, area, Vec::new())], &mut TorchGenerator::new(3)).unwrap();
        f64::from(loss.to_scalar::<f32>().unwrap())
    };
    let expected = masked_loss(&models, &fixture, &mask(1, counts));
    assert!((loss(Some(AREA)) / expected - 1.0).abs() < 1e-5, "{} and {expected}", loss(Some(AREA)));
    assert!((loss(None) / expected - 1.0).abs() > 1e-3, "the area makes a difference");
}

#[test]
fn masks_weigh_what_is_within_an_area() {
    let models = models();
    let fixture = Fixture::open(format!("{FOLDER}/custom_diffusion.safetensors"));
    let loss = |mask_temperature: Option<f64>, others: Vec<Tensor>| {
        let options = DenoisingOptions { mask_temperature, ..Default::default() };
        let custom = CustomDiffusionDenoising::new(&models, options).unwrap();
        let examples = [example(&fixture, Some(AREA), others)];
        custom.loss(&examples, &mut TorchGenerator::new(3)).map(|loss| loss.to_scalar::<f32>().unwrap())
    };
    let is_left = |x: usize, _: usize| x < 16;
    let left = f64::from(loss(Some(20.0), vec![mask(3, is_left)]).unwrap());
    let expected = masked_loss(&models, &fixture, &mask(1, |x, y| counts(x, y) && is_left(x, y)));
    assert!((left / expected - 1.0).abs() < 1e-5, "{left} and {expected}");
    let (plain, white) = (loss(None, Vec::new()).unwrap(), loss(Some(20.0), vec![mask(3, |_, _| true)]));
    let white = white.unwrap();
    assert!((white / plain - 1.0).abs() < 1e-6, "a white mask leaves nothing out: {plain} and {white}");
    let error = loss(Some(1.0), Vec::new()).unwrap_err().to_string();
    assert_eq!(error, "others is 0; expected 1, one for each example");
}
