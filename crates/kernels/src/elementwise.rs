//! Sums of activations, and vectors that change whole channels.

#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor};
use rayon::prelude::*;

use crate::Level;
use crate::cpu::{
    self, Chunk, Float, Instructions, LANES, OnPart, Pointwise, TASK, Work, by_float, fill, map_two, run_at,
    store, values,
};
use crate::gradient::record;
use crate::reduction::sum_pixels;

/// `a + b`, of one shape and dtype: the sum at the end of a residual block.
///
/// # Errors
/// When shapes or dtypes differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.shape() != b.shape() || !cpu::computes(&[a, b]) {
        return a.add(b);
    }
    let sum = add_numbers(&a.detach(), &b.detach())?;
    let wanted = [a, b].map(Tensor::track_op);
    record("add", sum, &[Some(a), Some(b)], move |gradient| {
        Ok(wanted.map(|wanted| wanted.then(|| gradient.clone())).into())
    })
}

/// The same without a gradient, for what is on the CPU in one dtype of at most 32 bits.
pub(crate) fn add_numbers(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    add_numbers_at(Level::current()?, a, b)
}

fn add_numbers_at(level: Level, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    by_float!(a.dtype(), T => {
        let (x, y) = (values::<T>(&a)?, values::<T>(&b)?);
        let (x, y) = (x.get()?, y.get()?);
        let write = |output: &mut [MaybeUninit<T>]| {
            let tasks = output.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).zip(y.par_chunks(TASK));
            tasks.for_each(|((output, x), y)| run_at(level, Sum { x, y, output }));
        };
        // SAFETY: the tasks are the whole output, as the inputs have its length, and `Sum` writes all that it is given.
        let output = unsafe { fill(x.len(), write)? };
        Tensor::from_vec(output, a.shape(), &Device::Cpu)
    })
}

/// Adds `b` to a tensor that nobody else has, contiguous as `b` is, of its shape and dtype.
pub(crate) fn add_in_place(a: &Tensor, b: &Tensor) -> Result<()> {
    a.inplace_op2(b, &AddInPlace { level: Level::current()? })
}

struct AddInPlace {
    level: Level,
}

impl InplaceOp2 for AddInPlace {
    fn name(&self) -> &'static str {
        "add-in-place"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, _: &Layout, b: &CpuStorage, from: &Layout) -> Result<()> {
        let Some((start, end)) = from.contiguous_offsets() else {
            candle_core::bail!("add: {:?} is not contiguous", from.shape());
        };
        fn all<T: Float>(level: Level, a: &mut [T], b: &[T]) {
            let tasks = a.par_chunks_mut(TASK).zip(b.par_chunks(TASK));
            tasks.for_each(|(a, b)| run_at(level, Increase { a, b }));
        }
        match (a, b) {
            (CpuStorage::F32(a), CpuStorage::F32(b)) => all(self.level, a, &b[start..end]),
            (CpuStorage::F16(a), CpuStorage::F16(b)) => all(self.level, a, &b[start..end]),
            (CpuStorage::BF16(a), CpuStorage::BF16(b)) => all(self.level, a, &b[start..end]),
            _ => candle_core::bail!("add: the dtypes differ"),
        }
        Ok(())
    }
}

/// `a += b`, of one length.
struct Increase<'a, T> {
    a: &'a mut [T],
    b: &'a [T],
}

impl<T: Float> Work for Increase<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Instructions) {
        for (a, b) in self.a.iter_mut().zip(self.b) {
            *a = T::from_float(a.to_float() + b.to_float());
        }
    }
}

/// `x + vectors`, where `vectors` has a number for each channel of each item, such as the time embedding.
///
/// `x` is `(batch, channels, ...)`, `vectors` is `(batch, channels)`; the result has the shape of `x`.
///
/// # Errors
/// When shapes or dtypes do not fit.
pub fn add_per_channel(x: &Tensor, vectors: &Tensor) -> Result<Tensor> {
    check_vectors("add_per_channel", x, vectors)?;
    if !cpu::computes(&[x, vectors]) {
        return x.broadcast_add(&per_channel(x, vectors)?);
    }
    let sum = change_channels(Level::current()?, &x.detach(), None, vectors)?;
    let wanted = [x, vectors].map(Tensor::track_op);
    record("add-per-channel", sum, &[Some(x), Some(vectors)], move |gradient| {
        let for_vectors = if wanted[1] { Some(channel_sums(gradient)?) } else { None };
        Ok(vec![wanted[0].then(|| gradient.clone()), for_vectors])
    })
}

/// The sum of each channel of each item, `(batch, channels)`.
fn channel_sums(x: &Tensor) -> Result<Tensor> {
    let sums: Vec<f32> = sum_pixels(x)?.into_iter().map(|sum| sum as f32).collect();
    Tensor::from_vec(sums, &x.dims()[..2], &Device::Cpu)?.to_dtype(x.dtype())
}

