//! The gradients of a step, summed over all processes in buckets, as torch's DistributedDataParallel sums them: a bucket travels as soon as the backward pass has its
//! gradients, while the rest is computed.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use candle_core::{DType, Tensor};

use super::{GradientBuckets, Processes};
use crate::backward_pass::{Arrival, Prepared};
use crate::error::{Error, Result};
use crate::gradients::Gradients;
use crate::parameters::{Parameter, ParameterGroup, parameters};

/// Values that travel together: at most 25 MB, DistributedDataParallel's `bucket_cap_mb`, and for small models a sixteenth of all, so that little is left when the backward
/// pass is over, but no less than 64 kB.
const BUCKET: Range<usize> = 64 * 1024 / 4..25 * 1024 * 1024 / 4;
const BUCKETS: usize = 16;

/// How the processes of a run sum their gradients.
#[derive(Debug, Default)]
pub(crate) struct SumOverProcesses {
    /// The parameters whose gradients the backward pass hands out before its end, in the order in which it did so in the first process's first step. All processes send them in
    /// this one.
    order: Option<Vec<usize>>,
}

/// Waits for all processes, and gives the mean of their losses: whoever has failed before the backward pass says so here.
///
/// # Errors
/// When a process has failed or trains something else.
pub(crate) fn mean_loss(processes: &dyn Processes, loss: f64, groups: &[ParameterGroup]) -> Result<f64> {
    let mut hasher = DefaultHasher::new();
    parameters(groups).for_each(|parameter| parameter.var.dims().hash(&mut hasher));
    let shapes = hasher.finish().to_le_bytes();
    let messages = processes.meet(&[loss.to_le_bytes(), shapes].concat())?;
    let mut sum = 0.0;
    for (rank, message) in messages.iter().enumerate() {
        match message.split_first_chunk::<8>() {
            Some((loss, of_rank)) if of_rank == shapes => sum += f64::from_le_bytes(*loss),
            _ => return Err(other_parameters(processes, rank)),
        }
    }
    Ok(sum / messages.len() as f64)
}

fn other_parameters(processes: &dyn Processes, rank: usize) -> Error {
    Error::Process { rank, problem: format!("trains other parameters than process {}", processes.rank()) }
}

impl SumOverProcesses {
    /// The gradients of `loss` and those of `earlier` batches, summed over all processes.
    ///
    /// # Errors
    /// When a process has failed, or they have lost each other.
    pub(crate) fn of(
        &mut self,
        processes: &dyn Processes,
        (pass, arrivals): Prepared,
        loss: Tensor,
        earlier: Option<Gradients>,
        groups: &[ParameterGroup],
    ) -> Result<Gradients> {
        let mut pass = Some((pass, loss));
        let mut at_end = None;
        let mut run = || {
            if let Some((pass, loss)) = pass.take() {
                at_end = Some(pass.run(loss, groups));
            }
        };
        let mut arrivals: Box<dyn Iterator<Item = Arrival> + Send> = Box::new(arrivals.into_iter());
        let order = match &self.order {
            Some(order) => order.clone(),
            None => {
                // Nobody knows yet what comes when.
                run();
                let arrived: Vec<Arrival> = arrivals.collect();
                let order = common_order(processes, &arrived, parameters(groups).count())?;
                arrivals = Box::new(arrived.into_iter());
                self.order.insert(order).clone()
            }
        };
        let earlier = match earlier {
            Some(earlier) => earlier,
            None => Gradients::none(groups),
        };
        let mut early = Buckets::new(&order, groups, arrivals, earlier);
        processes.sum_during(&mut run, &mut early).map_err(lost)?;
        let Some(at_end) = at_end else {
            return Err(Error::Connection("the processes have left out the backward pass".to_string()));
        };
        let (mut sums, had, mut rest) = early.finish(groups)?;
        rest.add(at_end?)?;

        // What has no gradient in any process must have none: zeros would let it decay.
        let has_rest = (0..rest.len()).map(|number| rest.get(number).is_some());
        let flags = had.iter().zip(has_rest).map(|(had, rest)| u8::from(*had) | u8::from(rest) << 1);
        let flags = any(processes, &flags.collect::<Vec<_>>())?;
        let mut order = Vec::new();
        for (number, flags) in flags.into_iter().enumerate() {
            if flags & 1 == 0 {
                sums.take(number);
            }
            if flags & 2 != 0 {
                order.push(number);
            }
        }
        let mut late = Buckets::new(&order, groups, Box::new(std::iter::empty()), rest);
        processes.sum_during(&mut || (), &mut late).map_err(lost)?;
        sums.add(late.finish(groups)?.0)?;
        Ok(sums)
    }
}

