//! A UNet gives the same bits whatever the number of threads.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use candle_core::{DType, Device, Shape, Tensor};
use candle_diffusers_models::{UNet2DConditionConfig, UNet2DConditionModel};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

/// Numbers from -1 to 1 that look random and are the same in every process.
fn numbers(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Weights that neither let numbers grow nor vanish.
struct Weights;

impl SimpleBackend for Weights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        _: &Device,
    ) -> candle_core::Result<Tensor> {
        let seed = name.bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let inputs: usize = shape.dims().iter().skip(1).product();
        (numbers(shape.dims(), seed) * (inputs as f64).powf(-0.5))?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name} needs a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

fn unet(dtype: DType) -> UNet2DConditionModel {
    let config = serde_json::json!({
        "sample_size": 24, "block_out_channels": [32, 64], "layers_per_block": 1, "norm_num_groups": 8,
        "cross_attention_dim": 40, "attention_head_dim": 4,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    });
    let weights = VarBuilder::from_backend(Box::new(Weights), dtype, Device::Cpu);
    UNet2DConditionModel::new(&UNet2DConditionConfig::from_json(&config).unwrap(), weights).unwrap()
}

/// Prints a number for each dtype that changes with any bit of the result; [`threads_do_not_change_a_bit`] runs it.
#[test]
#[ignore = "run by another test, in processes of their own"]
fn print_digests() {
    for dtype in DTYPES {
        let (sample, text) = (numbers(&[2, 4, 24, 24], 1), numbers(&[2, 77, 40], 2));
        let (sample, text) = (sample.to_dtype(dtype).unwrap(), text.to_dtype(dtype).unwrap());
        let output = unet(dtype).forward(&sample, &[500.0], &text, Default::default()).unwrap();
        let output = output.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(output.iter().all(|value| value.is_finite()));
        let digest = output.iter().fold(14_695_981_039_346_656_037u64, |digest, value| {
            (digest ^ u64::from(value.to_bits())).wrapping_mul(1_099_511_628_211)
        });
        println!("digest in {dtype:?}: {digest:016x}");
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    // The number of threads is read from the environment once, which a test cannot change within its process.
    let digests = |threads: &str| -> Vec<String> {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "print_digests", "--ignored", "--nocapture"])
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| line.contains("digest in")).map(str::to_string).collect()
    };
    let one = digests("1");
    assert_eq!(one.len(), DTYPES.len());
    for threads in ["3", "64"] {
        assert_eq!(one, digests(threads), "{threads} threads");
    }
}
