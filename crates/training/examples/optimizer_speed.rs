//! How long one step of each optimizer takes for as many parameters as Stable Diffusion 1.5's UNet has (or MILLIONS of them), all in one tensor:
//! `cargo run --release -p candle-diffusers-training --example optimizer_speed -- [MILLIONS]`.

use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use candle_diffusers_training::{
    AdamW, AdamW8bit, AdamWConfig, Gradients, Optimizer, Parameter, ParameterGroup, Sgd, SgdConfig,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let millions: usize = std::env::args().nth(1).map_or(Ok(860), |number| number.parse())?;
    let shape = (millions, 1_000_000);
    let adamw = AdamWConfig::default();
    let momentum = SgdConfig { momentum: 0.9, nesterov: false };
    for dtype in [DType::F32, DType::BF16] {
        let var = Var::from_tensor(&Tensor::full(0.5f32, shape, &Device::Cpu)?.to_dtype(dtype)?)?;
        let parameters = vec![Parameter { name: "weight".to_string(), var }];
        let groups = [ParameterGroup { parameters, learning_rate: 1e-4, weight_decay: 1e-2 }];
        let gradients =
            Gradients::new(vec![Some(Tensor::full(1e-3f32, shape, &Device::Cpu)?.copy()?)], &groups)?;
        let start = Instant::now();
        let norm = gradients.norm()?;
        println!("{millions} million {dtype:?}: norm {norm:.3} in {:.2} s", start.elapsed().as_secs_f64());
        for name in ["AdamW", "AdamW8bit", "SGD with momentum"] {
            let mut optimizer: Box<dyn Optimizer> = match name {
                "AdamW" => Box::new(AdamW::new(adamw)?),
                "AdamW8bit" => Box::new(AdamW8bit::new(adamw)?),
                _ => Box::new(Sgd::new(momentum)?),
            };
            // The first step also makes the state.
            optimizer.step(&groups, &gradients, 1.0)?;
            let mut seconds = Vec::new();
            for _ in 0..5 {
                let start = Instant::now();
                optimizer.step(&groups, &gradients, 1.0)?;
                seconds.push(start.elapsed().as_secs_f64());
            }
            seconds.sort_by(f64::total_cmp);
            println!("{name}, {millions} million {dtype:?}: {:.2} s a step, median of 5", seconds[2]);
        }
    }
    Ok(())
}
