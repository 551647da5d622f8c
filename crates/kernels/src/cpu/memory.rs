use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, Range};

use candle_core::{Result, Storage, Tensor, WithDType};

/// The numbers of a contiguous tensor on the CPU, behind their lock.
pub(crate) struct Values<S, T> {
    storage: S,
    range: Range<usize>,
    dtype: PhantomData<T>,
}

/// # Errors
/// When the tensor is not contiguous.
pub(crate) fn values<T>(tensor: &Tensor) -> Result<Values<impl Deref<Target = Storage>, T>> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("{:?} is not contiguous", layout.shape());
    };
    Ok(Values { storage, range: start..end, dtype: PhantomData })
}

impl<S: Deref<Target = Storage>, T: WithDType> Values<S, T> {
    /// # Errors
    /// When the tensor is of another dtype or not on the CPU.
    pub(crate) fn get(&self) -> Result<&[T]> {
        match &*self.storage {
            Storage::Cpu(storage) => Ok(&storage.as_slice()?[self.range.clone()]),
            _ => candle_core::bail!("expected a tensor on the CPU"),
        }
    }
}

/// `length` numbers that `write` writes; what they are before, nobody sees, so that they need no zeros.
///
/// # Safety
/// `write` must write all of them.
///
/// # Errors
/// When there is no memory for so many.
pub(crate) unsafe fn fill<T>(length: usize, write: impl FnOnce(&mut [MaybeUninit<T>])) -> Result<Vec<T>> {
    let mut values = room(length)?;
    write(&mut values.spare_capacity_mut()[..length]);
    // SAFETY: so many have room, and the caller promises that they are written.
    unsafe { values.set_len(length) };
    Ok(values)
}

/// An empty vector with room for so many numbers.
///
/// # Errors
/// When there is no memory for them.
pub(crate) fn room<T>(length: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    if values.try_reserve_exact(length).is_err() {
        candle_core::bail!("no memory for {length} numbers of {} bytes", size_of::<T>());
    }
    Ok(values)
}

/// What the processor moves between memory and its caches at a time, in bytes.
pub(crate) const CACHE_LINE: usize = 64;

/// Has the processor read these numbers ahead of their use.
#[inline(always)]
pub(crate) fn prefetch<T>(values: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let place = values.as_ptr().wrapping_add(index);
        // SAFETY: a hint that reads nothing; any address will do.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, index);
}
