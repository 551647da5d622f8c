//! The products that deltas are made of, over float32 tensors.

use candle_core::{Result, Tensor};

/// A tensor as a matrix: all axes but the first become one.
pub(super) fn matrix(tensor: &Tensor) -> Result<Tensor> {
    let first = tensor.dim(0)?;
    tensor.reshape((first, tensor.elem_count() / first.max(1)))
}

/// `delta[o, i, h, w] = sum left[o, p] core[p, q, h, w] right[q, i]`, Tucker's form of a convolution's kernel.
pub(super) fn tucker(core: &Tensor, left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let (left, right) = (matrix(left)?, matrix(right)?);
    let (_, inner, height, width) = core.dims4()?;
    let (out, input, kernel) = (left.dim(0)?, right.dim(1)?, height * width);
    let half = left.matmul(&matrix(core)?)?.reshape((out, inner, kernel))?;
    let half = half.transpose(1, 2)?.contiguous()?.reshape((out * kernel, inner))?;
    let whole = half.matmul(&right)?.reshape((out, kernel, input))?;
    whole.transpose(1, 2)?.contiguous()?.reshape((out, input, height, width))
}

/// The Kronecker product of two factors as a matrix, `(out_1 * out_2, in_1 * in_2 ...)`.
pub(super) fn kronecker(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let ((out_1, in_1), (out_2, in_2)) = (matrix(left)?.dims2()?, matrix(right)?.dims2()?);
    let left = left.reshape((out_1, 1, in_1, 1))?;
    let right = right.reshape((1, out_2, 1, in_2))?;
    left.broadcast_mul(&right)?.reshape((out_1 * out_2, in_1 * in_2))
}

/// Which axis of a weight a DoRA has lengths for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channels {
    Output,
    Input,
}

/// What each channel's part of `weight` must be multiplied by to have the length that `magnitude` says, of which there is one a
/// channel; broadcasts to the weight.
pub(super) fn factors_to_lengths(weight: &Tensor, magnitude: &Tensor, channels: Channels) -> Result<Tensor> {
    /// A part without a direction has a factor that is finite.
    const SHORTEST: f64 = 1e-12;
    let axis = match channels {
        Channels::Output => 0,
        Channels::Input => 1,
    };
    let others: Vec<usize> = (0..weight.rank()).filter(|other| *other != axis).collect();
    let lengths = weight.sqr()?.sum_keepdim(others)?.sqrt()?.maximum(SHORTEST)?;
    magnitude.reshape(lengths.shape())?.div(&lengths)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    fn flat(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_kronecker_product_has_a_block_for_each_value_of_the_left() {
        let product =
            kronecker(&tensor(&[1.0, 2.0], &[1, 2]), &tensor(&[3.0, 4.0, 5.0, 6.0], &[2, 2])).unwrap();
        assert_eq!(product.dims(), [2, 4]);
        assert_eq!(flat(&product), [3.0, 4.0, 6.0, 8.0, 5.0, 6.0, 10.0, 12.0]);
    }

    #[test]
    fn a_core_of_one_pixel_is_a_product_of_three_matrices() {
        let core = tensor(&[1.0, 2.0, 3.0, 4.0], &[2, 2, 1, 1]);
        let (left, right) = (tensor(&[1.0, 1.0], &[1, 2]), tensor(&[1.0, 0.0, 0.0, 1.0], &[2, 2]));
        assert_eq!(flat(&tucker(&core, &left, &right).unwrap()), [4.0, 6.0]);
    }

    #[test]
    fn lengths_are_those_of_channels_and_nothing_becomes_no_number() {
        let weight = tensor(&[3.0, 4.0, 0.0, 0.0], &[2, 2]);
        let magnitude = tensor(&[10.0, 7.0], &[2]);
        let scaled = |channels| {
            let factors = factors_to_lengths(&weight, &magnitude, channels).unwrap();
            flat(&weight.broadcast_mul(&factors).unwrap())
        };
        assert_eq!(scaled(Channels::Output), [6.0, 8.0, 0.0, 0.0]);
        assert_eq!(scaled(Channels::Input), [10.0, 7.0, 0.0, 0.0]);
    }
}
