//! What is done to the noise, and how timesteps are weighed.

use clap::Args;
use serde::Serialize;

use super::STEPS;

/// Noise and loss.
#[derive(Debug, Args, Serialize)]
pub(crate) struct NoiseArguments {
    /// Weigh timesteps by min(SNR, X); 5 is usual
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = STEPS)]
    pub(crate) snr_gamma: Option<f64>,
    /// How much one number for each channel adds to its noise; 0.1 is usual
    #[arg(long, value_name = "X", default_value_t = 0.0, default_value_if("offset_noise", "true", "0.1"), allow_negative_numbers = true, help_heading = STEPS)]
    pub(crate) noise_offset: f64,
    /// As --noise-offset 0.1, which diffusers' script for DreamBooth calls so
    #[arg(long, help_heading = STEPS)]
    #[serde(skip)]
    pub(crate) offset_noise: bool,
    /// How much more noise pictures get than is to be found; 0.1 is usual
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true, help_heading = STEPS)]
    pub(crate) input_perturbation: f64,
    /// What the model is taught to predict: epsilon, v_prediction or sample [default: what it predicts; epsilon where it is new]
    #[arg(long, value_name = "KIND", help_heading = STEPS)]
    pub(crate) prediction_type: Option<String>,
    /// Let the last timestep be noise alone, so that very dark and very bright pictures can be learned; for v_prediction
    #[arg(long, alias = "zero-terminal-snr", help_heading = STEPS)]
    pub(crate) rescale_betas_zero_snr: bool,
}
