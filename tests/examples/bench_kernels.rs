//! This project's side of the kernels in `cargo xtask bench`: `bench_kernels KERNELS f32|bf16`, where KERNELS is `xtask/bench/kernels.json`.
//!
//! Says that it is ready with a line of JSON, and answers each name on standard input by running that kernel once, which is prepared when it is
//! first asked for. `peak` is answered with the most operations a second that the processor can do.

use std::io::{BufRead, Write};
use std::sync::mpsc::channel;
use std::time::Instant;
use std::{env, fs, io};

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor, Var};
use candle_diffusers_kernels::{
    Conv2dParams, GradientHook, PackedWeight, PooledAllocator, add, attention, compute_with_this_thread,
    geglu, group_norm_silu, layer_norm, peak_operations_per_second, softmax_last_dim, upsample_nearest2d,
};
use candle_diffusers_test_support::peak_bytes;
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: PooledAllocator = PooledAllocator::new();

const GROUPS: usize = 32;
const EPS: f64 = 1e-5;

fn main() -> Result<()> {
    compute_with_this_thread();
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [kernels, dtype] = &arguments[..] else { bail!("usage: bench_kernels KERNELS f32|bf16") };
    let kernels: Value = serde_json::from_str(&fs::read_to_string(kernels)?)?;
    let dtype = match dtype.as_str() {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        other => bail!("{other:?} is not f32 or bf16"),
    };
    answer(json!({ "ready": true }))?;
    let mut prepared: Option<(String, Kernel)> = None;
    for line in io::stdin().lock().lines() {
        let line = line?;
        if line == "peak" {
            answer(json!({ "operations_per_second": peak_operations_per_second(dtype)? }))?;
            continue;
        }
        let kernel = match prepared.take() {
            Some((name, kernel)) if name == line => kernel,
            _ => {
                let kernel = Kernel::prepare(&kernels[&line], dtype).with_context(|| line.clone())?;
                (kernel.run)()?;
                kernel
            }
        };
        let start = Instant::now();
        (kernel.run)()?;
        let seconds = start.elapsed().as_secs_f64();
        answer(json!({ "seconds": seconds, "peak_bytes": peak_bytes(), "operations": kernel.operations }))?;
        prepared = Some((line, kernel));
    }
    Ok(())
}

fn answer(value: Value) -> Result<()> {
    println!("{value}");
    Ok(io::stdout().flush()?)
}

struct Kernel {
    run: Box<dyn Fn() -> candle_core::Result<Tensor>>,
    /// Multiplications and additions of its products; 0 where it has none.
    operations: usize,
}

impl Kernel {
    fn prepare(kernel: &Value, dtype: DType) -> Result<Self> {
        let random = |name: &str| -> Result<Tensor> {
            let shape: Vec<usize> = serde_json::from_value(kernel[name].clone()).context("no such kernel")?;
            Ok(Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?.to_dtype(dtype)?)
        };
        let number =
            |name: &str| kernel[name].as_u64().context("a number is missing").map(|number| number as usize);
        let operation = kernel["operation"].as_str().context("no such kernel")?;
        if operation == "attention" {
            let (queries, heads) = (random("queries")?, number("heads")?);
            // Of itself where no keys are given.
            let keys = kernel.get("keys").map(|_| random("keys")).transpose()?;
            let operations = 4 * queries.elem_count() * keys.as_ref().unwrap_or(&queries).dim(1)?;
            let scale = ((queries.dim(2)? / heads) as f64).powf(-0.5);
            let mask = match kernel.get("causal") {
                Some(_) => Some(causal_mask(queries.dim(1)?, queries.device())?),
                None => None,
            };
            return Self::new(kernel, operations, queries, move |x| {
                let keys = keys.as_ref().unwrap_or(x);
                attention(x, keys, keys, heads, scale, mask.as_ref())
            });
        }
        let x = random("x")?;
        let ones = |count: usize| Tensor::ones(count, dtype, &Device::Cpu);
        match operation {
            "conv2d" | "upsample_conv2d" => {
                let (weight, stride) = (PackedWeight::pack(&random("weight")?)?, number("stride")?);
                let upsamples = operation == "upsample_conv2d";
                let (_, _, height, width) = x.dims4()?;
                let pixels = x.dim(0)? * height.div_ceil(stride) * width.div_ceil(stride);
                let operations = if upsamples { 8 } else { 2 } * pixels * weight.shape().elem_count();
                let params = Conv2dParams { stride, padding: weight.shape().dims()[2] / 2 };
                Self::new(kernel, operations, x, move |x| match upsamples {
                    true => weight.upsample_conv2d(x, None, params),
                    false => weight.conv2d(x, None, params),
                })
            }
            "linear" | "linear_geglu" => {
                let weight = PackedWeight::pack(&random("weight")?)?;
                let operations = 2 * x.dim(0)? * x.dim(1)? * weight.shape().elem_count();
                let is_gated = operation == "linear_geglu";
                Self::new(kernel, operations, x, move |x| match is_gated {
                    true => weight.linear_geglu(x, None),
                    false => weight.linear(x, None),
                })
            }
            "group_norm_silu" => {
                let (weight, bias) = (ones(x.dim(1)?)?, ones(x.dim(1)?)?);
                Self::new(kernel, 0, x, move |x| group_norm_silu(x, GROUPS, &weight, &bias, EPS))
            }
            "layer_norm" => {
                let (weight, bias) = (ones(x.dim(2)?)?, ones(x.dim(2)?)?);
                Self::new(kernel, 0, x, move |x| layer_norm(x, &weight, &bias, EPS))
            }
            "geglu" => Self::new(kernel, 0, x, geglu),
            "upsample" => Self::new(kernel, 0, x, upsample_nearest2d),
            "softmax" => Self::new(kernel, 0, x, softmax_last_dim),
            "add" => {
                let other = x.copy()?;
                Self::new(kernel, 0, x, move |x| add(x, &other))
            }
            other => bail!("{other:?} is no operation"),
        }
    }

    /// An operation of `x`; with `backward`, the gradient of its results for ones too (candle's sum would take as long as some of them), for which products are made once
    /// more, and in attention two and a half times.
    fn new(
        kernel: &Value,
        operations: usize,
        x: Tensor,
        operation: impl Fn(&Tensor) -> candle_core::Result<Tensor> + 'static,
    ) -> Result<Self> {
        if kernel.get("backward").is_none() {
            return Ok(Self { run: Box::new(move || operation(&x)), operations });
        }
        let x = Var::from_tensor(&x)?;
        let operations = operations * if kernel["operation"] == "attention" { 7 } else { 4 } / 2;
        // Where the layer before would take it: candle's store adds each variable's gradient to zeros.
        let (sender, gradients) = channel();
        let hook = GradientHook::new(&x, move |gradient| Ok(sender.send(gradient).err().map(|back| back.0)))?;
        let run = move || {
            let _hook = &hook;
            operation(&x)?.backward()?;
            gradients.try_recv().map_err(candle_core::Error::wrap)
        };
        Ok(Self { run: Box::new(run), operations })
    }
}

/// `(1, 1, tokens, tokens)`: nobody looks at those behind.
fn causal_mask(tokens: usize, device: &Device) -> candle_core::Result<Tensor> {
    let mask = (0..tokens * tokens).map(|place| match place % tokens > place / tokens {
        true => f32::NEG_INFINITY,
        false => 0.0,
    });
    Tensor::from_iter(mask, device)?.reshape((1, 1, tokens, tokens))
}
