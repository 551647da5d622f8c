//! What does not go together, before anything is read.

use anyhow::{Result, bail, ensure};
use candle_diffusers_pipelines::load_picture;

use super::{MixedPrecision, OptimizerName, Recipe, ReportTo, TrainArguments, words};

/// Far beyond what any model is trained at.
const MAX_RESOLUTION: u32 = 8192;

/// Refuses flags that the recipe does not have, or that need others.
pub(super) fn check_flags(arguments: &TrainArguments) -> Result<()> {
    check_not_fetched(arguments)?;
    arguments.refused.check()?;
    check_numbers(arguments)?;
    check_steps(arguments)?;
    if arguments.recipe.has_things() {
        check_things(arguments)?;
    } else {
        check_folder_alone(arguments)?;
    }
    check_without_text(arguments)?;
    check_not_here(arguments)?;
    check_pairs(arguments)?;
    check_words(arguments)?;
    check_models(arguments)?;
    check_noise(arguments)?;
    check_optimizer(arguments)?;
    check_pivotal(arguments)?;
    check_pictures(arguments)?;
    check_watch(arguments)
}

/// What diffusers' scripts fetch.
fn check_not_fetched(arguments: &TrainArguments) -> Result<()> {
    ensure!(
        arguments.pictures.dataset_name.is_none(),
        "--dataset-name: data sets are not fetched; save its pictures in a folder, with metadata.jsonl, and give that as --train-data-dir"
    );
    ensure!(
        !arguments.thing.real_prior,
        "--real-prior: pictures of the class are not fetched; save real ones in the folder of --class-data-dir, with their captions (metadata.jsonl, or cat.txt beside cat.png), give their number as --num-class-images, and leave --real-prior out"
    );
    Ok(())
}

/// Things and their classes.
fn check_things(arguments: &TrainArguments) -> Result<()> {
    let thing = &arguments.thing;
    ensure!(
        thing.concepts_list.is_some()
            || (thing.instance_data_dir.is_some() && thing.instance_prompt.is_some()),
        "this recipe learns from --instance-data-dir and --instance-prompt; give both (captions beside the pictures go before the prompt)"
    );
    ensure!(
        arguments.pictures.train_data_dir.is_none(),
        "--train-data-dir is for text-to-image; this recipe has --instance-data-dir"
    );
    ensure!(
        thing.concepts_list.is_none() || arguments.recipe == Recipe::CustomDiffusion,
        "--concepts-list is for custom-diffusion; DreamBooth learns one thing, by --instance-data-dir and --instance-prompt"
    );
    ensure!(
        thing.with_prior_preservation || thing.prior_loss_weight == 1.0,
        "--prior-loss-weight is how much the pictures of a class count: give --with-prior-preservation"
    );
    ensure!(
        thing.with_prior_preservation || thing.num_class_images == 100,
        "--num-class-images is how many pictures of a class there should be: give --with-prior-preservation"
    );
    if thing.with_prior_preservation && thing.concepts_list.is_none() {
        ensure!(
            thing.class_data_dir.is_some() && thing.class_prompt.is_some(),
            "--with-prior-preservation needs --class-data-dir and --class-prompt"
        );
    }
    Ok(())
}

/// What is for things, where a folder of pictures is learned from.
fn check_folder_alone(arguments: &TrainArguments) -> Result<()> {
    ensure!(arguments.train_data_dir().is_some(), "this recipe learns from --train-data-dir; give it");
    let is_pivotal = arguments.recipe == Recipe::PivotalTuning;
    ensure!(
        !is_pivotal
            || arguments.pictures.train_data_dir.is_none()
            || arguments.thing.instance_data_dir.is_none(),
        "--train-data-dir and --instance-data-dir are the same in pivotal-tuning; give one of them"
    );
    let flags = [
        ("--instance-data-dir", arguments.thing.instance_data_dir.is_some() && !is_pivotal),
        ("--concepts-list", arguments.thing.concepts_list.is_some()),
        ("--instance-prompt", arguments.thing.instance_prompt.is_some()),
        ("--with-prior-preservation", arguments.thing.with_prior_preservation),
        ("--class-data-dir", arguments.thing.class_data_dir.is_some()),
        ("--class-prompt", arguments.thing.class_prompt.is_some()),
    ];
    if let Some((flag, _)) = flags.iter().find(|(_, is_given)| *is_given) {
        bail!(
            "{flag} is for DreamBooth and Custom Diffusion; this recipe takes its captions from --train-data-dir"
        );
    }
    Ok(())
}

