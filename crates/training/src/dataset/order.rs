//! In which order pictures come, from the seed and the epoch alone.

use std::collections::BTreeMap;

use candle_core::Device;
use candle_diffusers_schedulers::TorchGenerator;

use crate::error::Result;

/// The generator of one purpose within an epoch: 0 for the order, else one more than the place of a picture.
pub(super) fn generator(seed: u64, epoch: u64, purpose: u64) -> TorchGenerator {
    TorchGenerator::new(mixed(mixed(mixed(seed) ^ epoch) ^ purpose))
}

/// The generator of a picture that comes alike each time.
pub(super) fn fixed_generator(seed: u64, index: usize) -> TorchGenerator {
    // An epoch that no run comes to.
    generator(seed, u64::MAX, index as u64)
}

/// SplitMix64 (Steele, Lea and Flood, 2014): neighbours become numbers that have nothing to do with each other.
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The batches of an epoch, as places in `targets`: all pictures of a batch have one target size. `fill` makes incomplete batches whole by pictures
/// of the same size that have come already.
pub(super) fn batches(
    targets: &[[u32; 2]],
    repeats: usize,
    batch_size: usize,
    fill: bool,
    generator: &mut TorchGenerator,
) -> Result<Vec<Vec<usize>>> {
    let mut groups: BTreeMap<[u32; 2], Vec<usize>> = BTreeMap::new();
    for place in shuffled(targets.len() * repeats, generator)? {
        let index = place % targets.len();
        groups.entry(targets[index]).or_default().push(index);
    }
    let mut batches = Vec::new();
    for group in groups.values() {
        for batch in group.chunks(batch_size) {
            let missing = if fill { batch_size - batch.len() } else { 0 };
            batches.push(batch.iter().chain(group.iter().cycle().take(missing)).copied().collect());
        }
    }
    if groups.len() == 1 {
        return Ok(batches);
    }
    Ok(shuffled(batches.len(), generator)?
        .into_iter()
        .map(|place| std::mem::take(&mut batches[place]))
        .collect())
}

/// Some places of `0..length` in their order, by the seed alone.
pub(super) fn choose(length: usize, count: usize, seed: u64) -> Result<Vec<usize>> {
    // A purpose that no picture's place comes to.
    let mut chosen = shuffled(length, &mut generator(seed, 0, u64::MAX))?;
    chosen.truncate(count);
    chosen.sort_unstable();
    Ok(chosen)
}

/// How many batches an epoch has.
pub(super) fn batch_count(targets: &[[u32; 2]], repeats: usize, batch_size: usize) -> usize {
    let mut counts: BTreeMap<[u32; 2], usize> = BTreeMap::new();
    for target in targets {
        *counts.entry(*target).or_default() += repeats;
    }
    counts.values().map(|count| count.div_ceil(batch_size)).sum()
}

fn shuffled(count: usize, generator: &mut TorchGenerator) -> Result<Vec<usize>> {
    let places = generator.randperm(count, &Device::Cpu)?.to_vec1::<i64>()?;
    Ok(places.into_iter().map(|place| place as usize).collect())
}
