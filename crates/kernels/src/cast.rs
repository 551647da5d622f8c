//! Numbers in another dtype.

use std::mem::MaybeUninit;

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use crate::Level;
use crate::cpu::{self, Float, Instructions, TASK, Work, by_float, convert_to_fresh, fill, run_at, values};
use crate::gradient::record;

/// `x` in another dtype, each number the nearest, of two the even one; the same tensor where it has that dtype already.
///
/// Any shape, same shape out; the gradient comes back in the dtype of `x`. Between float32 and half precision on the CPU all cores convert, and a variable's gradient can be
/// taken by a [`GradientHook`](crate::GradientHook); else it is candle's conversion.
///
/// # Errors
/// When there is no memory for the result, or the device cannot convert.
pub fn to_dtype(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    if !cpu::computes(&[x]) || !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        return x.to_dtype(dtype);
    }
    let from = x.dtype();
    let output = converted(&x.detach(), dtype)?;
    record("to-dtype", output, &[Some(x)], move |gradient| Ok(vec![Some(converted(gradient, from)?)]))
}

fn converted(x: &Tensor, dtype: DType) -> Result<Tensor> {
    let (level, x) = (Level::current()?, x.contiguous()?);
    by_float!(x.dtype(), From => {
        let x_values = values::<From>(&x)?;
        let from = x_values.get()?;
        by_float!(dtype, To => {
            let write = |output: &mut [MaybeUninit<To>]| {
                let tasks = output.par_chunks_mut(TASK).zip(from.par_chunks(TASK));
                tasks.for_each(|(to, from)| run_at(level, Convert { from, to }));
            };
            // SAFETY: the tasks are the whole output, as the input has its length, and `Convert` writes as many numbers as it is given.
            let output = unsafe { fill(from.len(), write)? };
            Tensor::from_vec(output, x.shape(), &Device::Cpu)
        })
    })
}

struct Convert<'a, From, To> {
    from: &'a [From],
    to: &'a mut [MaybeUninit<To>],
}

impl<From: Float, To: Float> Work for Convert<'_, From, To> {
    type Output = ();

    #[inline(always)]
    fn run(self, instructions: impl Instructions) {
        convert_to_fresh(self.from, self.to, instructions);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

    /// Two tasks and a bit, around zero.
    fn numbers() -> Tensor {
        let count = 2 * TASK + 7;
        let all = Tensor::arange(0f32, count as f32, &Device::Cpu).unwrap();
        ((all - count as f64 / 2.0).unwrap() * 0.012_345).unwrap()
    }

    fn floats(x: &Tensor) -> Vec<f32> {
        x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn numbers_are_those_of_candle() {
        for from in FLOATS {
            let x = numbers().to_dtype(from).unwrap();
            for to in FLOATS {
                let ours = to_dtype(&x, to).unwrap();
                assert_eq!(ours.dtype(), to);
                assert_eq!(floats(&ours), floats(&x.to_dtype(to).unwrap()), "{from:?} to {to:?}");
            }
        }
        let transposed = numbers().narrow(0, 0, 12).unwrap().reshape((3, 4)).unwrap().t().unwrap();
        let ours = to_dtype(&transposed, DType::BF16).unwrap();
        assert_eq!(floats(&ours), floats(&transposed.to_dtype(DType::BF16).unwrap()));
        assert_eq!(to_dtype(&transposed, DType::F64).unwrap().dtype(), DType::F64);
        assert_eq!(to_dtype(&numbers().narrow(0, 0, 0).unwrap(), DType::F16).unwrap().dims(), [0]);
    }

    #[test]
    fn gradients_come_back_in_the_dtype_of_the_input() {
        let x = Var::from_tensor(&numbers()).unwrap();
        let half = to_dtype(&x, DType::BF16).unwrap();
        let loss = (&half * 3.0).unwrap().to_dtype(DType::F32).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let gradient = gradients.get(&x).unwrap();
        assert_eq!(gradient.dtype(), DType::F32);
        assert!(floats(gradient).iter().all(|value| *value == 3.0));
        assert!(!to_dtype(&x.as_detached_tensor(), DType::BF16).unwrap().track_op());
    }
}
