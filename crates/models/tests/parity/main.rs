//! Parity with the reference library, a folder each: see CONTRIBUTING.md.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

mod attention_processors;
mod autoencoder_kl;
mod blocks;
mod clip_text;
mod control_net;
mod safety_checker;
mod unet_2d;
mod unet_2d_condition;
mod unet_blocks;
mod vq_model;

use std::collections::HashMap;

use candle_core::Tensor;
use candle_diffusers_models::layers::Layers;
use candle_diffusers_test_support::values;

/// Fails unless the model lists exactly the linear layers and convolutions of its state dict, each with the right tensors. Among tensors of two
/// dimensions, `tables` are those of embeddings.
#[track_caller]
fn assert_lists_all_layers(model: &dyn Layers, state_dict: &HashMap<String, Tensor>, tables: &[&str]) {
    let listed = model.layers();
    let mut names: Vec<String> = listed.iter().map(|(name, _)| format!("{name}.weight")).collect();
    for ((name, layer), weight) in listed.iter().zip(&names) {
        assert_eq!(values(&layer.weight()), values(&state_dict[weight]), "{weight}");
        let bias = state_dict.get(&format!("{name}.bias")).map(values);
        assert_eq!(layer.bias().as_ref().map(values), bias, "{name}.bias");
    }
    let is_layer =
        |(name, tensor): &(&String, &Tensor)| tensor.rank() > 1 && !tables.contains(&name.as_str());
    let mut expected: Vec<String> =
        state_dict.iter().filter(is_layer).map(|(name, _)| name.clone()).collect();
    names.sort_unstable();
    expected.sort_unstable();
    assert_eq!(names, expected);
}