/// What is for a text, where there is none.
fn check_without_text(arguments: &TrainArguments) -> Result<()> {
    if arguments.recipe != Recipe::Unconditional {
        return Ok(());
    }
    let flags = [
        ("--validation-prompt", !arguments.watch.validation_prompt.is_empty()),
        ("--train-text-encoder", arguments.train_text_encoder),
        ("--snr-gamma", arguments.noise.snr_gamma.is_some()),
        ("--gradient-checkpointing", arguments.steps.gradient_checkpointing),
        ("--noise-offset", arguments.noise.noise_offset != 0.0),
        ("--input-perturbation", arguments.noise.input_perturbation != 0.0),
        ("--rescale-betas-zero-snr", arguments.noise.rescale_betas_zero_snr),
        ("--proportion-empty-prompts", arguments.pictures.proportion_empty_prompts != 0.0),
        ("--encoder-cache-dir", arguments.pictures.encoder_cache_dir.is_some()),
    ];
    if let Some((flag, _)) = flags.iter().find(|(_, is_given)| *is_given) {
        bail!("{flag} is for models that paint from a text; unconditional ones have none");
    }
    check_unconditional_model(arguments)
}

/// What would change nothing of a model that paints without a text.
fn check_unconditional_model(arguments: &TrainArguments) -> Result<()> {
    let is_new = arguments.pretrained_model_name_or_path.is_none();
    ensure!(
        arguments.pretrained_vae_model_name_or_path.is_none(),
        "--pretrained-vae-model-name-or-path is for models that see pictures through a VAE; unconditional ones have none"
    );
    ensure!(
        arguments.variant.is_none() || !is_new,
        "--variant is which weight files of a model are taken, and a new one has none: give --pretrained-model-name-or-path, or leave it out"
    );
    ensure!(
        arguments.unconditional.model_config_name_or_path.is_none() || is_new,
        "--model-config-name-or-path is what a new model is, and --pretrained-model-name-or-path has a config of its own; give one of them"
    );
    Ok(())
}

/// Values that guides print and that there is something else for.
fn check_not_here(arguments: &TrainArguments) -> Result<()> {
    ensure!(
        arguments.steps.mixed_precision != MixedPrecision::Fp16,
        "--mixed-precision fp16: gradients are too small for float16 without loss scaling, which is not here; give bf16, which takes as much memory"
    );
    ensure!(
        arguments.watch.report_to != ReportTo::Service,
        "--report-to: nothing is sent to wandb or another service; give tensorboard, which writes files to --logging-dir, or look at log.jsonl in --output-dir"
    );
    Ok(())
}

/// New words.
fn check_words(arguments: &TrainArguments) -> Result<()> {
    let has_token = arguments.word.placeholder_token.is_some() || arguments.word.initializer_token.is_some();
    if arguments.recipe == Recipe::CustomDiffusion {
        ensure!(
            arguments.word.placeholder_token.is_none(),
            "--placeholder-token is for textual-inversion and pivotal-tuning; custom-diffusion has --modifier-token"
        );
        ensure!(
            !arguments.train_text_encoder,
            "--train-text-encoder: custom-diffusion trains new words and cross-attention alone"
        );
    } else if arguments.recipe.has_token() {
        words::read(arguments)?;
        words::at_data(arguments)?;
    } else {
        ensure!(
            !has_token,
            "--placeholder-token and --initializer-token are for textual-inversion and pivotal-tuning"
        );
    }
    Ok(())
}

