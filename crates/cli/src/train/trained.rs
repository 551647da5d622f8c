//! What is trained: a LoRA, or models' own weights; and by which loss.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_models::layers::Layers;
use candle_diffusers_pipelines::{StableDiffusionPipeline, TextEncoders};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_training::recipes::{DenoisingOptions, Encoded};
use candle_diffusers_training::{
    LoraConfig, LoraInit, LossWeighting, NoiseOptions, Parameter, ParameterGroup, TEXT_ENCODER_TARGETS,
    TargetModules, TrainedLora, UNET_TARGETS, trainable_text_encoder, trainable_unet,
};

use super::model::in_float32;
use super::processes::Started;
use super::{InitLoraWeights, Recipe, TrainArguments};

const NO_WHOLE_TEXT_ENCODER: &str = "--train-text-encoder trains the whole text encoder of Stable Diffusion 1 and 2 only; for XL train a LoRA";

/// Tells what [`choose_trained`] cannot do before long work is done.
pub(super) fn check_trained(arguments: &TrainArguments, models: &StableDiffusionPipeline) -> Result<()> {
    if arguments.recipe.is_lora() {
        check_lora_layers(arguments, models)?;
        return Ok(TrainedLora::check(&models.unet, "unet", &unet_lora(arguments))?);
    }
    ensure!(
        !arguments.train_text_encoder || matches!(models.text_encoders, TextEncoders::Clip(_)),
        NO_WHOLE_TEXT_ENCODER
    );
    Ok(())
}

/// Tells of an end that no layer's name has. PEFT leaves it out where others match, and so would less be learned than was asked for.
fn check_lora_layers(arguments: &TrainArguments, models: &StableDiffusionPipeline) -> Result<()> {
    let ends = arguments.lora.layers();
    if arguments.lora.target_modules.is_some() || ends == UNET_TARGETS {
        return Ok(());
    }
    for end in ends {
        TrainedLora::check(&models.unet, "unet", &LoraConfig::new(1, &[end])).context("--lora-layers")?;
    }
    Ok(())
}

/// Puts a LoRA beside the models, or variables in place of their weights.
pub(super) fn choose_trained(
    arguments: &TrainArguments,
    started: &Started,
    repository: &Repository,
    models: &mut StableDiffusionPipeline,
    options: &LoadOptions,
    generator: &mut TorchGenerator,
) -> Result<(Vec<ParameterGroup>, Vec<TrainedLora>)> {
    let group = |parameters, learning_rate: f64| group(arguments, started, parameters, learning_rate);
    let text_group = |parameters| ParameterGroup {
        learning_rate: text_encoder_lr(arguments, started),
        weight_decay: text_encoder_decay(arguments),
        ..group(parameters, arguments.learning_rate())
    };
    let (mut groups, mut loras) = (Vec::new(), Vec::new());
    if arguments.recipe.is_lora() {
        let unet = TrainedLora::attach(&models.unet, "unet", &unet_lora(arguments), generator)?;
        groups.push(group(unet.parameters(), arguments.learning_rate_unet()));
        loras.push(unet);
        if arguments.train_text_encoder {
            let config = lora(arguments, &TEXT_ENCODER_TARGETS);
            let lora_models = models.text_encoders.lora_models(&models.unet);
            let first = lora_models.text_encoder.map(|model| model as &dyn Layers);
            let second = lora_models.text_encoder_2.map(|model| model as &dyn Layers);
            for (component, model) in [("text_encoder", first), ("text_encoder_2", second)] {
                let Some(model) = model else { continue };
                let lora = TrainedLora::attach(model, component, &config, generator)?;
                groups.push(text_group(lora.parameters()));
                loras.push(lora);
            }
        }
        return Ok((groups, loras));
    }
    let options = &in_float32(options);
    let whole = trainable_unet(repository, "unet", options)?;
    models.unet = whole.model;
    groups.push(group(whole.parameters, arguments.learning_rate_unet()));
    if arguments.train_text_encoder {
        let TextEncoders::Clip(clip) = &mut models.text_encoders else {
            bail!(NO_WHOLE_TEXT_ENCODER);
        };
        let whole = trainable_text_encoder(repository, "text_encoder", options)?;
        clip.text_encoder = whole.model;
        clip.text_encoder.set_gradient_checkpointing(arguments.steps.gradient_checkpointing);
        groups.push(text_group(whole.parameters));
    }
    Ok((groups, loras))
}