/// Others may wait for the rest of the sums, so that they cannot be told at a meeting.
fn lost(error: Error) -> Error {
    Error::Connection(error.to_string())
}

/// The parameters whose gradients have arrived at the first process, each once.
fn common_order(processes: &dyn Processes, arrived: &[Arrival], count: usize) -> Result<Vec<usize>> {
    let mut is_new = vec![true; count];
    let first = arrived.iter().filter(|(number, _)| std::mem::take(&mut is_new[*number]));
    let message: Vec<u8> = first.flat_map(|(number, _)| (*number as u64).to_le_bytes()).collect();
    let messages = processes.meet(&message)?;
    let of_first = messages.first().map_or(&[][..], |message| message.as_chunks().0);
    let order: Vec<usize> = of_first.iter().map(|bytes| u64::from_le_bytes(*bytes) as usize).collect();
    let mut is_new = vec![true; count];
    match order.iter().all(|number| is_new.get_mut(*number).is_some_and(std::mem::take)) {
        true => Ok(order),
        false => Err(other_parameters(processes, 0)),
    }
}

/// All processes' flags of each parameter.
fn any(processes: &dyn Processes, flags: &[u8]) -> Result<Vec<u8>> {
    let mut all = vec![0; flags.len()];
    for (rank, message) in processes.meet(flags)?.iter().enumerate() {
        if message.len() != all.len() {
            return Err(other_parameters(processes, rank));
        }
        all.iter_mut().zip(message).for_each(|(all, own)| *all |= own);
    }
    Ok(all)
}

/// Gradients on their way.
struct Buckets<'a> {
    /// In the order of their travel.
    travellers: Vec<Traveller<'a>>,
    /// The traveller of each parameter's number.
    places: Vec<Option<usize>>,
    /// Ends with the backward pass.
    arrivals: Box<dyn Iterator<Item = Arrival> + Send>,
    /// What does not travel here: of other parameters, or a second part.
    rest: Gradients,
    /// Neighbours that travel together.
    buckets: Vec<Range<usize>>,
    sent: usize,
    sums: Vec<Tensor>,
}

struct Traveller<'a> {
    number: usize,
    parameter: &'a Parameter,
    gradient: Option<Tensor>,
    has_arrived: bool,
    had_gradient: bool,
}

impl<'a> Buckets<'a> {
    fn new(
        order: &[usize],
        groups: &'a [ParameterGroup],
        arrivals: Box<dyn Iterator<Item = Arrival> + Send>,
        mut earlier: Gradients,
    ) -> Self {
        let all: Vec<&Parameter> = parameters(groups).collect();
        let mut places = vec![None; all.len()];
        let mut travellers = Vec::with_capacity(order.len());
        for &number in order {
            let Some(parameter) = all.get(number) else { continue };
            places[number] = Some(travellers.len());
            let gradient = earlier.take(number);
            let had_gradient = gradient.is_some();
            travellers.push(Traveller { number, parameter, gradient, has_arrived: false, had_gradient });
        }
        let counts = travellers.iter().map(|traveller| traveller.parameter.var.elem_count());
        let buckets = buckets(counts.collect());
        Self { travellers, places, arrivals, rest: earlier, buckets, sent: 0, sums: Vec::new() }
    }

