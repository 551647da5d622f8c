//! What a backward through frozen layers holds: neither gradients of weights, nor inputs that no gradient needs. A test of its own, as it
//! counts all that the process holds.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor, Var};
use candle_diffusers_kernels::{Conv2dParams, PackedWeight, add};
use candle_diffusers_test_support::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

#[test]
fn frozen_layers_hold_neither_inputs_nor_gradients_of_weights() {
    const CHANNELS: usize = 128;
    const LAYERS: usize = 24;
    let random = |shape: &[usize]| (Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap() * 0.03).unwrap();
    let linears: Vec<_> =
        (0..LAYERS).map(|_| PackedWeight::pack(&random(&[CHANNELS, CHANNELS])).unwrap()).collect();
    let convolutions: Vec<_> =
        (0..LAYERS).map(|_| PackedWeight::pack(&random(&[CHANNELS, CHANNELS, 3, 3])).unwrap()).collect();
    let params = Conv2dParams { stride: 1, padding: 1 };
    let pixels = Var::from_tensor(&random(&[1, CHANNELS, 32, 32])).unwrap();
    let tokens = Var::from_tensor(&random(&[1, 1024, CHANNELS])).unwrap();
    let activation = 1024 * CHANNELS * DType::F32.size_in_bytes();
    let step = || {
        let before = ALLOCATOR.held();
        let (mut x, mut y) = (pixels.as_tensor().clone(), tokens.as_tensor().clone());
        for (linear, convolution) in linears.iter().zip(&convolutions) {
            x = add(&convolution.conv2d(&x, None, params).unwrap(), &x).unwrap();
            y = add(&linear.linear(&y, None).unwrap(), &y).unwrap();
        }
        let loss = (x.sum_all().unwrap() + y.sum_all().unwrap()).unwrap();
        drop((x, y));
        let after_forward = ALLOCATOR.held() - before;
        let (gradients, more) = ALLOCATOR.peak_of(|| loss.backward().unwrap());
        assert_eq!(gradients.get_ids().count(), 2, "there are two variables");
        (after_forward, after_forward + more)
    };
    // What threads keep for the next time is there then.
    step();
    let (after_forward, most) = step();
    println!("an activation has {activation} bytes; after the forward {after_forward}, at most {most}");
    // Of the 98 results of the layers, those that the loss was summed from, and no other.
    assert!(after_forward < 3 * activation, "{after_forward} bytes for activations of {activation}");
    // A few gradients at a time, and what products compute in.
    assert!(most < 16 * activation, "{most} bytes for activations of {activation}");
}
