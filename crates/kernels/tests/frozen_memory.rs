//! What a backward through frozen layers holds: neither gradients of weights, nor inputs that no gradient needs. A test of its own, as it
//! counts all that the process holds.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use candle_core::{DType, Device, Tensor, Var};
use candle_diffusers_kernels::{Conv2dParams, PackedWeight, add};

/// The system's allocator, counting.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all memory is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        MOST.fetch_max(HELD.fetch_add(layout.size(), SeqCst) + layout.size(), SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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
        let before = HELD.load(SeqCst);
        let (mut x, mut y) = (pixels.as_tensor().clone(), tokens.as_tensor().clone());
        for (linear, convolution) in linears.iter().zip(&convolutions) {
            x = add(&convolution.conv2d(&x, None, params).unwrap(), &x).unwrap();
            y = add(&linear.linear(&y, None).unwrap(), &y).unwrap();
        }
        let loss = (x.sum_all().unwrap() + y.sum_all().unwrap()).unwrap();
        drop((x, y));
        let after_forward = HELD.load(SeqCst) - before;
        MOST.store(HELD.load(SeqCst), SeqCst);
        let gradients = loss.backward().unwrap();
        let most = MOST.load(SeqCst) - before;
        assert_eq!(gradients.get_ids().count(), 2, "there are two variables");
        (after_forward, most)
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
