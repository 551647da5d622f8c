use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp1, D, DType, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::Level;
use crate::cpu::{Instructions, Work, fill, run_at, values};
use crate::exponential::exp;
use crate::gradient::record_with_output;

/// Numbers of a row that are computed at a time.
const LANES: usize = 16;
/// So many numbers at least are a task.
const TASK: usize = 1 << 14;

/// Softmax over the last dimension; any rank but 0, on the CPU in float32 (half precision too) in one pass over each row, elsewhere by candle's
/// operations. It can be differentiated.
///
/// # Errors
/// When `x` is a scalar or not of a floating dtype.
pub fn softmax_last_dim(x: &Tensor) -> Result<Tensor> {
    if matches!(x.device(), Device::Cpu) && x.dtype() == DType::F32 {
        let output = x.detach().contiguous()?.apply_op1_no_bwd(&SoftmaxLastDim)?;
        return record_with_output("softmax-last-dim", output, &[Some(x)], |gradient, output| {
            Ok(vec![Some(input_gradient(Level::current()?, output, gradient)?)])
        });
    }
    if matches!(x.device(), Device::Cpu) && matches!(x.dtype(), DType::F16 | DType::BF16) {
        return softmax_last_dim(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype());
    }
    let exponentials = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)
}

struct SoftmaxLastDim;

impl CustomOp1 for SoftmaxLastDim {
    fn name(&self) -> &'static str {
        "softmax-last-dim"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let values = storage.as_slice::<f32>()?;
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("softmax: the input {:?} is not contiguous", layout.shape());
        };
        let Some(&width) = layout.dims().last() else {
            candle_core::bail!("softmax: a scalar has no last dimension");
        };
        let result = softmax_at(Level::current()?, &values[start..end], width);
        Ok((CpuStorage::F32(result), layout.shape().clone()))
    }
}

/// `y (g - sum(g y))` for each row.
fn input_gradient(level: Level, output: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let gradient = gradient.contiguous()?;
    let width = output.dim(D::Minus1)?;
    let (outputs, gradients) = (values::<f32>(output)?, values::<f32>(&gradient)?);
    let (outputs, gradients) = (outputs.get()?, gradients.get()?);
    let write = |result: &mut [MaybeUninit<f32>]| {
        if width == 0 {
            return;
        }
        let rows =
            result.par_chunks_mut(width).zip(outputs.par_chunks(width)).zip(gradients.par_chunks(width));
        rows.with_min_len((TASK / width).max(1)).for_each(|((result, output), gradient)| {
            run_at(level, RowGradient { output, gradient, result });
        });
    };
    // SAFETY: the rows are the whole result, and `RowGradient` writes all of one.
    let numbers = unsafe { fill(outputs.len(), write)? };
    Tensor::from_vec(numbers, output.shape(), &Device::Cpu)
}

struct RowGradient<'a> {
    output: &'a [f32],
    gradient: &'a [f32],
    result: &'a mut [MaybeUninit<f32>],
}

impl Work for RowGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Instructions) {
        let (outputs, output_rest) = self.output.as_chunks::<LANES>();
        let (gradients, gradient_rest) = self.gradient.as_chunks::<LANES>();
        let mut sums = [0f32; LANES];
        for (output, gradient) in outputs.iter().zip(gradients) {
            for lane in 0..LANES {
                sums[lane] += output[lane] * gradient[lane];
            }
        }
        for (lane, (output, gradient)) in output_rest.iter().zip(gradient_rest).enumerate() {
            sums[lane] += output * gradient;
        }
        let sum: f32 = sums.into_iter().sum();
        let numbers = self.output.iter().zip(self.gradient);
        for (result, (output, gradient)) in self.result.iter_mut().zip(numbers) {
            result.write(output * (gradient - sum));
        }
    }
}

/// The softmax of each of the rows, which are `width` numbers.
fn softmax_at(level: Level, values: &[f32], width: usize) -> Vec<f32> {
    let softmax_row = softmax_row_at(level);
    let mut result = Vec::with_capacity(values.len());
    if let Some(rows_per_task) = TASK.checked_div(width) {
        result.spare_capacity_mut()[..values.len()]
            .par_chunks_mut(width)
            .zip(values.par_chunks(width))
            .with_min_len(rows_per_task.max(1))
            // SAFETY: `softmax_row_at` has asked whether the processor has the level.
            .for_each(|(result, row)| unsafe { softmax_row(row, result) });
        // SAFETY: each row has been written, and the rows are all of `values`.
        unsafe { result.set_len(values.len()) };
    }
    result
}

type SoftmaxRow = unsafe fn(row: &[f32], result: &mut [MaybeUninit<f32>]);

/// The one for a level; the portable one where the processor does not have it.
fn softmax_row_at(level: Level) -> SoftmaxRow {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Bf16 | Level::Amx if Level::Avx512.is_available() => softmax_row_avx512,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 if level.is_available() => softmax_row_avx2,
        #[cfg(target_arch = "aarch64")]
        Level::Neon => softmax_row::<true>,
        _ => softmax_row::<false>,
    }
}

