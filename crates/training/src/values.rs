//! The numbers of tensors as slices, to read them and to change them in place without a copy.
//!
//! Work on long slices is split into pieces of a fixed size, whatever the number of threads, so that threads change no bit.

use std::cell::RefCell;
use std::hash::{DefaultHasher, Hasher};

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Storage, Tensor, Var, WithDType};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::error::Result;

/// Values that one thread works on at a time: a few such pieces fit into its cache, and it is a multiple of the blocks of quantised states.
pub(crate) const PIECE: usize = 1 << 14;

/// A number that float32 computes for.
trait Element: Copy + Send + Sync {
    fn to_f32(self) -> f32;
    fn from_f32(value: f32) -> Self;
}

impl Element for bf16 {
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
}

impl Element for f16 {
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
}

/// A type whose slice a storage may hold.
pub(crate) trait Stored: WithDType {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl Stored for f32 {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::F32(values) = storage { Some(values) } else { None }
    }
}

impl Stored for u8 {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::U8(values) = storage { Some(values) } else { None }
    }
}

/// A function as an operation in place, run once.
struct InPlace<F>(RefCell<Option<F>>);

impl<F: FnOnce(&mut CpuStorage, &Layout) -> candle_core::Result<()>> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "change of values in place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        match self.0.borrow_mut().take() {
            Some(change) => change(storage, layout),
            None => Ok(()),
        }
    }
}

fn contiguous_range(layout: &Layout) -> candle_core::Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => candle_core::bail!("a tensor of shape {:?} is not contiguous", layout.dims()),
    }
}

/// Lets `change` see and change the values of a contiguous CPU tensor of exactly the type `T`.
pub(crate) fn change<T: Stored>(tensor: &Tensor, change: impl FnOnce(&mut [T]) -> Result<()>) -> Result<()> {
    let mut result = Ok(());
    tensor.inplace_op1(&InPlace(RefCell::new(Some(|storage: &mut CpuStorage, layout: &Layout| {
        let range = contiguous_range(layout)?;
        match T::slice_mut(storage) {
            Some(values) => result = change(&mut values[range]),
            None => candle_core::bail!("a tensor of {:?} was expected", T::DTYPE),
        }
        Ok(())
    }))))?;
    result
}

/// Lets `read` see the values of a contiguous CPU tensor of float32.
pub(crate) fn read<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => read(&values[contiguous_range(layout)?]),
        _ => Err(candle_core::Error::Msg("a float32 tensor on the CPU was expected".to_string()).into()),
    }
}

/// A number of the values' bits: that of pieces, hashed on all cores.
pub(crate) fn digest(values: &[f32]) -> Vec<u64> {
    let piece = |piece: &[f32]| {
        let mut hasher = DefaultHasher::new();
        piece.iter().for_each(|value| hasher.write_u32(value.to_bits()));
        hasher.finish()
    };
    values.par_chunks(PIECE).map(piece).collect()
}

/// The first value that is no number, or whose square is none in float32.
pub(crate) fn unusable(values: &[f32]) -> Option<f32> {
    let first = |piece: &[f32]| piece.iter().copied().find(|value| !(value * value).is_finite());
    values.par_chunks(PIECE).find_map_first(first)
}

/// The tensor as contiguous float32 on the CPU; itself where it is that already.
pub(crate) fn to_cpu_f32(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?)
}

/// Changes a parameter's values in place by `kernel`, which gets pieces of [`PIECE`] values in float32 (the last may be shorter), each with its
/// own of `parts`. Parameters on another device than the CPU are copied to it and back.
pub(crate) fn change_parameter<P: Send>(
    parameter: &Var,
    parts: Vec<P>,
    kernel: impl Fn(&mut [f32], P) + Sync,
) -> Result<()> {
    if !parameter.device().is_cpu() {
        let copy = to_cpu_f32(parameter)?;
        change(&copy, |values: &mut [f32]| {
            each_piece(values, parts, &kernel);
            Ok(())
        })?;
        return Ok(parameter.set(&copy.to_device(parameter.device())?.to_dtype(parameter.dtype())?)?);
    }
    let operation = |storage: &mut CpuStorage, layout: &Layout| {
        let range = contiguous_range(layout)?;
        match storage {
            CpuStorage::F32(values) => each_piece(&mut values[range], parts, &kernel),
            CpuStorage::BF16(values) => each_rounded_piece(&mut values[range], parts, &kernel),
            CpuStorage::F16(values) => each_rounded_piece(&mut values[range], parts, &kernel),
            _ => candle_core::bail!("a parameter must be of f32, f16 or bf16"),
        }
        Ok(())
    };
    Ok(parameter.inplace_op1(&InPlace(RefCell::new(Some(operation))))?)
}

fn each_piece<P: Send>(values: &mut [f32], parts: Vec<P>, kernel: &(impl Fn(&mut [f32], P) + Sync)) {
    values.par_chunks_mut(PIECE).zip(parts).for_each(|(values, part)| kernel(values, part));
}

fn each_rounded_piece<T: Element, P: Send>(
    values: &mut [T],
    parts: Vec<P>,
    kernel: &(impl Fn(&mut [f32], P) + Sync),
) {
    values.par_chunks_mut(PIECE).zip(parts).for_each(|(rounded, part)| {
        let mut values: Vec<f32> = rounded.iter().map(|value| value.to_f32()).collect();
        kernel(&mut values, part);
        rounded.iter_mut().zip(values).for_each(|(rounded, value)| *rounded = T::from_f32(value));
    });
}
