//! Times the operations that are no products at the sizes of Stable Diffusion 1.5, in turn with candle's own, which compute what is to be
//! differentiated: `cargo run --release --example elementwise`. The least of seven runs each.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_diffusers_kernels::*;

#[global_allocator]
static ALLOCATOR: PooledAllocator = PooledAllocator::new();

type Operation = (&'static str, &'static [usize], fn(&Tensor) -> Result<Tensor>);

const OPERATIONS: &[Operation] = &[
    ("group_norm_silu, 320 channels of 64x64", &[2, 320, 64, 64], |x| {
        let ones = Tensor::ones(320, DType::F32, &Device::Cpu)?;
        group_norm_silu(x, 32, &ones, &ones, 1e-5)
    }),
    ("group_norm_silu, 128 channels of 512x512", &[1, 128, 512, 512], |x| {
        let ones = Tensor::ones(128, DType::F32, &Device::Cpu)?;
        group_norm_silu(x, 32, &ones, &ones, 1e-5)
    }),
    ("layer_norm, 320 features", &[2, 4096, 320], |x| {
        let ones = Tensor::ones(320, DType::F32, &Device::Cpu)?;
        layer_norm(x, &ones, &ones, 1e-5)
    }),
    ("geglu, 1280 features", &[2, 4096, 2560], geglu),
    ("silu", &[2, 320, 64, 64], silu),
    ("add", &[2, 320, 64, 64], |x| add(x, x)),
    ("cat", &[2, 320, 64, 64], |x| cat(&[x, x], 1)),
    ("pixels_to_tokens", &[2, 320, 64, 64], pixels_to_tokens),
    ("upsample_nearest2d to 256x256", &[1, 512, 128, 128], upsample_nearest2d),
];

fn main() -> Result<()> {
    println!("level {:?}, {} threads; milliseconds", Level::current()?, rayon::current_num_threads());
    for (name, shape, operation) in OPERATIONS {
        let plain = Tensor::randn(0f32, 1.0, *shape, &Device::Cpu)?;
        let variable = Var::from_tensor(&plain)?;
        let (half, brain) = (plain.to_dtype(DType::F16)?, plain.to_dtype(DType::BF16)?);
        let inputs = [&plain, variable.as_tensor(), &half, &brain];
        let mut least = [f64::INFINITY; 4];
        for _ in 0..7 {
            for (least, input) in least.iter_mut().zip(inputs) {
                let start = Instant::now();
                operation(input)?;
                *least = least.min(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        let [ours, candle, half, brain] = least;
        println!("{name:42} {ours:8.2}, candle {candle:8.2}, float16 {half:8.2}, bfloat16 {brain:8.2}");
    }
    Ok(())
}
