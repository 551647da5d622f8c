//! Flags that guides for diffusers' scripts and cloneofsimo's lora print, and that there is nothing to do for here; and those that need another one.

use clap::Args;

use super::{OptimizerName, Recipe, ReportTo, TrainArguments};
use crate::terminal;

/// They are taken, so that a command can be copied, and what becomes of them is said.
#[derive(Debug, Args)]
pub(crate) struct WithoutEffect {
    #[arg(long, hide = true)]
    enable_xformers_memory_efficient_attention: bool,
    #[arg(long, hide = true)]
    enable_npu_flash_attention: bool,
    #[arg(long, hide = true)]
    allow_tf32: bool,
    #[arg(long, hide = true)]
    set_grads_to_none: bool,
    #[arg(long, hide = true)]
    foreach_ema: bool,
    #[arg(long, hide = true)]
    offload_ema: bool,
    #[arg(long, hide = true)]
    pre_compute_text_embeddings: bool,
    #[arg(long, hide = true)]
    push_to_hub: bool,
    #[arg(long, hide = true)]
    hub_private_repo: bool,
    #[arg(long, hide = true, value_name = "ID")]
    hub_model_id: Option<String>,
    #[arg(long, hide = true, value_name = "TOKEN")]
    hub_token: Option<String>,
    #[arg(long, hide = true, value_name = "FOLDER")]
    cache_dir: Option<String>,
    #[arg(long, hide = true, value_name = "N")]
    dataloader_num_workers: Option<usize>,
    #[arg(long, hide = true, value_name = "N")]
    sample_batch_size: Option<usize>,
    #[arg(long, hide = true, value_name = "N")]
    save_model_epochs: Option<u64>,
    #[arg(long, hide = true, value_name = "N")]
    save_steps: Option<u64>,
    #[arg(long, hide = true)]
    save_as_full_pipeline: bool,
    #[arg(long, hide = true)]
    only_save_embeds: bool,
    #[arg(long, hide = true)]
    skip_save_text_encoder: bool,
    #[arg(long, hide = true)]
    no_safe_serialization: bool,
    #[arg(long, hide = true)]
    overwrite_output_dir: bool,
    #[arg(long, hide = true, value_name = "TYPE")]
    prior_generation_precision: Option<String>,
    #[arg(long, hide = true, value_name = "CLASS")]
    validation_scheduler: Option<String>,
    #[arg(long, hide = true, value_name = "NAME")]
    tracker_project_name: Option<String>,
    #[arg(long, hide = true, value_name = "N")]
    local_rank: Option<i64>,
    #[arg(long, hide = true, value_name = "DEVICE")]
    device: Option<String>,
    #[arg(long, hide = true)]
    train_inpainting: bool,
}

/// Whether a flag is given, what it is called, and why it changes nothing.
type Flag = (bool, &'static str, &'static str);

impl WithoutEffect {
    /// Says of each flag that is given why it changes nothing; `arguments` are all of the command line.
    pub(crate) fn tell(&self, arguments: &TrainArguments) {
        let flags = [
            self.of_computing(),
            self.of_the_hub(),
            self.of_files(),
            self.of_pictures(),
            of_learning_rates(arguments),
            of_the_optimizer(arguments),
            of_watching(arguments),
        ]
        .concat();
        for (_, flag, reason) in flags.iter().filter(|(is_given, ..)| *is_given) {
            terminal::note(&format!("{flag} changes nothing: {reason}"));
        }
    }

    fn of_computing(&self) -> Vec<Flag> {
        const ATTENTION: &str = "attention never stores its scores here";
        const GPUS: &str = "it is for GPUs";
        vec![
            (
                self.enable_xformers_memory_efficient_attention,
                "--enable-xformers-memory-efficient-attention",
                ATTENTION,
            ),
            (self.enable_npu_flash_attention, "--enable-npu-flash-attention", ATTENTION),
            (self.allow_tf32, "--allow-tf32", GPUS),
            (self.set_grads_to_none, "--set-grads-to-none", "gradients are never kept"),
            (self.foreach_ema, "--foreach-ema", GPUS),
            (self.offload_ema, "--offload-ema", GPUS),
            (
                self.pre_compute_text_embeddings,
                "--pre-compute-text-embeddings",
                "texts are encoded once wherever the text encoder is not trained",
            ),
            (self.local_rank.is_some(), "--local-rank", "mpirun says which process is which"),
            (self.device.is_some(), "--device", "it is the one that the program was built for"),
        ]
    }

    fn of_the_hub(&self) -> Vec<Flag> {
        const HUB: &str = "nothing is sent anywhere; the output folder is what would be";
        vec![
            (self.push_to_hub, "--push-to-hub", HUB),
            (self.hub_private_repo, "--hub-private-repo", HUB),
            (self.hub_model_id.is_some(), "--hub-model-id", HUB),
            (self.hub_token.is_some(), "--hub-token", HUB),
            (self.cache_dir.is_some(), "--cache-dir", "models of the hub are kept where HF_HOME says"),
        ]
    }

