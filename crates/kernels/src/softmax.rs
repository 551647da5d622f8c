use candle_core::{CpuStorage, CustomOp1, D, DType, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Softmax over the last dimension; any rank but 0, float32 on the CPU in one pass over each row, elsewhere by candle's
/// operations. It can be differentiated.
///
/// # Errors
/// When `x` is a scalar or not of a floating dtype.
pub fn softmax_last_dim(x: &Tensor) -> Result<Tensor> {
    if matches!(x.device(), Device::Cpu) && x.dtype() == DType::F32 {
        return x.contiguous()?.apply_op1(SoftmaxLastDim);
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
        let mut result = vec![0f32; end - start];
        if width > 0 {
            result
                .par_chunks_mut(width)
                .zip(values[start..end].par_chunks(width))
                .with_min_len(16)
                .for_each(|(result, row)| softmax_row(row, result));
        }
        Ok((CpuStorage::F32(result), layout.shape().clone()))
    }

    // d softmax = y * (g - sum(g * y))
    fn bwd(&self, _x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let inner = (grad * y)?.sum_keepdim(D::Minus1)?;
        Ok(Some((grad.broadcast_sub(&inner)? * y)?))
    }
}

fn softmax_row(row: &[f32], result: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0f32;
    for (result, value) in result.iter_mut().zip(row) {
        *result = (value - max).exp();
        sum += *result;
    }
    let scale = 1.0 / sum;
    result.iter_mut().for_each(|value| *value *= scale);
}
