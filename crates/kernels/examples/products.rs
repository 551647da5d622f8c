//! Times products at sizes that occur in Stable Diffusion 1.5: `products [REPETITIONS]` prints billions of operations a second.
//! `CANDLE_DIFFUSERS_CPU` (portable, avx2, avx512) and `RAYON_NUM_THREADS` choose what with.

use std::time::Instant;

use candle_core::{Device, Result, Tensor};
use candle_diffusers_kernels::{Conv2dParams, Level, PackedWeight};

/// Channels in and out, kernel, side of the picture, batch.
const CONVOLUTIONS: [[usize; 5]; 10] = [
    [320, 320, 3, 64, 2],
    [960, 320, 3, 64, 2],
    [640, 640, 3, 32, 2],
    [1280, 1280, 3, 16, 2],
    [1280, 1280, 3, 8, 2],
    [320, 320, 1, 64, 2],
    [512, 512, 3, 128, 1],
    [256, 256, 3, 256, 1],
    [128, 128, 3, 512, 1],
    [4, 320, 3, 64, 2],
];

/// Rows, features in and out.
const LINEAR: [[usize; 3]; 7] = [
    [8192, 320, 320],
    [8192, 320, 2560],
    [8192, 1280, 320],
    [2048, 640, 5120],
    [512, 5120, 1280],
    [154, 768, 320],
    [2, 1280, 1280],
];

fn main() -> Result<()> {
    let repetitions = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5);
    println!("{}, {} threads", Level::current()?.name(), rayon::current_num_threads());
    for [inputs, outputs, kernel, side, batch] in CONVOLUTIONS {
        let x = Tensor::randn(0f32, 1.0, (batch, inputs, side, side), &Device::Cpu)?;
        let weight = Tensor::randn(0f32, 1.0, (outputs, inputs, kernel, kernel), &Device::Cpu)?;
        let (weight, params) =
            (PackedWeight::pack(&weight)?, Conv2dParams { stride: 1, padding: kernel / 2 });
        let operations = 2 * batch * inputs * outputs * (kernel * side).pow(2);
        time(
            &format!("conv2d {kernel}x{kernel}, {inputs} to {outputs}, {side}x{side}"),
            repetitions,
            operations,
            || weight.conv2d(&x, None, params),
        )?;
    }
    for [rows, inputs, outputs] in LINEAR {
        let x = Tensor::randn(0f32, 1.0, (rows, inputs), &Device::Cpu)?;
        let weight = PackedWeight::pack(&Tensor::randn(0f32, 1.0, (outputs, inputs), &Device::Cpu)?)?;
        let operations = 2 * rows * inputs * outputs;
        time(&format!("linear, {rows} rows of {inputs} to {outputs}"), repetitions, operations, || {
            weight.linear(&x, None)
        })?;
    }
    Ok(())
}

/// Prints the median.
fn time(name: &str, repetitions: usize, operations: usize, run: impl Fn() -> Result<Tensor>) -> Result<()> {
    run()?;
    let mut seconds = Vec::new();
    for _ in 0..repetitions.max(1) {
        let start = Instant::now();
        run()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    println!("{name:<40} {:8.2} ms {:7.1} GFLOP/s", median * 1e3, operations as f64 / median / 1e9);
    Ok(())
}
