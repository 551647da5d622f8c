//! Diffusion without texts (diffusers' `examples/unconditional_image_generation/train_unconditional.py`): a `UNet2DModel` learns to take noise out of pictures
//! themselves.

use std::path::Path;

use candle_core::{DType, Tensor};
use candle_diffusers_models::UNet2DModel;
use candle_diffusers_schedulers::{PredictionType, Scheduler, scheduler_from_config};
use serde_json::{Value, json};

use crate::checkpoint::save_json;
use crate::error::{Error, Result};
use crate::loss::{LossOptions, loss};
use crate::loss_weights::{LossWeighting, loss_weights};
use crate::noise::{NoiseOptions, draw_noise, draw_timesteps};
use crate::parameters::Parameter;
use crate::processes::RandomSource;
use crate::targets::training_target;
use crate::whole_models::save_component;

/// The noise and what the model predicts; the default is that of diffusers' script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnconditionalOptions {
    /// `DDPMScheduler` or `DDIMScheduler`: both add the same noise; pictures are then painted by the one that was trained with.
    pub scheduler: String,
    /// How many noise levels there are (`ddpm_num_steps`).
    pub num_train_timesteps: usize,
    /// How the noise grows (`ddpm_beta_schedule`).
    pub beta_schedule: String,
    /// `epsilon`, `sample` or `v_prediction`.
    pub prediction_type: String,
    /// What the UNet computes in; noise and loss are those of the pictures.
    pub compute_dtype: DType,
}

impl Default for UnconditionalOptions {
    fn default() -> Self {
        Self {
            scheduler: "DDPMScheduler".to_string(),
            num_train_timesteps: 1000,
            beta_schedule: "linear".to_string(),
            prediction_type: "epsilon".to_string(),
            compute_dtype: DType::F32,
        }
    }
}

/// What computes losses.
pub struct UnconditionalDenoising<'a> {
    unet: &'a UNet2DModel,
    scheduler: Box<dyn Scheduler>,
    compute_dtype: DType,
}

impl<'a> UnconditionalDenoising<'a> {
    /// # Errors
    /// When the options name a scheduler of another kind, or one has no such setting.
    pub fn new(unet: &'a UNet2DModel, options: &UnconditionalOptions) -> Result<Self> {
        if !PIPELINES.iter().any(|(scheduler, _)| *scheduler == options.scheduler) {
            let (found, expected) =
                (format!("{:?}", options.scheduler), "DDPMScheduler or DDIMScheduler".to_string());
            return Err(Error::Field { field: "scheduler", found, expected });
        }
        let scheduler = scheduler_from_config(&json!({
            "_class_name": options.scheduler,
            "num_train_timesteps": options.num_train_timesteps,
            "beta_schedule": options.beta_schedule,
            "prediction_type": options.prediction_type,
        }))?;
        Ok(Self { unet, scheduler, compute_dtype: options.compute_dtype })
    }

    /// The loss of pictures `(batch, channels, height, width)`, from -1 to 1, in float32 and on the UNet's device. Random numbers are drawn in the script's order: the
    /// noise's, then the timesteps'.
    ///
    /// Where the model predicts the sample, each picture counts by its signal-to-noise ratio (<https://arxiv.org/abs/2202.00512>), as in the script.
    ///
    /// # Errors
    /// When the pictures do not fit the UNet.
    pub fn loss(&self, pixel_values: &Tensor, generator: &mut dyn RandomSource) -> Result<Tensor> {
        let Self { unet, scheduler, compute_dtype } = self;
        let noise = draw_noise(pixel_values, &NoiseOptions::default(), generator)?;
        let batch = pixel_values.dims()[0];
        let timesteps = draw_timesteps(batch, scheduler.num_train_timesteps(), generator)?;
        let noisy = scheduler.add_noise(pixel_values, &noise.added, &timesteps)?;
        let prediction = unet.forward(&noisy.to_dtype(*compute_dtype)?, &timesteps, None)?;
        let prediction = prediction.to_dtype(pixel_values.dtype())?;
        let target = training_target(scheduler.as_ref(), pixel_values, &noise.target, &timesteps)?;
        let weighting = match scheduler.prediction_type() {
            PredictionType::Sample => LossWeighting::Snr,
            _ => LossWeighting::Uniform,
        };
        let weights = loss_weights(scheduler.as_ref(), &timesteps, weighting)?;
        loss(&prediction, &target, &LossOptions { weights: weights.as_ref(), ..Default::default() })
    }

    /// Where the noise comes from, and what paints what was learned.
    pub fn scheduler(&self) -> &dyn Scheduler {
        self.scheduler.as_ref()
    }
}

/// The UNet that the script makes where it is given none: 114 million weights, for pictures of `resolution` by `resolution` pixels, a multiple of 32.
pub fn default_unet_2d_config(resolution: usize) -> Value {
    json!({
        "_class_name": "UNet2DModel",
        "_diffusers_version": DIFFUSERS,
        "sample_size": resolution,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 2,
        "block_out_channels": [128, 128, 256, 256, 512, 512],
        "down_block_types":
            ["DownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"],
    })
}

/// Writes a folder that diffusers and [`UnconditionalPipeline`](candle_diffusers_pipelines::UnconditionalPipeline) open: a `DDPMPipeline` or, after training with that
/// scheduler, a `DDIMPipeline`. `config` is the UNet's, and of `parameters` those count that begin with `unet`.
///
/// # Errors
/// When the folder cannot be written, or the scheduler is another.
pub fn save_unconditional(
    folder: &Path,
    config: &Value,
    parameters: &[Parameter],
    scheduler: &dyn Scheduler,
) -> Result<()> {
    let mut scheduler_config = scheduler.config();
    let class = scheduler_config["_class_name"].as_str().unwrap_or_default().to_string();
    let Some((_, pipeline)) = PIPELINES.iter().find(|(scheduler, _)| *scheduler == class) else {
        let expected = "DDPMScheduler or DDIMScheduler".to_string();
        return Err(Error::Field { field: "scheduler", found: class, expected });
    };
    if let Some(fields) = scheduler_config.as_object_mut() {
        // Only a config in memory says which of its fields nobody has set.
        fields.remove("_use_default_values");
        fields.insert("_diffusers_version".to_string(), DIFFUSERS.into());
    }
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        fields.entry("_class_name").or_insert("UNet2DModel".into());
    }
    let io = |error: std::io::Error| Error::File {
        file: folder.display().to_string(),
        problem: error.to_string(),
    };
    std::fs::create_dir_all(folder.join("scheduler")).map_err(io)?;
    save_json(&folder.join("scheduler/scheduler_config.json"), &scheduler_config)?;
    let unet = folder.join("unet");
    save_component(&unet, "diffusion_pytorch_model.safetensors", &config, "unet", parameters)?;
    // Last, so that a folder that has one is whole.
    save_json(
        &folder.join("model_index.json"),
        &json!({
            "_class_name": pipeline,
            "_diffusers_version": DIFFUSERS,
            "scheduler": ["diffusers", class],
            "unet": ["diffusers", "UNet2DModel"],
        }),
    )
}

/// The version of diffusers whose files these are.
const DIFFUSERS: &str = "0.42.1";

/// Which pipeline paints by which scheduler.
const PIPELINES: [(&str, &str); 2] = [("DDPMScheduler", "DDPMPipeline"), ("DDIMScheduler", "DDIMPipeline")];
