//! The same inputs give the same bits: whatever the number of threads, and whatever else is in the batch. At sizes of real
//! models, where the matrix library splits the work.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use candle_core::{Result, Tensor};
use candle_diffusers_kernels::*;
use candle_diffusers_test_support::{assert_threads_change_no_bit, numbers};

/// The operations of a UNet with 320 channels on 64x64 latents, and of a text encoder; each takes a batch.
type Operation = (&'static str, &'static [usize], fn(&Tensor) -> Result<Tensor>);

const OPERATIONS: &[Operation] = &[
    ("conv2d 3x3", &[320, 64, 64], |x| {
        conv2d(x, &numbers(&[64, 320, 3, 3], 1), None, Conv2dParams { stride: 1, padding: 1 })
    }),
    ("conv2d 3x3 of another size", &[24, 37, 51], |x| {
        conv2d(x, &numbers(&[320, 24, 3, 3], 2), None, Conv2dParams { stride: 2, padding: 1 })
    }),
    ("conv2d 1x1", &[320, 64, 64], |x| {
        conv2d(x, &numbers(&[320, 320, 1, 1], 3), None, Conv2dParams { stride: 1, padding: 0 })
    }),
    ("linear on pixels", &[4096, 320], |x| linear(x, &numbers(&[960, 320], 4), None)),
    ("linear on words", &[77, 768], |x| linear(x, &numbers(&[1111, 768], 5), None)),
    ("linear on a vector", &[1280], |x| linear(x, &numbers(&[1280, 1280], 6), None)),
    ("self-attention", &[1024, 320], |x| attention(x, x, x, 8, 0.2, None)),
    ("cross-attention", &[4096, 320], |x| {
        let text = numbers(&[1, 77, 320], 7).repeat((x.dim(0)?, 1, 1))?;
        attention(x, &text, &text, 5, 0.2, None)
    }),
    ("group_norm_silu", &[320, 64, 64], |x| {
        group_norm_silu(x, 32, &numbers(&[320], 8), &numbers(&[320], 9), 1e-5)
    }),
    ("layer_norm", &[4096, 320], |x| layer_norm(x, &numbers(&[320], 10), &numbers(&[320], 11), 1e-5)),
    ("geglu", &[4096, 320], geglu),
];

/// A batch of three of an operation's inputs.
fn batch(shape: &[usize]) -> Tensor {
    numbers(&[&[3], shape].concat(), 12)
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_batch_gives_the_bits_of_its_items() {
    for (name, shape, operation) in OPERATIONS {
        let batch = batch(shape);
        let together = operation(&batch).unwrap();
        for item in 0..3 {
            let alone = operation(&batch.narrow(0, item, 1).unwrap()).unwrap();
            assert!(bits(&alone) == bits(&together.narrow(0, item, 1).unwrap()), "{name}, item {item}");
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let results = OPERATIONS.iter().map(|(name, shape, operation)| {
        (name.to_string(), operation(&batch(shape).narrow(0, 0, 1).unwrap()).unwrap())
    });
    assert_threads_change_no_bit("threads_do_not_change_a_bit", &[2, 3, 7, 64], results);
}