/// The LoRA of the UNet that was asked for.
fn unet_lora(arguments: &TrainArguments) -> LoraConfig {
    let mut config = lora(arguments, &arguments.lora.layers());
    if let Some(pattern) = &arguments.lora.target_modules {
        config.target_modules = TargetModules::Pattern(pattern.clone());
    }
    config
}

fn lora(arguments: &TrainArguments, targets: &[&str]) -> LoraConfig {
    LoraConfig {
        alpha: arguments.lora.lora_alpha.unwrap_or(arguments.lora.rank as f64),
        dropout: arguments.lora.lora_dropout,
        init: match arguments.lora.init_lora_weights {
            InitLoraWeights::Gaussian => LoraInit::Gaussian,
            InitLoraWeights::True => LoraInit::Kaiming,
        },
        use_rslora: arguments.lora.use_rslora,
        use_dora: arguments.lora.use_dora,
        ..LoraConfig::new(arguments.lora.rank, targets)
    }
}

/// Parameters with their share of the run's settings.
pub(super) fn group(
    arguments: &TrainArguments,
    started: &Started,
    parameters: Vec<Parameter>,
    learning_rate: f64,
) -> ParameterGroup {
    let weight_decay = arguments.optimizer.adam_weight_decay;
    ParameterGroup { parameters, learning_rate: learning_rate * scale(arguments, started), weight_decay }
}

/// What --scale-lr multiplies learning rates by: the pictures of a step.
fn scale(arguments: &TrainArguments, started: &Started) -> f64 {
    let steps = &arguments.steps;
    let pictures = [steps.train_batch_size, started.processes.size(), steps.gradient_accumulation_steps];
    match steps.scale_lr {
        true => pictures.iter().map(|count| *count as f64).product(),
        false => 1.0,
    }
}

/// How large a step of the text encoder is. --scale-lr leaves a rate of its own as it is, as in all of diffusers' scripts that have one; not in lora_pti.
fn text_encoder_lr(arguments: &TrainArguments, started: &Started) -> f64 {
    match arguments.steps.text_encoder_lr {
        Some(rate) if arguments.recipe != Recipe::PivotalTuning => rate,
        rate => rate.unwrap_or(arguments.learning_rate()) * scale(arguments, started),
    }
}

/// How strongly its weights are pulled to zero.
pub(super) fn text_encoder_decay(arguments: &TrainArguments) -> f64 {
    let optimizer = &arguments.optimizer;
    optimizer.adam_weight_decay_text_encoder.unwrap_or(optimizer.adam_weight_decay)
}

pub(super) fn denoising_options(
    arguments: &TrainArguments,
    models: &StableDiffusionPipeline,
) -> Result<DenoisingOptions> {
    let encoded = match &arguments.pictures.encoder_cache_dir {
        Some(folder) => Encoded::in_folder(folder, models)?,
        None => Encoded::default(),
    };
    Ok(DenoisingOptions {
        noise: NoiseOptions {
            noise_offset: arguments.noise.noise_offset,
            input_perturbation: arguments.noise.input_perturbation,
        },
        weighting: match arguments.noise.snr_gamma {
            Some(gamma) => LossWeighting::MinSnr { gamma },
            None => LossWeighting::Uniform,
        },
        prior_loss_weight: arguments
            .thing
            .with_prior_preservation
            .then_some(arguments.thing.prior_loss_weight),
        caption_dropout: arguments.pictures.proportion_empty_prompts,
        mask_temperature: arguments.pictures.has_masks().then_some(arguments.pictures.mask_temperature),
        train_text_encoder: arguments.train_text_encoder,
        latents_seed: arguments.pivotal.cached_latents.then_some(arguments.steps.seed),
        t_multiplier: None,
        gradient_checkpointing: arguments.steps.gradient_checkpointing,
        encoded: Arc::new(encoded),
    })
}