    fn of_files(&self) -> Vec<Flag> {
        const CHECKPOINTS: &str = "--checkpointing-steps says when what is learned is written";
        const WORD: &str = "a word is written alone, for diffuse generate --embedding";
        vec![
            (self.save_model_epochs.is_some(), "--save-model-epochs", CHECKPOINTS),
            (self.save_steps.is_some(), "--save-steps", CHECKPOINTS),
            (self.save_as_full_pipeline, "--save-as-full-pipeline", WORD),
            (self.only_save_embeds, "--only-save-embeds", WORD),
            (
                self.skip_save_text_encoder,
                "--skip-save-text-encoder",
                "a whole model is written with all its parts",
            ),
            (
                self.no_safe_serialization,
                "--no-safe-serialization",
                "all weights are written as .safetensors",
            ),
            (self.overwrite_output_dir, "--overwrite-output-dir", "results of an earlier run are replaced"),
            (
                self.tracker_project_name.is_some(),
                "--tracker-project-name",
                "event files go to --logging-dir",
            ),
        ]
    }

    fn of_pictures(&self) -> Vec<Flag> {
        vec![
            (
                self.dataloader_num_workers.is_some(),
                "--dataloader-num-workers",
                "pictures are read ahead on a thread of their own",
            ),
            (self.sample_batch_size.is_some(), "--sample-batch-size", "each picture is painted by itself"),
            (
                self.prior_generation_precision.is_some(),
                "--prior-generation-precision",
                "pictures of the class are painted in the precision that is trained in",
            ),
            (
                self.validation_scheduler.is_some(),
                "--validation-scheduler",
                "validation pictures are painted by the scheduler of the model",
            ),
            (
                self.train_inpainting,
                "--train-inpainting",
                "a model that was made for inpainting is taught to inpaint, and no other",
            ),
        ]
    }
}

// What says the same as leaving a flag out goes: a run's settings.toml has all of them.

fn of_learning_rates(arguments: &TrainArguments) -> Vec<Flag> {
    const NO_WARMUP: &str =
        "constant and piecewise_constant have no warm-up; give --lr-scheduler constant_with_warmup";
    let (steps, pivotal) = (&arguments.steps, &arguments.pivotal);
    let schedules = [steps.lr_scheduler.as_str(), arguments.lr_scheduler_lora()];
    let rises = |name: &str| !["constant", "piecewise_constant"].contains(&name);
    vec![
        (steps.lr_warmup_steps != 0 && !schedules.into_iter().any(rises), "--lr-warmup-steps", NO_WARMUP),
        (
            pivotal.lr_warmup_steps_lora.is_some_and(|steps| steps != 0)
                && !rises(arguments.lr_scheduler_lora()),
            "--lr-warmup-steps-lora",
            "constant and piecewise_constant have no warm-up; give --lr-scheduler-lora constant_with_warmup",
        ),
        (
            steps.lr_num_cycles != 1 && !schedules.contains(&"cosine_with_restarts"),
            "--lr-num-cycles",
            "no other schedule falls several times; give --lr-scheduler cosine_with_restarts",
        ),
        (
            steps.lr_power != 1.0 && !schedules.contains(&"polynomial"),
            "--lr-power",
            "no other schedule has an exponent; give --lr-scheduler polynomial",
        ),
    ]
}

fn of_the_optimizer(arguments: &TrainArguments) -> Vec<Flag> {
    const ADAM: &str = "it is AdamW's; --optimizer sgd has --momentum";
    let optimizer = &arguments.optimizer;
    let is_sgd = optimizer.optimizer == OptimizerName::Sgd;
    vec![
        (is_sgd && optimizer.adam_beta1 != 0.9, "--adam-beta1", ADAM),
        (is_sgd && optimizer.adam_beta2 != 0.999, "--adam-beta2", ADAM),
        (is_sgd && optimizer.adam_epsilon != 1e-8, "--adam-epsilon", ADAM),
    ]
}

fn of_watching(arguments: &TrainArguments) -> Vec<Flag> {
    let watch = &arguments.watch;
    let is_not_painted = !arguments.is_looked_at();
    let reason = match arguments.recipe {
        Recipe::Unconditional => "nothing is painted without --validation-steps or --validation-epochs",
        _ => "nothing is painted without --validation-prompt",
    };
    vec![
        (is_not_painted && watch.validation_steps.is_some(), "--validation-steps", reason),
        (is_not_painted && watch.validation_epochs.is_some(), "--validation-epochs", reason),
        (is_not_painted && watch.num_validation_images != 4, "--num-validation-images", reason),
        (
            watch.report_to == ReportTo::None && watch.logging_dir.as_os_str() != "logs",
            "--logging-dir",
            "nothing is written there without --report-to tensorboard",
        ),
    ]
}
