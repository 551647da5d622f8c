//! Gradient checkpointing lowers the peak of a step. A test of its own, as it counts all that the process holds.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use candle_core::DType;
use candle_diffusers_loaders::LoadOptions;
use candle_diffusers_models::UNetConditions;
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::{CountingAllocator, numbers};
use candle_diffusers_training::{Gradients, ParameterGroup, WholeModel, new_unet, parameters};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const BATCH: usize = 4;
const SIDE: usize = 24;
const CHANNELS: usize = 32;
const TEXT: usize = 16;

#[test]
fn blocks_that_are_computed_again_take_less_than_half_of_the_memory() {
    // Three layers down, the middle and four up, all of one size, so that none holds much more than an eighth of all.
    let config = json!({
        "block_out_channels": [CHANNELS], "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"], "layers_per_block": 3, "norm_num_groups": 8,
        "attention_head_dim": 4, "cross_attention_dim": TEXT
    });
    let WholeModel { model, parameters: trained } =
        new_unet(&config, TorchGenerator::new(0), &LoadOptions::default()).unwrap();
    let groups = [ParameterGroup { parameters: trained, learning_rate: 1e-4, weight_decay: 0.0 }];
    let (sample, text) = (numbers(&[BATCH, 4, SIDE, SIDE], 1), numbers(&[BATCH, 8, TEXT], 2));
    let step = |gradient_checkpointing| {
        let conditions = UNetConditions { gradient_checkpointing, ..Default::default() };
        let (gradients, peak) = ALLOCATOR.peak_of(|| {
            let prediction = model.forward(&sample, &[500.0], &text, conditions).unwrap();
            let loss = prediction.sqr().unwrap().mean_all().unwrap();
            Gradients::of(&loss, &groups).unwrap()
        });
        assert!((0..gradients.len()).all(|index| gradients.get(index).is_some()));
        peak
    };
    // What threads keep for the next time is there then.
    step(false);
    step(true);
    let (kept, again) = (step(false), step(true));
    let activation = BATCH * SIDE * SIDE * CHANNELS * DType::F32.size_in_bytes();
    let weights: usize = parameters(&groups).map(|parameter| parameter.var.elem_count()).sum();
    println!(
        "an activation has {activation} bytes, all weights {}; at most {kept}, with gradient checkpointing {again}",
        weights * DType::F32.size_in_bytes()
    );
    // A layer keeps some 30 activations. With gradient checkpointing each keeps its input, up to three of these, and one at a time all others and
    // their gradients: about a third. Half leaves room for what products compute in and for the gradients of weights, which both hold.
    assert!(2 * again < kept, "{again} bytes, and {kept} without gradient checkpointing");
}
