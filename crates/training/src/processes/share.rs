//! The part of a batch that one process has, and the random numbers of that part.

use candle_core::{DType, Device, Tensor};
use candle_diffusers_schedulers::{NoiseSource, TorchGenerator};

use super::Processes;
use crate::error::{Error, Result};

/// Which pictures of the whole batch, that of all processes together, are this process's.
///
/// The whole batch has `parts` of equal length one after the other (instances, then as many of their class); of each part every process has an equal share, in
/// the order of the processes. So as many processes with one picture each see what one process sees with all of them, and the loss of the whole, a mean
/// over equal shares, is the mean of their losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShare {
    /// The number of this process, from 0.
    pub process: usize,
    /// How many processes there are.
    pub processes: usize,
    /// 1, or 2 with prior preservation.
    pub parts: usize,
}

impl Default for BatchShare {
    /// All of it.
    fn default() -> Self {
        Self { process: 0, processes: 1, parts: 1 }
    }
}

impl BatchShare {
    /// This process's rows of a tensor of the whole batch, which has `processes` times as many.
    ///
    /// # Errors
    /// When the rows cannot be shared equally.
    fn of(&self, whole: Tensor) -> candle_core::Result<Tensor> {
        if self.processes <= 1 {
            return Ok(whole);
        }
        let rows = whole.dim(0)?;
        let shares = self.processes * self.parts;
        if !rows.is_multiple_of(shares) {
            candle_core::bail!(
                "a batch of {rows} pictures has no {shares} equal shares, for {} processes and {} kinds of pictures",
                self.processes,
                self.parts
            );
        }
        let share = rows / shares;
        let part = |part: usize| whole.narrow(0, (part * self.processes + self.process) * share, share);
        let parts = (0..self.parts).map(part).collect::<candle_core::Result<Vec<_>>>()?;
        Tensor::cat(&parts, 0)
    }

    /// The shape of the whole batch's tensor.
    fn whole(&self, shape: &[usize]) -> Vec<usize> {
        let mut whole = shape.to_vec();
        if let Some(rows) = whole.first_mut() {
            *rows *= self.processes;
        }
        whole
    }
}

/// Where a recipe's random numbers come from: torch's generator, or a process's share of what it draws for all. A tensor's first dimension counts the pictures
/// of the batch. Whatever else a loss has to know of the whole batch comes from here too.
pub trait RandomSource: NoiseSource {
    /// As [`TorchGenerator::rand`].
    ///
    /// # Errors
    /// Those of [`TorchGenerator::rand`].
    fn rand(
        &mut self,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> candle_diffusers_schedulers::Result<Tensor>;

    /// As [`TorchGenerator::randint`].
    ///
    /// # Errors
    /// Those of [`TorchGenerator::randint`].
    fn randint(
        &mut self,
        low: i64,
        high: i64,
        shape: &[usize],
        device: &Device,
    ) -> candle_diffusers_schedulers::Result<Tensor>;

    /// What `draw` makes for each of `count` pictures, one after the other, as one tensor.
    ///
    /// # Errors
    /// When `draw` fails, or gives different shapes.
    fn each(
        &mut self,
        count: usize,
        draw: &mut dyn FnMut(&mut TorchGenerator) -> Result<Tensor>,
    ) -> Result<Tensor>;

    /// The largest of a number in all processes that share the batch, which is `own` here. All must ask together.
    ///
    /// # Errors
    /// When another process has failed.
    fn largest(&mut self, own: f32) -> Result<f32> {
        Ok(own)
    }
}

impl RandomSource for TorchGenerator {
    fn rand(
        &mut self,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> candle_diffusers_schedulers::Result<Tensor> {
        Self::rand(self, shape, dtype, device)
    }

    fn randint(
        &mut self,
        low: i64,
        high: i64,
        shape: &[usize],
        device: &Device,
    ) -> candle_diffusers_schedulers::Result<Tensor> {
        Self::randint(self, low, high, shape, device)
    }

    fn each(
        &mut self,
        count: usize,
        draw: &mut dyn FnMut(&mut TorchGenerator) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let drawn = (0..count).map(|_| draw(self)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&drawn, 0)?)
    }
}

/// A process's share of random numbers: every process draws those of the whole batch, from a generator that is the same in each, and keeps its own rows.
#[derive(Debug)]
pub struct ShareOfRandom<'a> {
    /// The generator of all.
    pub generator: &'a mut TorchGenerator,
    /// Whose rows are kept.
    pub share: BatchShare,
}

impl NoiseSource for ShareOfRandom<'_> {
    fn randn(
        &mut self,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> candle_diffusers_schedulers::Result<Tensor> {
        let whole = self.generator.randn(&self.share.whole(shape), dtype, &Device::Cpu)?;
        Ok(self.share.of(whole)?.to_device(device)?)
    }
}

impl RandomSource for ShareOfRandom<'_> {
    fn rand(
        &mut self,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> candle_diffusers_schedulers::Result<Tensor> {
        let whole = self.generator.rand(&self.share.whole(shape), dtype, &Device::Cpu)?;
        Ok(self.share.of(whole)?.to_device(device)?)
    }

    fn randint(
        &mut self,
        low: i64,
        high: i64,
        shape: &[usize],
        device: &Device,
    ) -> candle_diffusers_schedulers::Result<Tensor> {
        let whole = self.generator.randint(low, high, &self.share.whole(shape), &Device::Cpu)?;
        Ok(self.share.of(whole)?.to_device(device)?)
    }

    fn each(
        &mut self,
        count: usize,
        draw: &mut dyn FnMut(&mut TorchGenerator) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let whole = self.generator.each(count * self.share.processes, draw)?;
        Ok(self.share.of(whole)?)
    }
}

/// What [`Trainer::step`](crate::Trainer::step) hands a recipe: its share of random numbers, and the way to the other processes.
#[derive(Debug)]
pub(crate) struct SourceOfStep<'a> {
    pub(crate) random: ShareOfRandom<'a>,
    pub(crate) processes: &'a dyn Processes,
}

impl NoiseSource for SourceOfStep<'_> {
    fn randn(
        &mut self,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> candle_diffusers_schedulers::Result<Tensor> {
        self.random.randn(shape, dtype, device)
    }
}

impl RandomSource for SourceOfStep<'_> {
    fn rand(
        &mut self,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> candle_diffusers_schedulers::Result<Tensor> {
        self.random.rand(shape, dtype, device)
    }

    fn randint(
        &mut self,
        low: i64,
        high: i64,
        shape: &[usize],
        device: &Device,
    ) -> candle_diffusers_schedulers::Result<Tensor> {
        self.random.randint(low, high, shape, device)
    }

    fn each(
        &mut self,
        count: usize,
        draw: &mut dyn FnMut(&mut TorchGenerator) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.random.each(count, draw)
    }

    fn largest(&mut self, own: f32) -> Result<f32> {
        let mut largest = own;
        for (rank, message) in self.processes.meet(&own.to_le_bytes())?.iter().enumerate() {
            let Ok(other) = <[u8; 4]>::try_from(message.as_slice()) else {
                let problem = format!("computes another loss than process {}", self.processes.rank());
                return Err(Error::Process { rank, problem });
            };
            largest = largest.max(f32::from_le_bytes(other));
        }
        Ok(largest)
    }
}