/// # Safety
/// The processor must have AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn softmax_row_avx512(row: &[f32], result: &mut [MaybeUninit<f32>]) {
    softmax_row::<true>(row, result);
}

/// # Safety
/// The processor must have AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn softmax_row_avx2(row: &[f32], result: &mut [MaybeUninit<f32>]) {
    softmax_row::<true>(row, result);
}

/// In a loop: a closure would be compiled for no level, where each fused multiply-add is a call.
#[inline(always)]
fn exponentials<const FMA: bool>(chunk: &[f32; LANES], greatest: f32) -> [f32; LANES] {
    let mut values = [0.0; LANES];
    for lane in 0..LANES {
        values[lane] = exp::<FMA>(chunk[lane] - greatest);
    }
    values
}

/// Writes all of `result`, which is as long as `row`. Sums are taken in `LANES` parts, so that they are vectors' sums.
#[inline(always)]
fn softmax_row<const FMA: bool>(row: &[f32], result: &mut [MaybeUninit<f32>]) {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..rest.len()].copy_from_slice(rest);

    let mut greatest = last;
    for chunk in chunks {
        for (greatest, value) in greatest.iter_mut().zip(chunk) {
            *greatest = if *value > *greatest { *value } else { *greatest };
        }
    }
    let greatest = greatest.into_iter().fold(f32::NEG_INFINITY, f32::max);

    let (result_chunks, result_rest) = result.as_chunks_mut::<LANES>();
    let mut sums = exponentials::<FMA>(&last, greatest);
    for (result, value) in result_rest.iter_mut().zip(sums) {
        result.write(value);
    }
    sums[rest.len()..].fill(0.0);
    for (result, chunk) in result_chunks.iter_mut().zip(chunks) {
        let values = exponentials::<FMA>(chunk, greatest);
        for ((result, value), sum) in result.iter_mut().zip(values).zip(&mut sums) {
            result.write(value);
            *sum += value;
        }
    }

    let scale = 1.0 / sums.into_iter().sum::<f32>();
    for result in result {
        // SAFETY: written above: each chunk, and what is left of the last.
        result.write(unsafe { result.assume_init() } * scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{as_view, doubles, levels, numbers};

    #[test]
    fn each_level_agrees_with_float64() {
        for level in levels() {
            for width in [1, 3, 15, 16, 17, 31, 33, 77, 1000] {
                let row: Vec<f32> = (0..width).map(|i| ((i * i * 37) % 101) as f32 * 0.25 - 11.0).collect();
                let exponentials: Vec<f64> = row.iter().map(|&value| f64::from(value).exp()).collect();
                let sum: f64 = exponentials.iter().sum();
                let found = softmax_at(level, &row, width);
                for (found, exponential) in found.iter().zip(&exponentials) {
                    let expected = exponential / sum;
                    assert!(
                        (f64::from(*found) - expected).abs() < 3e-7 * expected + 1e-38,
                        "{level:?} {width}: {found} not {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn each_levels_gradient_agrees_with_float64() -> Result<()> {
        for level in levels() {
            // The last one is several tasks.
            for (rows, width) in [(1, 1), (3, 3), (2, 17), (3, 31), (1, 33), (17, 77), (33, 1000)] {
                let x = numbers(&[rows, width], 1).affine(3.0, 0.0)?;
                let gradient = as_view(&numbers(&[rows, width], 2));
                let output = softmax_at(level, &x.flatten_all()?.to_vec1::<f32>()?, width);
                let output = Tensor::from_vec(output, x.shape(), &Device::Cpu)?;
                let found = doubles(&input_gradient(level, &output, &gradient)?);
                let (x, gradient) = (doubles(&x), doubles(&gradient));
                let rows = x.chunks(width).zip(gradient.chunks(width)).zip(found.chunks(width));
                for ((x, gradient), found) in rows {
                    let sum: f64 = x.iter().map(|x| x.exp()).sum();
                    let outputs: Vec<f64> = x.iter().map(|x| x.exp() / sum).collect();
                    let products: Vec<f64> = outputs.iter().zip(gradient).map(|(y, g)| y * g).collect();
                    let mean: f64 = products.iter().sum();
                    let size: f64 = products.iter().map(|product| product.abs()).sum();
                    for ((found, output), gradient) in found.iter().zip(&outputs).zip(gradient) {
                        let expected = output * (gradient - mean);
                        let bound = 2e-6 * output * (gradient.abs() + size);
                        assert!(
                            (found - expected).abs() <= bound,
                            "{level:?} {width}: {found} not {expected}"
                        );
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn infinities_and_nan() {
        const NONE: f32 = f32::NEG_INFINITY;
        for level in levels() {
            assert_eq!(softmax_at(level, &[NONE, 0.0, NONE, 0.0], 2), [0.0, 1.0, 0.0, 1.0]);
            assert!(softmax_at(level, &[NONE; 3], 3).iter().all(|value| value.is_nan()));
            assert!(softmax_at(level, &[1.0, f32::NAN], 2).iter().all(|value| value.is_nan()));
            assert_eq!(softmax_at(level, &[], 0), [0f32; 0]);
        }
    }
}