/// What is trained, and what it began as.
fn check_models(arguments: &TrainArguments) -> Result<()> {
    if arguments.recipe == Recipe::TextualInversion {
        ensure!(
            !arguments.train_text_encoder,
            "textual inversion trains the new word alone; leave out --train-text-encoder"
        );
    } else if arguments.recipe.is_whole() {
        ensure!(
            arguments.pretrained_model_name_or_path.is_some(),
            "a whole model is written with the other files of the one that it began as: give a folder as --pretrained-model-name-or-path"
        );
    }
    Ok(())
}

/// Noise and the loss.
fn check_noise(arguments: &TrainArguments) -> Result<()> {
    ensure!(
        (0.0..=1.0).contains(&arguments.pictures.proportion_empty_prompts),
        "--proportion-empty-prompts is {}, expected 0 to 1",
        arguments.pictures.proportion_empty_prompts
    );
    if let Some(gamma) = arguments.noise.snr_gamma {
        ensure!(gamma.is_finite() && gamma > 0.0, "--snr-gamma is {gamma}, expected more than 0");
    }
    for (flag, number) in [
        ("--noise-offset", arguments.noise.noise_offset),
        ("--input-perturbation", arguments.noise.input_perturbation),
        ("--prior-loss-weight", arguments.thing.prior_loss_weight),
    ] {
        ensure!(number.is_finite(), "{flag} is {number}, expected a number that is not infinite");
        // Noise has no sign.
        ensure!(flag == "--noise-offset" || number >= 0.0, "{flag} is {number}, expected 0 or more");
    }
    Ok(())
}

/// The optimizer and how its learning rates change.
fn check_optimizer(arguments: &TrainArguments) -> Result<()> {
    let optimizer = &arguments.optimizer;
    ensure!(
        optimizer.optimizer != OptimizerName::Sgd || !optimizer.use_8bit_adam,
        "--use-8bit-adam is AdamW; --optimizer is another"
    );
    ensure!(
        optimizer.optimizer == OptimizerName::Sgd || optimizer.momentum == 0.0,
        "--momentum is for --optimizer sgd; AdamW has --adam-beta1"
    );
    let is_piecewise = [arguments.steps.lr_scheduler.as_str(), arguments.lr_scheduler_lora()]
        .contains(&"piecewise_constant");
    ensure!(
        is_piecewise == arguments.steps.lr_step_rules.is_some(),
        "--lr-step-rules and piecewise_constant (as --lr-scheduler, or as --lr-scheduler-lora of pivotal-tuning) belong together; give both"
    );
    Ok(())
}

/// When a run is written and looked at.
fn check_watch(arguments: &TrainArguments) -> Result<()> {
    let watch = &arguments.watch;
    ensure!(watch.checkpointing_steps > 0, "--checkpointing-steps is 0, expected 1 or more");
    ensure!(watch.validation_steps != Some(0), "--validation-steps is 0, expected 1 or more");
    ensure!(watch.validation_epochs != Some(0), "--validation-epochs is 0, expected 1 or more");
    ensure!(watch.num_validation_images > 0, "--num-validation-images is 0, expected 1 or more");
    ensure!(watch.num_inference_steps != Some(0), "--num-inference-steps is 0, expected 1 or more");
    Ok(())
}

/// Settings are written as TOML, whose whole numbers are signed.
fn check_numbers(arguments: &TrainArguments) -> Result<()> {
    let settings = serde_json::to_value(arguments)?;
    for (name, value) in settings.as_object().into_iter().flatten() {
        if let Some(number) = value.as_u64().filter(|number| i64::try_from(*number).is_err()) {
            bail!("--{} is {number}, expected at most {}", name.replace('_', "-"), i64::MAX);
        }
    }
    Ok(())
}

/// How many steps there are.
fn check_steps(arguments: &TrainArguments) -> Result<()> {
    let steps = &arguments.steps;
    ensure!(steps.max_train_steps != Some(0), "--max-train-steps is 0, expected 1 or more");
    ensure!(
        steps.num_train_epochs > 0 || steps.max_train_steps.is_some(),
        "--num-train-epochs is 0, expected 1 or more"
    );
    ensure!(steps.max_train_steps_ti > 0, "--max-train-steps-ti is 0, expected 1 or more");
    Ok(())
}

