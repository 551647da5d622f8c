//! Numbers as files have them.

use candle_core::DType;
use half::{bf16, f16};

use super::level::Level;
use crate::cpu::{Float, Instructions, Work, run_at};

/// Little-endian numbers of one dtype, which need not be aligned.
pub(super) struct FileNumbers<'a> {
    pub(super) level: Level,
    pub(super) bytes: &'a [u8],
    pub(super) stored: DType,
}

impl FileNumbers<'_> {
    /// Writes the numbers from the index `start` on, as many as there is room for.
    pub(super) fn read<T: FileNumber>(&self, start: usize, to: &mut [T]) {
        let size = self.stored.size_in_bytes();
        let bytes = &self.bytes[start * size..(start + to.len()) * size];
        match self.stored {
            stored if stored == T::DTYPE => T::copy(bytes, to),
            DType::F32 => run_at(self.level, Convert::<f32, T> { bytes, to, from: Default::default() }),
            DType::F16 => run_at(self.level, Convert::<f16, T> { bytes, to, from: Default::default() }),
            // `PackedWeight` lets no other dtype come here.
            _ => run_at(self.level, Convert::<bf16, T> { bytes, to, from: Default::default() }),
        }
    }
}

/// A dtype that weights have in files.
pub(super) trait FileNumber: Float {
    fn numbers(bytes: &[u8]) -> impl Iterator<Item = Self>;

    fn copy(bytes: &[u8], to: &mut [Self]) {
        to.iter_mut().zip(Self::numbers(bytes)).for_each(|(to, number)| *to = number);
    }
}

macro_rules! little_endian {
    ($($type:ty),*) => {
        $(impl FileNumber for $type {
            #[inline(always)]
            fn numbers(bytes: &[u8]) -> impl Iterator<Item = Self> {
                bytes.as_chunks().0.iter().map(|bytes| Self::from_le_bytes(*bytes))
            }
        })*
    };
}

little_endian!(f32, f16, bf16);

/// Rounds to the nearest where `B` has fewer digits.
struct Convert<'a, A, B> {
    bytes: &'a [u8],
    to: &'a mut [B],
    from: std::marker::PhantomData<A>,
}

impl<A: FileNumber, B: FileNumber> Work for Convert<'_, A, B> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Instructions) {
        let mut numbers = A::numbers(self.bytes);
        for to in self.to {
            let Some(number) = numbers.next() else { return };
            *to = B::from_float(number.to_float());
        }
    }
}