/// `x * (1 + scale) + shift`, where `scale` and `shift` have a number for each channel of each item.
///
/// `x` is `(batch, channels, ...)`, `scale` and `shift` are `(batch, channels)`; the result has the shape of `x`.
///
/// # Errors
/// When shapes or dtypes do not fit.
pub fn scale_shift_per_channel(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    check_vectors("scale_shift_per_channel", x, scale)?;
    check_vectors("scale_shift_per_channel", x, shift)?;
    if !cpu::computes(&[x, scale, shift]) {
        let scale = (per_channel(x, scale)? + 1.0)?;
        return x.broadcast_mul(&scale)?.broadcast_add(&per_channel(x, shift)?);
    }
    let level = Level::current()?;
    let (kept_x, kept_scale) = (x.detach(), scale.detach());
    let output = change_channels(level, &kept_x, Some(&kept_scale), shift)?;
    let inputs = [x, scale, shift];
    let wanted = inputs.map(Tensor::track_op);
    record("scale-shift-per-channel", output, &inputs.map(Some), move |gradient| {
        let for_x = match wanted[0] {
            true => Some(change_channels(level, gradient, Some(&kept_scale), &kept_scale.zeros_like()?)?),
            false => None,
        };
        let for_scale = match wanted[1] {
            true => Some(channel_sums(&multiply_numbers(level, gradient, &kept_x)?)?),
            false => None,
        };
        let for_shift = if wanted[2] { Some(channel_sums(gradient)?) } else { None };
        Ok(vec![for_x, for_scale, for_shift])
    })
}

/// `a * b`, of one shape.
fn multiply_numbers(level: Level, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    by_float!(a.dtype(), T => {
        let (x, y) = (values::<T>(&a)?, values::<T>(&b)?);
        Tensor::from_vec(map_two(level, [x.get()?, y.get()?], Product)?, a.shape(), &Device::Cpu)
    })
}

/// Fails unless `vectors` is `(batch, channels)` of `x`.
pub(crate) fn check_vectors(operation: &str, x: &Tensor, vectors: &Tensor) -> Result<()> {
    if x.rank() < 2 || vectors.dims() != &x.dims()[..2] {
        candle_core::bail!(
            "{operation}: a vector of {:?} does not fit the batch and channels of {:?}",
            vectors.dims(),
            x.dims()
        );
    }
    Ok(())
}

/// `(batch, channels)` as something that broadcasts to `x`.
pub(crate) fn per_channel(x: &Tensor, vectors: &Tensor) -> Result<Tensor> {
    let dims: Vec<usize> =
        x.dims().iter().enumerate().map(|(axis, length)| if axis < 2 { *length } else { 1 }).collect();
    vectors.reshape(dims)
}

/// Numbers in order, in float32.
pub(crate) fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

fn change_channels(level: Level, x: &Tensor, scale: Option<&Tensor>, shift: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let shift = floats(shift)?;
    let scale = match scale {
        Some(scale) => Some(floats(scale)?),
        None => None,
    };
    let length: usize = x.dims()[2..].iter().product();
    if length == 0 {
        return Ok(x);
    }
    by_float!(x.dtype(), T => {
        let x_values = values::<T>(&x)?;
        let values = x_values.get()?;
        let write = |output: &mut [MaybeUninit<T>]| {
            let channels = output.par_chunks_mut(length).zip(values.par_chunks(length)).enumerate();
            channels.with_min_len(TASK.div_ceil(length)).for_each(|(channel, (output, x))| {
                let (inputs, shift) = ([x], shift[channel]);
                match &scale {
                    Some(scale) => {
                        let function = ScaleShift { scale: 1.0 + scale[channel], shift };
                        run_at(level, OnPart { inputs, output, function });
                    }
                    None => run_at(level, OnPart { inputs, output, function: AddNumber(shift) }),
                }
            });
        };
        // SAFETY: the channels are the whole output, as there are `length` numbers in each, and `OnPart` writes all that it is given.
        let output = unsafe { fill(values.len(), write)? };
        Tensor::from_vec(output, x.shape(), &Device::Cpu)
    })
}

/// `x + y`, all of one length.
struct Sum<'a, T> {
    x: &'a [T],
    y: &'a [T],
    output: &'a mut [MaybeUninit<T>],
}

impl<T: Float> Work for Sum<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self, instructions: impl Instructions) {
        let Self { x, y, output } = self;
        let ((x, x_tail), (y, y_tail)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
        let (output, output_tail) = output.as_chunks_mut::<LANES>();
        for ((output, x), y) in output.iter_mut().zip(x).zip(y) {
            let (mut sum, y) = (T::load(x, instructions), T::load(y, instructions));
            for lane in 0..LANES {
                sum[lane] += y[lane];
            }
            store(sum, output, instructions);
        }
        for ((output, x), y) in output_tail.iter_mut().zip(x_tail).zip(y_tail) {
            output.write(T::from_float(x.to_float() + y.to_float()));
        }
    }
}

#[derive(Clone, Copy)]
struct AddNumber(f32);

impl Pointwise<1> for AddNumber {
    #[inline(always)]
    fn apply(self, [mut x]: [Chunk; 1]) -> Chunk {
        for lane in &mut x {
            *lane += self.0;
        }
        x
    }
}

#[derive(Clone, Copy)]
struct ScaleShift {
    scale: f32,
    shift: f32,
}

impl Pointwise<1> for ScaleShift {
    #[inline(always)]
    fn apply(self, [mut x]: [Chunk; 1]) -> Chunk {
        for lane in &mut x {
            *lane = *lane * self.scale + self.shift;
        }
        x
    }
}

#[derive(Clone, Copy)]
struct Product;

impl Pointwise<2> for Product {
    #[inline(always)]
    fn apply(self, [mut x, y]: [Chunk; 2]) -> Chunk {
        for lane in 0..LANES {
            x[lane] *= y[lane];
        }
        x
    }
}