/// What is for pictures that come with others.
fn check_pairs(arguments: &TrainArguments) -> Result<()> {
    let recipe = arguments.recipe;
    let (prompts, images) = (&arguments.watch.validation_prompt, &arguments.watch.validation_image);
    for picture in images {
        let name = picture.to_string_lossy();
        ensure!(
            !["http://", "https://"].iter().any(|begin| name.starts_with(begin)),
            "--validation-image {name}: pictures are not fetched; save it, and give its file"
        );
        load_picture(picture)?;
    }
    if recipe.has_pairs() {
        ensure!(
            prompts.is_empty() == images.is_empty(),
            "--validation-prompt and --validation-image belong together in this recipe; give both"
        );
        ensure!(
            images.len() <= 1 || prompts.len() <= 1 || images.len() == prompts.len(),
            "--validation-prompt has {} prompts, --validation-image {} pictures; give as many, or one of either for all of the other",
            prompts.len(),
            images.len()
        );
        ensure!(!arguments.train_text_encoder, "--train-text-encoder is not for this recipe; leave it out");
    } else {
        ensure!(images.is_empty(), "--validation-image is for controlnet and instruct-pix2pix");
    }
    if let Some(share) = arguments.pairs.conditioning_dropout_prob {
        ensure!(
            (0.0..=1.0 / 3.0).contains(&share),
            "--conditioning-dropout-prob is {share}, expected 0 to a third: so much is left out three times"
        );
    }
    Ok(())
}

/// What would else be told without the name of its flag, or after a word has been learned.
fn check_pivotal(arguments: &TrainArguments) -> Result<()> {
    let pivotal = &arguments.pivotal;
    ensure!(
        pivotal.perform_inversion != Some(false),
        "--perform-inversion false: a LoRA without new words is what text-to-image-lora trains; take that recipe"
    );
    ensure!(
        pivotal.perform_inversion.is_none() || arguments.recipe == Recipe::PivotalTuning,
        "--perform-inversion is for pivotal-tuning, which learns new words and then a LoRA"
    );
    let flags = [
        ("--weight-decay-ti", pivotal.weight_decay_ti),
        ("--weight-decay-lora", pivotal.weight_decay_lora),
        ("--continue-inversion-lr", pivotal.continue_inversion_lr),
    ];
    for (flag, value) in flags.iter().filter_map(|(flag, value)| Some((flag, (*value)?))) {
        ensure!(value.is_finite() && value >= 0.0, "{flag} is {value}, expected 0 or more");
    }
    Ok(())
}

/// What is for some recipes' pictures alone.
fn check_pictures(arguments: &TrainArguments) -> Result<()> {
    let pictures = &arguments.pictures;
    if let Some(resolution) = pictures.resolution {
        ensure!(
            resolution <= MAX_RESOLUTION,
            "--resolution is {resolution}, expected at most {MAX_RESOLUTION} pixels"
        );
    }
    ensure!(
        !pictures.random_crop || arguments.recipe != Recipe::Controlnet,
        "--random-crop: controlnet cuts the middle out of all pictures, as diffusers' script does"
    );
    let has_no_masks = arguments.recipe.has_pairs()
        || matches!(arguments.recipe, Recipe::Unconditional | Recipe::CustomDiffusion);
    ensure!(
        !pictures.has_masks() || !has_no_masks,
        "--mask-column and --use-mask-captioned-data are for LoRAs, whole models and new words of Stable Diffusion"
    );
    ensure!(
        pictures.has_masks() || pictures.mask_temperature == 1.0,
        "--mask-temperature is for masks: give --mask-column or --use-mask-captioned-data"
    );
    ensure!(
        !pictures.has_buckets() || arguments.recipe != Recipe::CustomDiffusion || arguments.thing.noaug,
        "aspect-ratio buckets do not go with pictures that custom-diffusion shows larger and smaller at random: give --noaug"
    );
    ensure!(
        pictures.mask_temperature.is_finite() && pictures.mask_temperature >= 0.0,
        "--mask-temperature is {}, expected 0 or more",
        pictures.mask_temperature
    );
    Ok(())
}
