//! Times attention at the sizes of Stable Diffusion 1.5 and its autoencoder: `cargo run --release --example attention`.
//!
//! The best of several runs, and what the same takes by candle's operations (which compute where a variable is involved), in turn.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_diffusers_kernels::attention;

const RUNS: usize = 5;

fn main() -> Result<()> {
    println!("{:40} {:>10} {:>10} {:>10}", "", "ms", "GFLOP/s", "candle ms");
    for (batch, queries, keys, heads, dim) in [
        (2, 4096, 4096, 8, 40),
        (2, 1024, 1024, 8, 80),
        (2, 256, 256, 8, 160),
        (2, 4096, 77, 8, 40),
        (2, 1024, 77, 8, 80),
        (2, 4096, 4096, 10, 64),
        (1, 4096, 4096, 1, 512),
    ] {
        for dtype in [DType::F32, DType::BF16] {
            let tokens =
                |count| Tensor::randn(0f32, 1.0, (batch, count, heads * dim), &Device::Cpu)?.to_dtype(dtype);
            let (query, key, value) = (tokens(queries)?, tokens(keys)?, tokens(keys)?);
            let variable = Var::from_tensor(&query)?;
            let scale = (dim as f64).powf(-0.5);
            let (mut ours, mut candles) = (Duration::MAX, Duration::MAX);
            for run in 0..RUNS {
                let start = Instant::now();
                attention(&query, &key, &value, heads, scale, None)?;
                ours = ours.min(start.elapsed());
                if run < 2 {
                    let start = Instant::now();
                    attention(&variable, &key, &value, heads, scale, None)?;
                    candles = candles.min(start.elapsed());
                }
            }
            let operations = 4.0 * (batch * heads * queries * keys * dim) as f64;
            println!(
                "{:40} {:10.2} {:10.0} {:10.2}",
                format!("{batch} x {queries} x {keys}, {heads} heads of {dim}, {}", dtype.as_str()),
                ours.as_secs_f64() * 1e3,
                operations / ours.as_secs_f64() * 1e-9,
                candles.as_secs_f64() * 1e3,
            );
        }
    }
    Ok(())
}
