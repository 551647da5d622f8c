mod arithmetic;
mod backward;
mod backward_step;
mod fused;
mod step;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod tokens;
mod vector;

use candle_core::{DType, Result, Tensor};

use crate::Level;
use crate::dtype::sum_dtype;
use crate::gradient::record_with_output;
use crate::softmax::softmax_last_dim;
use arithmetic::Kernel;
use backward::Backward;

/// How many scores are held at a time, over all heads of one batch item (float32: 64 MiB). Scores of 4096 tokens with
/// themselves at 8 heads would take half a gigabyte.
const MAX_SCORES: usize = 16 << 20;

/// Scaled dot-product attention, `softmax(query key^T * scale + mask) value` for each head (Vaswani et al., 2017), as
/// `torch.nn.functional.scaled_dot_product_attention` on heads that lie side by side.
///
/// `query` is `(batch, query_tokens, heads * dim)`, `key` and `value` are `(batch, key_tokens, heads * dim)`; the result is
/// `(batch, query_tokens, heads * dim)` in the dtype of `value`. `mask` must broadcast to `(batch, heads, query_tokens, key_tokens)` and needs all
/// four dimensions: numbers are added to the scores before the softmax; of a boolean one (U8), a key counts where it is not 0. Scores are in float32 where the input is half
/// precision. Memory does not grow with `query_tokens * key_tokens`: queries are taken in groups, and on the CPU scores are never stored.
/// A query all of whose keys are masked by negative infinity gets zeros on the CPU, as in the reference library, and NaN where candle's
/// operations compute (on other devices, in float64, and where the mask is to be differentiated).
///
/// # Errors
/// When `heads` does not divide the last dimension, shapes do not fit, or the mask has a dtype of other integers.
pub fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    heads: usize,
    scale: f64,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    let (batch, query_tokens, width) = query.dims3()?;
    let (_, key_tokens, _) = key.dims3()?;
    if heads == 0 || !width.is_multiple_of(heads) {
        candle_core::bail!("attention: {heads} heads do not divide the width of a query {:?}", query.dims());
    }
    if key.dims() != [batch, key_tokens, width] || value.dims() != key.dims() {
        candle_core::bail!(
            "attention: a query {:?} takes keys and values of the same batch and width, these are {:?} and {:?}",
            query.dims(),
            key.dims(),
            value.dims()
        );
    }
    // A negative scale would make the greatest product the least score.
    if fused::computes(query, key, value, mask) && scale >= 0.0 {
        let shape = (batch, heads, query_tokens, key_tokens);
        let mask = match mask {
            Some(mask) => Some(addend(mask, DType::F32)?.broadcast_as(shape)?),
            None => None,
        };
        let is_bfloat16 = [query, key, value].iter().all(|tensor| tensor.dtype() == DType::BF16);
        let kernel = Kernel::choose(Level::current()?, is_bfloat16);
        return record_fused(kernel, [query, key, value], heads, scale, mask);
    }
    composed(query, key, value, heads, scale, mask)
}

/// What a mask adds to the scores.
fn addend(mask: &Tensor, dtype: DType) -> Result<Tensor> {
    match mask.dtype() {
        DType::U8 => {
            let shown = Tensor::zeros(mask.shape(), dtype, mask.device())?;
            let hidden = (shown.ones_like()? * f64::NEG_INFINITY)?;
            mask.where_cond(&shown, &hidden)
        }
        other if other.is_float() => mask.to_dtype(dtype),
        other => candle_core::bail!(
            "attention: a mask of {other:?}; expected numbers to add (F32), or U8 with 0 for what is hidden"
        ),
    }
}

/// By blocks, whose weights the backward computes again.
fn record_fused(
    kernel: Kernel,
    inputs: [&Tensor; 3],
    heads: usize,
    scale: f64,
    mask: Option<Tensor>,
) -> Result<Tensor> {
    let [query, key, value] = inputs.map(Tensor::detach);
    let (output, log_sums) = fused::fused(kernel, [&query, &key, &value], heads, scale, mask.as_ref())?;
    let wanted = inputs.map(Tensor::track_op);
    record_with_output("attention", output, &inputs.map(Some), move |gradient, output| {
        let backward = Backward {
            kernel,
            heads,
            scale,
            query: &query,
            key: &key,
            value: &value,
            mask: mask.as_ref(),
            output,
            log_sums: &log_sums,
            wanted,
        };
        Ok(backward.gradients(gradient)?.into())
    })
}

/// The same by candle's operations: on any device, and in float64.
fn composed(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    heads: usize,
    scale: f64,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    let (batch, query_tokens, width) = query.dims3()?;
    let (_, key_tokens, _) = key.dims3()?;
    let dtype = sum_dtype(query);
    let query = (split_heads(query, heads, dtype)? * scale)?;
    let keys = split_heads(key, heads, dtype)?.transpose(2, 3)?;
    let values = split_heads(value, heads, dtype)?;
    let mask = match mask {
        Some(mask) => Some(addend(mask, dtype)?.broadcast_as((batch, heads, query_tokens, key_tokens))?),
        None => None,
    };
    // One batch item after the other, in groups that do not depend on the batch: so neither do the bits of the result.
    let group = (MAX_SCORES / (heads * key_tokens).max(1)).max(16).min(query_tokens.max(1));
    let mut items = Vec::with_capacity(batch);
    for item in 0..batch {
        let (keys, values) = (keys.narrow(0, item, 1)?, values.narrow(0, item, 1)?);
        let mut groups = Vec::with_capacity(query_tokens.div_ceil(group));
        for start in (0..query_tokens).step_by(group) {
            let length = group.min(query_tokens - start);
            let queries = query.narrow(0, item, 1)?.narrow(2, start, length)?;
            let mut scores = queries.contiguous()?.matmul(&keys)?;
            if let Some(mask) = &mask {
                scores = (scores + mask.narrow(0, item, 1)?.narrow(2, start, length)?)?;
            }
            groups.push(softmax_last_dim(&scores)?.matmul(&values)?);
        }
        items.push(Tensor::cat(&groups, 2)?);
    }
    Tensor::cat(&items, 0)?.transpose(1, 2)?.reshape((batch, query_tokens, width))?.to_dtype(value.dtype())
}

/// `(batch, tokens, heads * dim)` to `(batch, heads, tokens, dim)`, contiguous.
fn split_heads(x: &Tensor, heads: usize, dtype: DType) -> Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    x.to_dtype(dtype)?.reshape((batch, tokens, heads, width / heads))?.transpose(1, 2)?.contiguous()
}
