#![doc = include_str!("../README.md")]

mod backward_pass;
mod checkpoint;
pub mod dataset;
mod ema;
mod error;
mod gradients;
mod lora;
mod loss;
mod loss_mask;
mod loss_weights;
mod lr_schedule;
mod noise;
mod optimizer;
mod parameters;
mod processes;
mod random_init;
pub mod recipes;
mod row_length;
mod targets;
mod trainer;
mod values;
mod whole_models;

pub use checkpoint::{Checkpoint, Checkpoints, save_tensors};
pub use ema::{EmaConfig, EmaModel};
pub use error::{Error, Result};
pub use gradients::Gradients;
pub use lora::{
    LoraConfig, LoraInit, TEXT_ENCODER_TARGETS, TargetModules, TrainedLora, UNET_TARGETS, save_lora,
};
pub use loss::{LossOptions, loss};
pub use loss_mask::loss_mask;
pub use loss_weights::{LossWeighting, loss_weights};
pub use lr_schedule::{LrSchedule, LrScheduleName, LrScheduleOptions};
pub use noise::{Noise, NoiseOptions, draw_noise, draw_timesteps};
pub use optimizer::{AdamW, AdamW8bit, AdamWConfig, MIN_8BIT_SIZE, Optimizer, Sgd, SgdConfig};
pub use parameters::{Parameter, ParameterGroup, check_parameters, parameters};
#[cfg(feature = "mpi")]
pub use processes::MpiProcesses;
#[cfg(feature = "nccl")]
pub use processes::NcclProcesses;
pub use processes::{BatchShare, GradientBuckets, OneProcess, Processes, RandomSource, ShareOfRandom};
pub use targets::training_target;
pub use trainer::{StepReport, Trainer, TrainerOptions};
pub use whole_models::{
    WholeModel, new_text_encoder, new_unet, new_unet_2d, new_vae, save_component, trainable_text_encoder,
    trainable_unet, trainable_unet_2d,
};
