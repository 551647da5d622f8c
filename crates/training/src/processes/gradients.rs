//! The gradients of a step, summed over all processes in buckets of the size that torch's DistributedDataParallel has. That one sends a bucket while the rest of the backward pass is
//! computed; candle's backward hands out all gradients at its end, so that here a bucket travels while others are packed and unpacked.

use std::ops::Range;

use candle_core::{DType, Tensor};

use super::Processes;
use crate::error::{Error, Result};
use crate::gradients::Gradients;
use crate::parameters::{Parameter, ParameterGroup, parameters};

/// Values that travel together: 25 MB, DistributedDataParallel's `bucket_cap_mb`.
const BUCKET: usize = 25 * 1024 * 1024 / 4;

/// What the processes of a step know of each other.
pub(crate) struct Shared {
    /// The mean of their losses.
    pub(crate) loss: f64,
    /// The parameters that have a gradient in any of them.
    trained: Vec<bool>,
}

impl Shared {
    /// Tells the others this process's loss and which parameters it has gradients of.
    ///
    /// # Errors
    /// When a process has failed.
    pub(crate) fn meet(processes: &dyn Processes, loss: f64, gradients: &Gradients) -> Result<Self> {
        let trained = (0..gradients.len()).map(|index| u8::from(gradients.get(index).is_some()));
        let message: Vec<u8> = loss.to_le_bytes().into_iter().chain(trained).collect();
        let messages = processes.meet(&message)?;
        let (mut sum, mut all) = (0.0, vec![false; gradients.len()]);
        for (rank, message) in messages.iter().enumerate() {
            let (Some((loss, trained)), true) =
                (message.split_first_chunk::<8>(), message.len() == 8 + all.len())
            else {
                let problem = format!("trains other parameters than process {}", processes.rank());
                return Err(Error::Process { rank, problem });
            };
            sum += f64::from_le_bytes(*loss);
            all.iter_mut().zip(trained).for_each(|(all, trained)| *all |= *trained == 1);
        }
        Ok(Self { loss: sum / messages.len() as f64, trained: all })
    }
}

/// Puts the sums over all processes in place of this one's gradients. While a bucket travels, the next one is packed and the last one unpacked.
///
/// # Errors
/// When the processes have lost each other.
pub(crate) fn sum_over_processes(
    processes: &dyn Processes,
    shared: &Shared,
    gradients: &mut Gradients,
    groups: &[ParameterGroup],
) -> Result<()> {
    let all: Vec<(&mut Option<Tensor>, &Parameter)> = gradients.iter_mut().zip(parameters(groups)).collect();
    let mut all: Vec<_> =
        all.into_iter().zip(&shared.trained).filter_map(|(both, trained)| trained.then_some(both)).collect();
    let buckets = buckets(all.iter().map(|(_, parameter)| parameter.var.elem_count()));
    let mut packed = buckets.first().map(|first| pack(&all[first.clone()])).transpose()?;
    let mut arrived: Option<(Range<usize>, Tensor)> = None;
    for (number, bucket) in buckets.iter().enumerate() {
        let Some(values) = packed.take() else { break };
        let sum = processes.sum(&values, &mut || {
            packed = buckets.get(number + 1).map(|next| pack(&all[next.clone()])).transpose()?;
            arrived.take().map_or(Ok(()), |(bucket, sum)| unpack(&mut all[bucket], &sum))
        })?;
        arrived = Some((bucket.clone(), sum));
    }
    arrived.map_or(Ok(()), |(bucket, sum)| unpack(&mut all[bucket], &sum))
}

/// Neighbours that travel together; a parameter is never cut.
fn buckets(counts: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let (mut buckets, mut filled) = (Vec::<Range<usize>>::new(), usize::MAX);
    for (index, count) in counts.enumerate() {
        match buckets.last_mut() {
            Some(bucket) if filled.saturating_add(count) <= BUCKET => {
                bucket.end = index + 1;
                filled += count;
            }
            _ => {
                buckets.push(index..index + 1);
                filled = count;
            }
        }
    }
    buckets
}

/// The gradients one after the other; zeros where this process has none.
fn pack(bucket: &[(&mut Option<Tensor>, &Parameter)]) -> Result<Tensor> {
    let flat = |(gradient, parameter): &(&mut Option<Tensor>, &Parameter)| match gradient {
        Some(gradient) => gradient.flatten_all(),
        None => Tensor::zeros(parameter.var.elem_count(), DType::F32, parameter.var.device()),
    };
    let parts = bucket.iter().map(flat).collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&parts, 0)?)
}

fn unpack(bucket: &mut [(&mut Option<Tensor>, &Parameter)], sum: &Tensor) -> Result<()> {
    let mut start = 0;
    for (gradient, parameter) in bucket {
        let count = parameter.var.elem_count();
        **gradient = Some(sum.narrow(0, start, count)?.reshape(parameter.var.shape())?);
        start += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_fits_and_at_least_one() {
        let half = BUCKET / 2;
        assert_eq!(buckets([half, half, 1, BUCKET + 1, 1, 2].into_iter()), [0..2, 2..3, 3..4, 4..6]);
        assert!(buckets(std::iter::empty()).is_empty());
    }
}
