//! The optimizer, the learning rates and the average that were asked for.

use anyhow::Result;
use candle_core::{DType, Device, Var};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_training::{
    AdamW, AdamW8bit, AdamWConfig, EmaConfig, EmaModel, LrSchedule, LrScheduleOptions, Optimizer, Parameter,
    ParameterGroup, Sgd, SgdConfig, Trainer, TrainerOptions, parameters,
};

use super::pivotal::WORD_LENGTH;
use super::processes::Started;
use super::trained::{group, text_encoder_decay};
use super::{OptimizerName, Recipe, TrainArguments};

/// Tells what [`new_trainer`] refuses before long work is done.
pub(super) fn check_trainer(arguments: &TrainArguments, started: &Started, max_steps: u64) -> Result<()> {
    let text_rate = arguments.steps.text_encoder_lr.unwrap_or(arguments.learning_rate());
    let mut groups = Vec::new();
    for (name, learning_rate) in [("unet", arguments.learning_rate_unet()), ("text_encoder", text_rate)] {
        // In the place of what is trained, which there is not yet.
        let var = Var::zeros(1, DType::F32, &Device::Cpu)?;
        let parameters = vec![Parameter { name: name.to_string(), var }];
        groups.push(group(arguments, started, parameters, learning_rate));
    }
    if let Some(group) = groups.last_mut() {
        group.weight_decay = text_encoder_decay(arguments);
    }
    new_trainer(arguments, groups, max_steps, TorchGenerator::new(arguments.steps.seed))?;
    Ok(())
}

/// Steps with the optimizer and the learning rates that were asked for.
pub(super) fn new_trainer(
    arguments: &TrainArguments,
    groups: Vec<ParameterGroup>,
    max_steps: u64,
    generator: TorchGenerator,
) -> Result<Trainer> {
    let is_word = parameters(&groups).all(|parameter| parameter.name.contains(".token_embedding."));
    let (name, warmup) = match is_word {
        true => (arguments.steps.lr_scheduler.as_str(), None),
        false => (arguments.lr_scheduler_lora(), arguments.pivotal.lr_warmup_steps_lora),
    };
    let schedule = LrSchedule::new(
        name.parse()?,
        LrScheduleOptions {
            num_warmup_steps: warmup.unwrap_or(arguments.steps.lr_warmup_steps),
            num_training_steps: max_steps as usize,
            num_cycles: arguments.steps.lr_num_cycles,
            power: arguments.steps.lr_power,
            // What polynomial falls to is measured by the first group's, as diffusers takes it from the optimizer.
            learning_rate: groups.first().map_or(arguments.learning_rate(), |group| group.learning_rate),
            step_rules: arguments.steps.lr_step_rules.clone().unwrap_or_default(),
            ..Default::default()
        },
    )?;
    let adam = AdamWConfig {
        beta1: arguments.optimizer.adam_beta1,
        beta2: arguments.optimizer.adam_beta2,
        epsilon: arguments.optimizer.adam_epsilon,
    };
    let optimizer: Box<dyn Optimizer> =
        match (arguments.optimizer.optimizer, arguments.optimizer.use_8bit_adam) {
            (OptimizerName::AdamW, false) => Box::new(AdamW::new(adam)?),
            (OptimizerName::AdamW, true) | (OptimizerName::AdamW8bit, _) => Box::new(AdamW8bit::new(adam)?),
            (OptimizerName::Sgd, _) => Box::new(Sgd::new(SgdConfig {
                momentum: arguments.optimizer.momentum,
                ..Default::default()
            })?),
        };
    // As diffusers' scripts have it: only the one for unconditional models lets the average rise by these.
    let average = match arguments.recipe {
        Recipe::Unconditional => EmaConfig {
            use_ema_warmup: true,
            decay: arguments.unconditional.ema_max_decay,
            inv_gamma: arguments.unconditional.ema_inv_gamma,
            power: arguments.unconditional.ema_power,
            ..Default::default()
        },
        _ => EmaConfig::default(),
    };
    let ema = arguments.use_ema.then(|| EmaModel::new(&groups, average)).transpose()?;
    let max_grad_norm = arguments.optimizer.max_grad_norm;
    let options = TrainerOptions {
        gradient_accumulation_steps: arguments.steps.gradient_accumulation_steps,
        max_grad_norm: (!is_word && max_grad_norm != 0.0).then_some(max_grad_norm),
        row_length: (is_word && arguments.pivotal.clip_ti_decay).then_some(WORD_LENGTH),
    };
    Ok(Trainer::new(groups, optimizer, schedule, ema, options, generator)?)
}
