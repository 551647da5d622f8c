use serde_json::{Value, json};

use crate::config::DIFFUSERS_VERSION;
use crate::family::{Family, PredictionType, Task};

/// The `scheduler_config.json` of the published models of the family, for a model that predicts `prediction_type`.
///
/// As theirs it has settings also of schedulers that may take the place of its own by `from_config`: a DDIM that is not told
/// otherwise clips its samples.
///
/// `zero_terminal_snr`: the noise schedule was stretched to pure noise (Lin et al., "Common Diffusion Noise Schedules and Sample Steps
/// are Flawed").
pub(crate) fn scheduler_config(
    family: Family,
    task: Task,
    prediction_type: PredictionType,
    zero_terminal_snr: bool,
) -> Value {
    let mut config = json!({
        "_diffusers_version": DIFFUSERS_VERSION,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "num_train_timesteps": 1000,
        "prediction_type": prediction_type.name(),
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": null,
    });
    let (class, own) = match (family, task) {
        (Family::StableDiffusionXl | Family::StableDiffusionXlRefiner, _) => (
            "EulerDiscreteScheduler",
            json!({"interpolation_type": "linear", "timestep_type": "discrete", "use_karras_sigmas": false}),
        ),
        (_, Task::InstructPix2Pix) => ("EulerAncestralDiscreteScheduler", json!({})),
        (Family::StableDiffusion2, _) if prediction_type == PredictionType::VPrediction => {
            ("DDIMScheduler", json!({}))
        }
        (_, Task::Inpainting) => ("DDIMScheduler", json!({})),
        _ => ("PNDMScheduler", json!({})),
    };
    config["_class_name"] = json!(class);
    if let (Some(config), Value::Object(own)) = (config.as_object_mut(), own) {
        config.extend(own);
    }
    if zero_terminal_snr && class != "PNDMScheduler" {
        config["rescale_betas_zero_snr"] = json!(true);
        config["timestep_spacing"] = json!("trailing");
    }
    config
}
