//! Dynamic thresholding of the predicted original sample (section 2.3 of <https://huggingface.co/papers/2205.11487>).

use candle_core::{DType, Device, Tensor};

use crate::config::check_field;
use crate::error::Result;

/// The fields of a config that define dynamic thresholding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thresholding {
    /// The quantile of absolute values, per picture, that the threshold is taken from.
    pub(crate) dynamic_thresholding_ratio: f64,
    /// The largest threshold.
    pub(crate) sample_max_value: f64,
}

impl Thresholding {
    /// Fails on values out of range, naming the field.
    pub(crate) fn check(&self, class: &'static str) -> Result<()> {
        let ratio = self.dynamic_thresholding_ratio;
        check_field(
            class,
            "dynamic_thresholding_ratio",
            ratio,
            (0.0..=1.0).contains(&ratio),
            "a number from 0 to 1",
        )?;
        let max = self.sample_max_value;
        check_field(class, "sample_max_value", max, max > 0.0, "a number greater than 0")
    }

    /// Clamps each picture to ±s, its own threshold, and divides it by s. Shape and dtype stay.
    pub(crate) fn apply(&self, sample: &Tensor) -> Result<Tensor> {
        let compute = if sample.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let pictures = sample.to_dtype(compute)?.flatten_from(1)?;
        let magnitudes = pictures.abs()?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        let thresholds: Vec<f64> =
            magnitudes.into_iter().map(|values| self.threshold(values, compute)).collect();
        let thresholds =
            Tensor::new(thresholds, &Device::Cpu)?.to_dtype(compute)?.to_device(sample.device())?;
        let thresholds = thresholds.unsqueeze(1)?;
        let clamped = pictures.broadcast_minimum(&thresholds)?.broadcast_maximum(&thresholds.neg()?)?;
        Ok(clamped.broadcast_div(&thresholds)?.reshape(sample.dims())?.to_dtype(sample.dtype())?)
    }

    fn threshold(&self, magnitudes: Vec<f64>, compute: DType) -> f64 {
        let quantile = quantile(magnitudes, self.dynamic_thresholding_ratio, compute);
        // As torch.clamp: the upper bound wins where it is below the lower one.
        quantile.max(1.0).min(self.sample_max_value)
    }
}

/// `torch.quantile` with linear interpolation, in the precision of `compute`; NaN if any value is.
fn quantile(mut values: Vec<f64>, ratio: f64, compute: DType) -> f64 {
    let round = |value: f64| if compute == DType::F32 { f64::from(value as f32) } else { value };
    if values.is_empty() || values.iter().any(|value| value.is_nan()) {
        return f64::NAN;
    }
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len() - 1;
    let rank = round(round(ratio) * last as f64);
    let below = (rank.floor() as usize).min(last);
    let above = (rank.ceil() as usize).min(last);
    let weight = round(rank - below as f64);
    lerp(values[below], values[above], weight, round)
}

/// `torch.lerp`, which works from the nearer end.
fn lerp(start: f64, end: f64, weight: f64, round: impl Fn(f64) -> f64) -> f64 {
    let difference = round(end - start);
    if weight < 0.5 {
        round(start + weight * difference)
    } else {
        round(end - difference * round(1.0 - weight))
    }
}
