//! Comparison with the reference libraries: see CONTRIBUTING.md.

// Helpers of tests fail the test, as the tests themselves do.
#![allow(clippy::unwrap_used, clippy::panic)]

mod adamw;
mod adamw_8bit;
mod clip_gradients;
mod color_jitter;
mod controlnet;
mod custom_diffusion;
mod custom_diffusion_pictures;
mod dora;
mod ema;
mod inpainting;
mod instruct_pix2pix;
mod loss_mask;
mod lr_schedule;
mod masked_loss;
mod noise_and_loss;
mod picture_transforms;
mod pivotal_tuning;
mod sgd;
mod stable_diffusion;
mod ten_steps;
mod textual_inversion;
mod unconditional;

use candle_core::{Tensor, Var};
use candle_diffusers_training::{Parameter, ParameterGroup};

/// A group of parameters with these names and first values.
fn group(parameters: &[(&str, &Tensor)], learning_rate: f64, weight_decay: f64) -> ParameterGroup {
    let parameter = |(name, start): &(&str, &Tensor)| Parameter {
        name: name.to_string(),
        var: Var::from_tensor(start).unwrap(),
    };
    ParameterGroup { parameters: parameters.iter().map(parameter).collect(), learning_rate, weight_decay }
}