    fn arrive(&mut self, (number, gradient): Arrival) -> Result<()> {
        let place = self.places.get(number).copied().flatten();
        let traveller = place.and_then(|place| self.travellers.get_mut(place));
        // A second part must not depend on whether the first has left already: that would change how sums round.
        let Some(traveller) = traveller.filter(|traveller| !traveller.has_arrived) else {
            return self.rest.add_one(number, gradient);
        };
        let gradient = gradient.to_dtype(DType::F32)?;
        traveller.gradient = Some(match traveller.gradient.take() {
            Some(earlier) => (earlier + gradient)?,
            None => gradient,
        });
        (traveller.has_arrived, traveller.had_gradient) = (true, true);
        Ok(())
    }

    /// The sums, whether this process had a part in each, and what has not travelled.
    fn finish(mut self, groups: &[ParameterGroup]) -> Result<(Gradients, Vec<bool>, Gradients)> {
        // A second part of what was in the last bucket.
        while let Some(arrival) = self.arrivals.next() {
            self.arrive(arrival)?;
        }
        if self.sums.len() != self.buckets.len() {
            let problem = format!("{} sums have come of {} buckets", self.sums.len(), self.buckets.len());
            return Err(Error::Connection(problem));
        }
        let (mut sums, mut had) = (Gradients::none(groups), vec![false; self.places.len()]);
        for (bucket, sum) in self.buckets.into_iter().zip(self.sums) {
            let mut start = 0;
            for Traveller { number, parameter, had_gradient, .. } in &self.travellers[bucket] {
                let count = parameter.var.elem_count();
                sums.add_one(*number, sum.narrow(0, start, count)?.reshape(parameter.var.shape())?)?;
                had[*number] = *had_gradient;
                start += count;
            }
        }
        Ok((sums, had, self.rest))
    }
}

impl GradientBuckets for Buckets<'_> {
    fn next(&mut self) -> Result<Option<Tensor>> {
        let Some(bucket) = self.buckets.get(self.sent).cloned() else { return Ok(None) };
        while !self.travellers[bucket.clone()].iter().all(|traveller| traveller.has_arrived) {
            let Some(arrival) = self.arrivals.next() else { break };
            self.arrive(arrival)?;
        }
        self.sent += 1;
        pack(&mut self.travellers[bucket]).map(Some)
    }

    fn put(&mut self, sum: Tensor) {
        self.sums.push(sum);
    }
}

/// Neighbours that travel together; a parameter is never cut.
fn buckets(counts: Vec<usize>) -> Vec<Range<usize>> {
    let most = (counts.iter().sum::<usize>() / BUCKETS).clamp(BUCKET.start, BUCKET.end);
    let (mut buckets, mut filled) = (Vec::<Range<usize>>::new(), usize::MAX);
    for (index, count) in counts.into_iter().enumerate() {
        match buckets.last_mut() {
            Some(bucket) if filled.saturating_add(count) <= most => {
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
fn pack(bucket: &mut [Traveller<'_>]) -> Result<Tensor> {
    let flat = |traveller: &mut Traveller<'_>| match traveller.gradient.take() {
        Some(gradient) => gradient.flatten_all(),
        None => {
            let var = &traveller.parameter.var;
            Tensor::zeros(var.elem_count(), DType::F32, var.device())
        }
    };
    let parts = bucket.iter_mut().map(flat).collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&parts, 0)?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_fits_and_at_least_one() {
        let half = BUCKET.end / 2;
        // So many that a sixteenth is the most that a bucket may hold.
        let rest = [BUCKET.end; 16];
        let counts = [&[half, half, 1, BUCKET.end + 1, 1, 2][..], &rest].concat();
        assert_eq!(buckets(counts)[..4], [0..2, 2..3, 3..4, 4..6]);
        assert!(buckets(Vec::new()).is_empty());
    }

    #[test]
    fn small_models_have_several_buckets_too() {
        assert_eq!(buckets(vec![BUCKET.start; 64]).len(), BUCKETS);
        // But none that are not worth a message.
        assert_eq!(buckets(vec![BUCKET.start / 2; 4]), [0..2, 2..4]);
    }
}
