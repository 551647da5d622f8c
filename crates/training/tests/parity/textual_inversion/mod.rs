//! Ten steps of textual inversion, beside the reference's scripts; then the file that it writes, loaded and painted with.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::{Schedule, StableDiffusionPipeline, TextToImage, seeded_generators};
use candle_diffusers_schedulers::{NoiseSource, TorchGenerator};
use candle_diffusers_test_support::{Fixture, assert_close, values};
use candle_diffusers_training::recipes::{
    Denoising, DenoisingOptions, Example, LearnableProperty, TextualInversionOptions, TrainedToken,
};
use candle_diffusers_training::{
    AdamW, AdamWConfig, LrSchedule, LrScheduleOptions, Parameter, ParameterGroup, Trainer, TrainerOptions,
};
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/textual_inversion");
const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity");
const STEPS: usize = 10;

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(format!("{FOLDER}/{name}")).unwrap()).unwrap()
}

fn models(model: &str) -> StableDiffusionPipeline {
    let repository = Repository::folder(format!("{MODELS}/{model}")).unwrap();
    StableDiffusionPipeline::load(&repository, &LoadOptions::default()).unwrap()
}

fn options(token: &str, initializer: &str, num_vectors: usize) -> TextualInversionOptions {
    TextualInversionOptions {
        placeholder_token: token.to_string(),
        initializer_token: initializer.to_string(),
        num_vectors,
    }
}

fn attach(
    models: &mut StableDiffusionPipeline,
    options: &TextualInversionOptions,
) -> candle_diffusers_training::Result<TrainedToken> {
    TrainedToken::attach(models, options, &mut TorchGenerator::new(0))
}

fn trainer(case: &Value, token: &TrainedToken) -> Trainer {
    let parameters = token.parameters();
    let groups = vec![ParameterGroup { parameters, learning_rate: 5e-3, weight_decay: 1e-2 }];
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
        max_grad_norm: None,
        ..Default::default()
    };
    let optimizer = Box::new(AdamW::new(AdamWConfig::default()).unwrap());
    Trainer::new(groups, optimizer, schedule.unwrap(), None, options, TorchGenerator::new(42)).unwrap()
}

fn examples(pictures: &Tensor, captions: &[String], batch: usize, size: usize) -> Vec<Example> {
    let example = |i: usize| {
        let index = (batch * size + i) % 6;
        Example {
            pixel_values: pictures.get(index).unwrap(),
            caption: captions[index % 4].clone(),
            original_size: (32, 32),
            crop_top_left: (0, 0),
            key: None,
            others: Vec::new(),
            area: None,
        }
    };
    (0..size).map(example).collect()
}

fn paint(models: &mut StableDiffusionPipeline, prompt: &str) -> Vec<f64> {
    let request = TextToImage {
        prompts: vec![prompt.to_string()],
        schedule: Schedule::Steps(2),
        width: Some(32),
        height: Some(32),
        ..Default::default()
    };
    let mut go_on = |_: candle_diffusers_pipelines::StepEnd<'_>| Ok(ControlFlow::Continue(()));
    values(&models.generate_tensor(&request, &mut seeded_generators(3, 1), &mut go_on).unwrap().images)
}

