//! Another noise schedule than the model's own.

use anyhow::{Result, ensure};
use candle_diffusers_pipelines::StableDiffusionPipeline;
use serde_json::{Map, json};

use super::TrainArguments;
use crate::terminal;

/// Gives the models the schedule that they are taught, and that validation pictures are painted by. Training reads it as DDPM's.
pub(super) fn set(arguments: &TrainArguments, models: &mut StableDiffusionPipeline) -> Result<()> {
    let mut fields = Map::new();
    if let Some(kind) = &arguments.noise.prediction_type {
        ensure!(
            ["epsilon", "v_prediction", "sample"].contains(&kind.as_str()),
            "--prediction-type is {kind}; expected epsilon, v_prediction or sample"
        );
        fields.insert("prediction_type".to_string(), json!(kind));
    }
    if arguments.noise.rescale_betas_zero_snr {
        fields.insert("rescale_betas_zero_snr".to_string(), json!(true));
        // By the paper (<https://arxiv.org/abs/2305.08891>) the first step of painting must begin at the last timestep.
        fields.insert("timestep_spacing".to_string(), json!("trailing"));
    }
    if fields.is_empty() {
        return Ok(());
    }
    let config = models.scheduler().config();
    // Not all schedulers can begin at noise alone; DDIM can.
    let class = match arguments.noise.rescale_betas_zero_snr {
        true => "DDIMScheduler",
        false => config["_class_name"].as_str().unwrap_or("DDIMScheduler"),
    };
    models.set_scheduler(class, &fields)?;
    let predicted = models.scheduler().config()["prediction_type"].clone();
    if arguments.noise.rescale_betas_zero_snr && predicted == "epsilon" {
        terminal::note(
            "warning: --rescale-betas-zero-snr without --prediction-type v_prediction: at the last timestep there is nothing but noise to learn from",
        );
    }
    Ok(())
}
