//! `diffuse train`.

mod arguments;
mod class_pictures;
mod config;
mod data;
mod result;
mod session;
mod taught;
mod unconditional;

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use candle_core::DType;
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_models::layers::Layers;
use candle_diffusers_pipelines::{StableDiffusionPipeline, TextEncoders};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_training::recipes::{DenoisingOptions, TextualInversionOptions, TrainedToken};
use candle_diffusers_training::{
    AdamW, AdamW8bit, AdamWConfig, Checkpoints, EmaConfig, EmaModel, LoraConfig, LossWeighting, LrSchedule,
    LrScheduleName, LrScheduleOptions, NoiseOptions, Optimizer, ParameterGroup, TEXT_ENCODER_TARGETS,
    TrainedLora, Trainer, TrainerOptions, parameters, trainable_text_encoder, trainable_unet,
};

use crate::device;
use crate::embedded;
use crate::progress::Progress;

pub(crate) use arguments::{MixedPrecision, Property, Recipe, TrainArguments, TrainedLoraFormat, expand};
use data::Data;
use session::{Learned, Session};
use taught::Taught;

/// Trains, and writes the result.
pub(crate) fn run(arguments: &TrainArguments, progress: &Progress) -> Result<()> {
    check_flags(arguments)?;
    // Small things first: what is wrong with them is told before a model is loaded.
    arguments.lr_scheduler.parse::<LrScheduleName>()?;
    if arguments.recipe == Recipe::Unconditional {
        return unconditional::run(arguments, progress);
    }
    let repository = open_model(arguments, progress)?;
    let mut data = Data::open(arguments, &repository)?;
    Checkpoints::new(&arguments.output_dir, arguments.checkpoints_total_limit)?;

    let device = device::open(None)?;
    let dtype = match arguments.mixed_precision {
        MixedPrecision::No => DType::F32,
        MixedPrecision::Bf16 => DType::BF16,
    };
    let options = LoadOptions { dtype, device, variant: arguments.variant.clone() };
    let loading = progress.activity(format!("loading {}", repository.name()));
    // Pictures that are looked at while training are for whoever trains.
    let unchecked = repository.clone().without(&["safety_checker", "feature_extractor"]);
    let mut models = StableDiffusionPipeline::load(&unchecked, &options)?;
    drop(loading);
    class_pictures::paint_missing(arguments, &mut models, progress)?;
    data.open_class(arguments)?;

    let mut generator = TorchGenerator::new(arguments.seed);
    let mut token = arguments.recipe.has_token().then(|| attach_token(arguments, &mut models)).transpose()?;
    if arguments.recipe == Recipe::PivotalTuning
        && let Some(learned) = token.take()
    {
        let folder = arguments.output_dir.join("inversion");
        let groups = vec![token_group(&learned, arguments.learning_rate_ti)];
        let steps = arguments.max_train_steps_ti;
        let trainer = new_trainer(arguments, groups, steps, generator.clone())?;
        let trained = Learned { loras: Vec::new(), token: Some(learned) };
        let taught = Taught::StableDiffusion(Box::new(models), denoising_options(arguments));
        let mut session = Session::new(arguments, progress, &folder, taught, trained, trainer, data, steps)?;
        session.run(Some(&repository))?;
        let Session { taught, data: kept, learned, .. } = session;
        (models, data, token) = (taught.stable_diffusion()?, kept, learned.token);
    }
    let (groups, loras) = match (arguments.recipe, &token) {
        (Recipe::TextualInversion, Some(token)) => {
            (vec![token_group(token, arguments.learning_rate)], Vec::new())
        }
        _ => choose_trained(arguments, &repository, &mut models, &options, &mut generator)?,
    };
    let epochs = data.steps_per_epoch(arguments) * arguments.num_train_epochs;
    let max_steps = arguments.max_train_steps.unwrap_or(epochs);
    let trainer = new_trainer(arguments, groups, max_steps, generator)?;
    let learned = Learned { loras, token };
    let folder = &arguments.output_dir;
    let taught = Taught::StableDiffusion(Box::new(models), denoising_options(arguments));
    let mut session = Session::new(arguments, progress, folder, taught, learned, trainer, data, max_steps)?;
    session.run(Some(&repository))
}