#[test]
fn losses_and_vectors_are_those_of_the_reference() {
    let fixture = Fixture::open(format!("{FOLDER}/textual_inversion.safetensors"));
    let settings = json("cases.json");
    let size = settings["batch"].as_u64().unwrap() as usize;
    for (name, case) in settings["cases"].as_object().unwrap() {
        let text = |key: &str| case[key].as_str().unwrap();
        let mut models = models(text("model"));
        let without = paint(&mut models, "a large star");
        let options =
            options(text("token"), text("initializer"), case["num_vectors"].as_u64().unwrap() as usize);
        let token = attach(&mut models, &options).unwrap();
        let key = |parameter: &Parameter, when: &str| {
            let encoder = parameter.name.split('.').next().unwrap();
            format!("{name}/{when}/{encoder}")
        };
        for parameter in token.parameters() {
            let start = fixture.get(&key(&parameter, "start"));
            assert_close(&parameter.name, &parameter.var, start, 0.0);
        }
        let mut trainer = trainer(case, &token);
        let losses = fixture.values(&format!("{name}/losses"));
        let digests = fixture.values(&format!("{name}/digests"));
        let captions = text("property").parse::<LearnableProperty>().unwrap().captions(text("token"));
        let denoising_options = DenoisingOptions { train_text_encoder: true, ..Default::default() };
        let denoising = Denoising::new(&models, denoising_options).unwrap();
        let (mut batch, mut worst): (usize, f64) = (0, 0.0);
        for step in 0..STEPS {
            let report = trainer
                .step(|generator| {
                    let examples = examples(fixture.get("pictures"), &captions, batch, size);
                    batch += 1;
                    denoising.loss(&examples, generator)
                })
                .unwrap();
            worst = worst.max((report.loss / losses[step] - 1.0).abs());
            assert!(worst < 1e-4, "{name}, step {step}: {} and {}", report.loss, losses[step]);
            let squares = |parameter: &Parameter| values(&parameter.var).iter().map(|x| x * x).sum::<f64>();
            let length = trainer.groups[0].parameters.iter().map(squares).sum::<f64>().sqrt();
            assert!((length / digests[step] - 1.0).abs() < 1e-5, "{name}, step {step}: {length}");
        }
        drop(denoising);
        let mut farthest: f64 = 0.0;
        for parameter in &trainer.groups[0].parameters {
            let end = fixture.get(&key(parameter, "end"));
            assert_close(&parameter.name, &parameter.var, end, 1e-5);
            let pairs = values(&parameter.var).into_iter().zip(values(end));
            farthest = pairs.map(|(ours, theirs)| (ours - theirs).abs()).fold(farthest, f64::max);
        }
        println!("{name}: losses within {worst:.1e}, vectors within {farthest:.1e}");

        assert_eq!(paint(&mut models, "a large star"), without, "{name}: nothing else has changed");
        let prompt = format!("a large {}", text("token"));
        let learned = paint(&mut models, &prompt);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("learned_embeds.safetensors");
        token.save(&file).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::write(folder.path().join("other"), "").unwrap();
            let mode = |name| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode("learned_embeds.safetensors"), mode("other"), "readable as any other file");
        }
        let mut fresh = self::models(text("model"));
        // The file of a model with one text encoder knows its token.
        let given = name.starts_with("xl").then_some(text("token"));
        assert_eq!(fresh.load_textual_inversion(&file, given).unwrap(), [text("token")], "{name}");
        assert_eq!(paint(&mut fresh, &prompt), learned, "{name}: as the trained model paints it");
        assert_ne!(paint(&mut fresh, &format!("a large {}", text("initializer"))), learned, "{name}");
    }
}

#[test]
fn templates_are_those_of_the_reference() {
    let published = json("templates.json");
    for name in ["object", "style"] {
        let expected: Vec<String> = serde_json::from_value(published[name].clone()).unwrap();
        assert_eq!(name.parse::<LearnableProperty>().unwrap().templates(), expected);
    }
    assert_eq!(LearnableProperty::Style.captions("<x>")[0], "a painting in the style of <x>");
    let error = "colour".parse::<LearnableProperty>().unwrap_err().to_string();
    assert_eq!(error, "learnable_property is \"colour\"; expected object or style");
}

