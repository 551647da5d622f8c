//! Times products at sizes that occur in Stable Diffusion 1.5: `products [f32|f16|bf16] [REPETITIONS]` prints billions of operations a
//! second, of the quickest and of the median repetition. `CANDLE_DIFFUSERS_CPU` (portable, neon, avx2, avx512, avx512bf16, amx) and `RAYON_NUM_THREADS` choose what with.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use candle_diffusers_kernels::{Conv2dParams, Level, PackedWeight, PooledAllocator};

#[global_allocator]
static ALLOCATOR: PooledAllocator = PooledAllocator::new();

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

/// Weights to pack.
const PACKED: [&[usize]; 3] = [&[1280, 1280, 3, 3], &[320, 320, 3, 3], &[10240, 1280]];

fn main() -> Result<()> {
    let dtype = match std::env::args().nth(1).as_deref() {
        None | Some("f32") => DType::F32,
        Some("f16") => DType::F16,
        Some("bf16") => DType::BF16,
        Some(other) => candle_core::bail!("{other:?} is not f32, f16 or bf16"),
    };
    let repetitions = std::env::args().nth(2).and_then(|text| text.parse().ok()).unwrap_or(5);
    let random = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?.to_dtype(dtype);
    println!("{}, {}, {} threads", Level::current()?.name(), dtype.as_str(), rayon::current_num_threads());
    for [inputs, outputs, kernel, side, batch] in CONVOLUTIONS {
        let x = random(&[batch, inputs, side, side])?;
        let weight = random(&[outputs, inputs, kernel, kernel])?;
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
        let x = random(&[rows, inputs])?;
        let weight = PackedWeight::pack(&random(&[outputs, inputs])?)?;
        let operations = 2 * rows * inputs * outputs;
        time(&format!("linear, {rows} rows of {inputs} to {outputs}"), repetitions, operations, || {
            weight.linear(&x, None)
        })?;
    }
    for shape in PACKED {
        let weight = random(shape)?;
        let start = Instant::now();
        for _ in 0..repetitions {
            PackedWeight::pack(&weight)?;
        }
        let seconds = start.elapsed().as_secs_f64() / repetitions as f64;
        let bytes = weight.elem_count() * dtype.size_in_bytes();
        let name = format!("packing {shape:?}");
        println!("{name:<40} {:8.2} ms {:7.1} GB/s", seconds * 1e3, bytes as f64 / seconds / 1e9);
    }
    Ok(())
}

/// Prints the median, and the rates of the quickest and of the median.
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
    let rate = |seconds: f64| operations as f64 / seconds / 1e9;
    println!("{name:<40} {:8.2} ms {:7.1} {:7.1} GFLOP/s", median * 1e3, rate(seconds[0]), rate(median));
    Ok(())
}