/// Steps with the optimizer and the learning rates that were asked for.
fn new_trainer(
    arguments: &TrainArguments,
    groups: Vec<ParameterGroup>,
    max_steps: u64,
    generator: TorchGenerator,
) -> Result<Trainer> {
    ensure!(max_steps > 0, "--max-train-steps is 0, expected 1 or more");
    let schedule = LrSchedule::new(
        arguments.lr_scheduler.parse()?,
        LrScheduleOptions {
            num_warmup_steps: arguments.lr_warmup_steps,
            num_training_steps: max_steps as usize,
            num_cycles: arguments.lr_num_cycles,
            power: arguments.lr_power,
            learning_rate: arguments.learning_rate,
            ..Default::default()
        },
    )?;
    let adam = AdamWConfig {
        beta1: arguments.adam_beta1,
        beta2: arguments.adam_beta2,
        epsilon: arguments.adam_epsilon,
    };
    let optimizer: Box<dyn Optimizer> = match arguments.use_8bit_adam {
        true => Box::new(AdamW8bit::new(adam)?),
        false => Box::new(AdamW::new(adam)?),
    };
    // As diffusers' scripts have it.
    let average = match arguments.recipe {
        Recipe::Unconditional => EmaConfig { use_ema_warmup: true, power: 0.75, ..Default::default() },
        _ => EmaConfig::default(),
    };
    let ema = arguments.use_ema.then(|| EmaModel::new(&groups, average)).transpose()?;
    let is_word = parameters(&groups).all(|parameter| parameter.name.contains(".token_embedding."));
    let options = TrainerOptions {
        gradient_accumulation_steps: arguments.gradient_accumulation_steps,
        max_grad_norm: (!is_word).then_some(arguments.max_grad_norm),
    };
    Ok(Trainer::new(groups, optimizer, schedule, ema, options, generator)?)
}

/// Gives the models the word that is learned.
fn attach_token(arguments: &TrainArguments, models: &mut StableDiffusionPipeline) -> Result<TrainedToken> {
    let word = |word: &Option<String>| word.clone().unwrap_or_default();
    let options = TextualInversionOptions {
        placeholder_token: word(&arguments.placeholder_token),
        initializer_token: word(&arguments.initializer_token),
        num_vectors: arguments.num_vectors,
    };
    Ok(TrainedToken::attach(models, &options)?)
}

fn token_group(token: &TrainedToken, learning_rate: f64) -> ParameterGroup {
    ParameterGroup { parameters: token.parameters(), learning_rate, weight_decay: 1e-2 }
}

fn open_model(arguments: &TrainArguments, progress: &Progress) -> Result<Repository> {
    let Some(model) = &arguments.pretrained_model_name_or_path else { return Ok(embedded::model()) };
    open_repository(model, arguments.variant.as_deref(), progress)
}

fn open_repository(model: &OsStr, variant: Option<&str>, progress: &Progress) -> Result<Repository> {
    let path = Path::new(model);
    if path.is_file() {
        return Ok(Repository::single_file(path, &Default::default())?);
    }
    let mut downloads = progress.downloads();
    Ok(Repository::open_without(path, variant, &["safety_checker", "feature_extractor"], &mut |download| {
        let what = format!("{} ({} of {})", download.file, download.number, download.files);
        downloads.show(what, download.received, download.size);
    })?)
}

/// What does not go together, before anything is read.
fn check_flags(arguments: &TrainArguments) -> Result<()> {
    let recipe = arguments.recipe;
    if recipe.is_dreambooth() {
        ensure!(
            arguments.instance_data_dir.is_some() && arguments.instance_prompt.is_some(),
            "DreamBooth learns from --instance-data-dir and --instance-prompt; give both (captions beside the pictures go before the prompt)"
        );
        ensure!(
            arguments.train_data_dir.is_none(),
            "--train-data-dir is for text-to-image; DreamBooth has --instance-data-dir"
        );
        if arguments.with_prior_preservation {
            ensure!(
                arguments.class_data_dir.is_some() && arguments.class_prompt.is_some(),
                "--with-prior-preservation needs --class-data-dir and --class-prompt"
            );
        }
    } else {
        ensure!(arguments.train_data_dir.is_some(), "this recipe learns from --train-data-dir; give it");
        let flags = [
            ("--instance-data-dir", arguments.instance_data_dir.is_some()),
            ("--instance-prompt", arguments.instance_prompt.is_some()),
            ("--with-prior-preservation", arguments.with_prior_preservation),
        ];
        if let Some((flag, _)) = flags.iter().find(|(_, is_given)| *is_given) {
            bail!("{flag} is for DreamBooth; text-to-image takes its captions from --train-data-dir");
        }
    }
    if recipe == Recipe::Unconditional {
        let flags = [
            ("--validation-prompt", arguments.validation_prompt.is_some()),
            ("--train-text-encoder", arguments.train_text_encoder),
            ("--snr-gamma", arguments.snr_gamma.is_some()),
        ];
        if let Some((flag, _)) = flags.iter().find(|(_, is_given)| *is_given) {
            bail!("{flag} is for models that paint from a text; unconditional ones have none");
        }
    }
    let has_token = arguments.placeholder_token.is_some() || arguments.initializer_token.is_some();
    if recipe.has_token() {
        ensure!(
            arguments.placeholder_token.is_some() && arguments.initializer_token.is_some(),
            "a new word needs --placeholder-token, what it is called, and --initializer-token, what it begins as; give both"
        );
    } else {
        ensure!(
            !has_token,
            "--placeholder-token and --initializer-token are for textual-inversion and pivotal-tuning"
        );
    }
    if recipe == Recipe::TextualInversion {
        ensure!(
            !arguments.train_text_encoder && arguments.mixed_precision == MixedPrecision::No,
            "textual inversion trains the new word alone, in float32; leave out --train-text-encoder and --mixed-precision"
        );
    } else if !recipe.is_lora() && recipe != Recipe::Unconditional {
        ensure!(
            arguments.mixed_precision == MixedPrecision::No,
            "--mixed-precision bf16 is for LoRAs; whole models are trained in float32"
        );
        ensure!(
            arguments.pretrained_model_name_or_path.is_some(),
            "a whole model is written with the other files of the one that it began as: give a folder as --pretrained-model-name-or-path"
        );
    }
    ensure!(arguments.checkpointing_steps > 0, "--checkpointing-steps is 0, expected 1 or more");
    ensure!(arguments.validation_steps > 0, "--validation-steps is 0, expected 1 or more");
    ensure!(arguments.num_validation_images > 0, "--num-validation-images is 0, expected 1 or more");
    ensure!(arguments.num_inference_steps > 0, "--num-inference-steps is 0, expected 1 or more");
    Ok(())
}

