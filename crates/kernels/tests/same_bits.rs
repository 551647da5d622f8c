//! The same inputs give the same bits: whatever the number of threads, and whatever else is in the batch. At sizes of real
//! models, where the matrix library splits the work.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use candle_core::{Device, Result, Tensor};
use candle_diffusers_kernels::*;

/// Numbers from about -1 to 1 that look random and are the same in every process.
fn numbers(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

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

/// Prints a number for each result that changes with any of its bits; [`threads_do_not_change_a_bit`] runs it.
#[test]
#[ignore = "run by another test, in processes of their own"]
fn print_digests() {
    for (name, shape, operation) in OPERATIONS {
        let result = operation(&batch(shape).narrow(0, 0, 1).unwrap()).unwrap();
        let digest = bits(&result).iter().fold(14_695_981_039_346_656_037u64, |digest, word| {
            (digest ^ u64::from(*word)).wrapping_mul(1_099_511_628_211)
        });
        println!("digest of {name}: {digest:016x}");
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    // candle reads the number of threads from the environment, which a test cannot change within its process.
    let digests = |threads: &str| -> Vec<String> {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "print_digests", "--ignored", "--nocapture"])
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| line.contains("digest of")).map(str::to_string).collect()
    };
    let one = digests("1");
    assert_eq!(one.len(), OPERATIONS.len());
    for threads in ["2", "3", "7", "64"] {
        assert_eq!(one, digests(threads), "{threads} threads");
    }
}
