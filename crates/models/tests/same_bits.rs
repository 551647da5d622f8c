//! A UNet gives the same bits whatever the number of threads.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Shape, Tensor};
use candle_diffusers_models::{UNet2DConditionConfig, UNet2DConditionModel};
use candle_diffusers_test_support::{assert_threads_change_no_bit, numbers};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

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

#[test]
fn threads_do_not_change_a_bit() {
    let results = DTYPES.into_iter().map(|dtype| {
        let (sample, text) = (numbers(&[2, 4, 24, 24], 1), numbers(&[2, 77, 40], 2));
        let (sample, text) = (sample.to_dtype(dtype).unwrap(), text.to_dtype(dtype).unwrap());
        let output = unet(dtype).forward(&sample, &[500.0], &text, Default::default()).unwrap();
        (format!("{dtype:?}"), output)
    });
    assert_threads_change_no_bit("threads_do_not_change_a_bit", &[3, 64], results);
}