/// Puts a LoRA beside the models, or variables in place of their weights.
fn choose_trained(
    arguments: &TrainArguments,
    repository: &Repository,
    models: &mut StableDiffusionPipeline,
    options: &LoadOptions,
    generator: &mut TorchGenerator,
) -> Result<(Vec<ParameterGroup>, Vec<TrainedLora>)> {
    let scale = match arguments.scale_lr {
        true => (arguments.train_batch_size * arguments.gradient_accumulation_steps) as f64,
        false => 1.0,
    };
    let group = |parameters, learning_rate: f64| ParameterGroup {
        parameters,
        learning_rate: learning_rate * scale,
        weight_decay: arguments.adam_weight_decay,
    };
    let text_rate = arguments.text_encoder_lr.unwrap_or(arguments.learning_rate);
    let config = |targets: &[&str]| LoraConfig {
        alpha: arguments.lora_alpha.unwrap_or(arguments.rank as f64),
        dropout: arguments.lora_dropout,
        ..LoraConfig::new(arguments.rank, targets)
    };
    let (mut groups, mut loras) = (Vec::new(), Vec::new());
    if arguments.recipe.is_lora() {
        let targets: Vec<&str> = arguments.lora_layers.iter().map(String::as_str).collect();
        let unet = TrainedLora::attach(&models.unet, "unet", &config(&targets), generator)?;
        groups.push(group(unet.parameters(), arguments.learning_rate));
        loras.push(unet);
        if arguments.train_text_encoder {
            let config = config(&TEXT_ENCODER_TARGETS);
            let lora_models = models.text_encoders.lora_models(&models.unet);
            let first = lora_models.text_encoder.map(|model| model as &dyn Layers);
            let second = lora_models.text_encoder_2.map(|model| model as &dyn Layers);
            for (component, model) in [("text_encoder", first), ("text_encoder_2", second)] {
                let Some(model) = model else { continue };
                let lora = TrainedLora::attach(model, component, &config, generator)?;
                groups.push(group(lora.parameters(), text_rate));
                loras.push(lora);
            }
        }
        return Ok((groups, loras));
    }
    let whole = trainable_unet(repository, "unet", options)?;
    models.unet = whole.model;
    groups.push(group(whole.parameters, arguments.learning_rate));
    if arguments.train_text_encoder {
        let TextEncoders::Clip(clip) = &mut models.text_encoders else {
            bail!(
                "--train-text-encoder trains the whole text encoder of Stable Diffusion 1 and 2 only; for XL train a LoRA"
            );
        };
        let whole = trainable_text_encoder(repository, "text_encoder", options)?;
        clip.text_encoder = whole.model;
        groups.push(group(whole.parameters, text_rate));
    }
    Ok((groups, loras))
}

fn denoising_options(arguments: &TrainArguments) -> DenoisingOptions {
    DenoisingOptions {
        noise: NoiseOptions {
            noise_offset: arguments.noise_offset,
            input_perturbation: arguments.input_perturbation,
        },
        weighting: match arguments.snr_gamma {
            Some(gamma) => LossWeighting::MinSnr { gamma },
            None => LossWeighting::Uniform,
        },
        prior_loss_weight: arguments.with_prior_preservation.then_some(arguments.prior_loss_weight),
        caption_dropout: arguments.proportion_empty_prompts,
        train_text_encoder: arguments.train_text_encoder || arguments.recipe.has_token(),
    }
}