#[test]
fn tokens_that_do_not_fit_are_refused() {
    for model in ["text_to_image/sd1", "stable_diffusion_xl/base"] {
        let mut models = models(model);
        let before = paint(&mut models, "a star");
        for (options, message) in [
            (
                options("<ring>", "large circle", 1),
                "initializer_token is \"large circle\", which is 2 tokens",
            ),
            (options("<ring>", "", 1), "initializer_token is \"\", which is no token"),
            (options("<ring>", "<rand>", 1), "initializer_token is \"<rand>\"; expected <rand-X>"),
            (options("<ring>", "<rand-inf>", 1), "initializer_token is \"<rand-inf>\""),
            (options("<|endoftext|>", "circle", 1), "is in the tokenizer's vocabulary already"),
            (
                options("<a/b>", "circle", 1),
                "placeholder_token is \"<a/b>\", which cannot be the name of a file",
            ),
            (options("..\\a", "circle", 1), "expected one without / and \\"),
            (options(" ", "circle", 1), "it is empty"),
            (options("<ring>", "circle", 0), "num_vectors is 0; expected 1 or more"),
        ] {
            let error = attach(&mut models, &options).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        attach(&mut models, &options("<ring>", "circle", 2)).unwrap();
        let error = attach(&mut models, &options("<ring>", "circle", 1)).unwrap_err();
        assert!(error.to_string().contains("vocabulary already"), "{error}");
        assert_eq!(paint(&mut models, "a star"), before);
    }
}

/// As in lora_pti, whose random rows are `torch.randn_like(row) * sigma`.
#[test]
fn vectors_begin_at_random_or_as_zeros() {
    for (model, encoders) in [("text_to_image/sd1", 1), ("stable_diffusion_xl/base", 2)] {
        let mut models = models(model);
        let mut begin = |token: &str, initializer: &str, generator: &mut TorchGenerator| {
            let token =
                TrainedToken::attach(&mut models, &options(token, initializer, 2), generator).unwrap();
            token.parameters().iter().map(|parameter| values(&parameter.var)).collect::<Vec<_>>()
        };
        let mut generator = TorchGenerator::new(7);
        let zeros = begin("<dots>", "<zero>", &mut generator);
        assert_eq!(zeros.len(), encoders);
        assert!(zeros.iter().flatten().all(|value| *value == 0.0));
        // Nothing was drawn for zeros.
        let mut expected = TorchGenerator::new(7);
        for found in begin("<ring>", "<rand-0.5>", &mut generator) {
            let noise = expected.randn(&[2, found.len() / 2], DType::F32, &Device::Cpu).unwrap();
            assert_eq!(found, values(&(noise * 0.5).unwrap()), "{model}");
        }
        assert!(generator.state() == expected.state());
    }
}

#[test]
fn several_tokens_are_added_and_written_together() {
    for (model, files) in [
        ("text_to_image/sd1", &["learned_embeds.safetensors"][..]),
        ("stable_diffusion_xl/base", &["<ring>.safetensors", "<dots>.safetensors"]),
    ] {
        let mut models = models(model);
        let mut add = |initializer: &str| {
            let tokens = [options("<ring>", "circle", 2), options("<dots>", initializer, 1)];
            TrainedToken::attach_all(&mut models, &tokens, &mut TorchGenerator::new(0))
        };
        let error = add("large circle").unwrap_err().to_string();
        assert!(error.contains("initializer_token is \"large circle\""), "{error}");
        // All or none: the first can be added again.
        let tokens = add("<rand-0.5>").unwrap();
        let prompt = "a <ring><dots>";
        let learned = paint(&mut models, prompt);

        let folder = tempfile::tempdir().unwrap();
        let written = TrainedToken::save_all(&tokens, folder.path()).unwrap();
        let expected: Vec<_> = files.iter().map(|file| folder.path().join(file)).collect();
        assert_eq!(written, expected);
        let mut fresh = self::models(model);
        for file in &written {
            fresh.load_textual_inversion(file, None).unwrap();
        }
        assert_eq!(paint(&mut fresh, prompt), learned, "{model}");
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(TrainedToken::save_all(&[], folder.path()).unwrap().is_empty());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_second_token_learns_beside_the_first() {
    let mut models = models("text_to_image/sd1");
    let first = attach(&mut models, &options("<ring>", "circle", 2)).unwrap();
    let second = attach(&mut models, &options("<dots>", "red", 1)).unwrap();
    let request = TextToImage { prompts: vec!["a <ring> in <dots>".to_string()], ..Default::default() };
    let embeds = models.encode_prompt(&request).unwrap();
    let gradients = embeds.prompt.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    for parameter in first.parameters().iter().chain(&second.parameters()) {
        let gradient = gradients.get(&parameter.var).unwrap();
        assert!(values(gradient).iter().all(|value| *value != 0.0), "{}", parameter.name);
    }
    models.unload_textual_inversion(&["<ring>"]).unwrap();
    let embeds = models.encode_prompt(&request).unwrap();
    let gradients = embeds.prompt.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&first.parameters()[0].var).is_none());
    assert!(gradients.get(&second.parameters()[0].var).is_some());
}

#[test]
fn a_word_gets_no_gradient_where_embeddings_are_kept() {
    let fixture = Fixture::open(format!("{FOLDER}/textual_inversion.safetensors"));
    let mut models = models("text_to_image/sd1");
    let token = attach(&mut models, &options("<ring>", "circle", 1)).unwrap();
    let captions = vec!["a <ring>".to_string(); 4];
    let examples = examples(fixture.get("pictures"), &captions, 0, 1);
    let has_gradient = |train_text_encoder: bool| {
        let options = DenoisingOptions { train_text_encoder, ..Default::default() };
        let denoising = Denoising::new(&models, options).unwrap();
        let loss = denoising.loss(&examples, &mut TorchGenerator::new(0)).unwrap();
        let gradients = loss.backward().unwrap();
        gradients.get(&token.parameters()[0].var).is_some()
    };
    assert!(has_gradient(true));
    assert!(!has_gradient(false));
}
